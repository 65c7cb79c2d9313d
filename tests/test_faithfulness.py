"""Gen-SIS done faithfully: the fourteen checks, each named by its number.

1 limits of alpha; 2 logits mixed first; 3 what the teacher sees; 4 the center; 5 stored pairs;
6 whose embeddings; 7 the null condition; 8 which view is synthetic; 9 DINO as a special case;
10 DINO itself (in numbers: test_dino_oracle.py, test_dino_schedules.py); 11 k-NN; 12 GenView;
13 folds; 14 a fair comparison.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_data import make_augmentations, make_patches, noise
from helpers_dino import Textures, random_loader, random_views, same, tiny
from helpers_ldm import autoencoder, chance, embeddings, feature_store, image_folder, small
from helpers_ldm import train_config as ldm_config
from helpers_views import World
from torch import Tensor
from torch.nn import functional as F

from pathgen.augment import AugmentConfig, plan_recipes
from pathgen.checkpoints import read_checkpoint
from pathgen.data.augmentation import crop
from pathgen.data.splits import folds
from pathgen.data.views import ViewMaker
from pathgen.errors import DataError, RunError
from pathgen.evaluate.knn import knn_predict
from pathgen.models.dino import StudentTeacher
from pathgen.models.genview import Foreground, noise_level, pair_quality, quality_weights
from pathgen.models.interpolation import entangle, slerp
from pathgen.models.losses import DinoLoss
from pathgen.pretraining import resolve
from pathgen.recipes import recipe_names
from pathgen.runs import Run
from pathgen.stores import PatchRef, Recipe
from pathgen.train import dino as module
from pathgen.train.dino import DinoConfig, dino_loss, train_dino
from pathgen.train.ldm import train_ldm
from pathgen.train.optimize import OptimConfig

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
AUGMENTATIONS: Any = ["anything: the loader is replaced"]


def logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


def fit(path: Path, config: DinoConfig, augmentations: Any = ()) -> Run:
    run = Run.start(path, "dino", config, {"patches": "textures"})
    train_dino(config, [Textures(64)], run, augmentations)
    return run


def state(run: Run) -> Any:
    return read_checkpoint(run.checkpoints()[-1])["parts"]


def pair_and_loss(config: DinoConfig) -> tuple[StudentTeacher, DinoLoss]:
    torch.manual_seed(0)
    return StudentTeacher(config.encoder, config.head), DinoLoss(config.head.prototypes)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_1_slerp_and_target_agree_on_which_end_is_which() -> None:
    a, b = logits(2, 40, seed=1), logits(2, 40, seed=2)
    ones = torch.ones(2)
    assert torch.equal(slerp(a, b, ones), F.normalize(a, dim=-1))
    assert torch.equal(entangle(a, b, ones), a)


def test_1_at_both_ends_of_alpha_disentangling_is_plain_cross_entropy() -> None:
    loss = DinoLoss(40)
    loss.center.copy_(logits(40, seed=1))
    student, primary, secondary = (logits(3, 40, seed=i) for i in (2, 3, 4))
    for alpha, source in ((1.0, primary), (0.0, secondary)):
        found = loss.disentangle(student, primary, secondary, torch.full((3,), alpha), 0.04)
        target = ((source - loss.center) / 0.04).softmax(-1)
        expected = -(target * F.log_softmax(student / 0.1, -1)).sum(-1).mean()
        assert torch.equal(found, expected)
        # ... and it is what DINO's own loss says of that pair of views.
        nothing = torch.zeros_like(student)
        pair = loss([nothing, student], [source], 0.04)
        torch.testing.assert_close(found, pair)


def test_2_mixing_logits_before_centering_is_the_normalized_geometric_mean() -> None:
    loss = DinoLoss(40).double()
    loss.center.copy_(logits(40, seed=1, dtype=torch.float64))
    a, b = (logits(5, 40, seed=i, dtype=torch.float64) / 20 for i in (2, 3))
    alpha = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0], dtype=torch.float64)
    found = loss.target(entangle(a, b, alpha), 0.04)
    w = alpha[:, None]
    mean = loss.target(a, 0.04) ** w * loss.target(b, 0.04) ** (1 - w)
    torch.testing.assert_close(found, mean / mean.sum(-1, keepdim=True))


def test_2_loss_is_the_sum_that_algorithm_1_says() -> None:
    pair, loss = pair_and_loss(tiny())
    pair.trained.eval()  # no stochastic depth, so that a second pass is the same
    loss.center.normal_()
    center = loss.center.clone()
    views = random_views(0, blend=True)
    assert views.blend is not None
    terms = dino_loss(pair, loss, views, 0.04, 0.7)
    primary, second = pair.teacher(views.global_crops)
    (other,) = pair.teacher([views.blend.secondary])
    (student,) = pair.student([views.blend.image])
    total = []
    for i, row in enumerate(views.blend.rows.tolist()):
        a = views.blend.alpha[i]
        mixed = a * primary[row] + (1 - a) * other[i]
        t = torch.softmax((mixed - center) / 0.04, -1)
        total.append(-(t * torch.log_softmax(student[i] / 0.1, -1)).sum())
    assert terms.blend is not None
    torch.testing.assert_close(terms.blend, torch.stack(total).mean())
    torch.testing.assert_close(terms.total, terms.dino + 0.7 * terms.blend)
    plain = DinoLoss(64)
    plain.center.copy_(center)
    answers = pair.student([*views.global_crops, *views.local_crops])
    torch.testing.assert_close(terms.dino, plain(answers, [primary, second], 0.04))


def test_3_teacher_never_sees_the_blend_and_gets_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair, loss = pair_and_loss(tiny())
    views = random_views(0, blend=True)
    assert views.blend is not None
    seen: list[Tensor] = []
    watched = pair.teacher
    monkeypatch.setattr(pair, "teacher", lambda v: [seen.extend(v), watched(v)][1])
    terms = dino_loss(pair, loss, views, 0.04, 1.0)
    terms.total.backward()
    expected = [*views.global_crops, views.blend.secondary]
    assert len(seen) == 3
    assert all(a is b for a, b in zip(seen, expected, strict=True))
    assert all(p.grad is None for p in pair._teacher.parameters())
    assert all(p.grad is not None for p in pair.trained.parameters() if p.requires_grad)


def test_4_center_moves_once_a_step_from_ordinary_global_views_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "view_loader", random_loader)
    moved: list[Tensor] = []
    monkeypatch.setattr(
        DinoLoss, "move_center", lambda self, mean, move=DinoLoss.move_center: [
            moved.append(mean.clone()), move(self, mean)
        ][1],
    )  # fmt: skip
    config = tiny(optim=tiny().optim.model_copy(update={"steps": 2, "warmup_steps": 0}))
    config = config.model_copy(update={"freeze_last_layer_epochs": 0})
    run = fit(tmp_path / "run", config, AUGMENTATIONS)
    assert len(moved) == 2
    torch.manual_seed(config.run.seed)
    teacher = StudentTeacher(config.encoder, config.head)
    views = random_views(0, 8, blend=True)
    first = torch.cat(teacher.teacher(views.global_crops)).mean(0)
    torch.testing.assert_close(moved[0], first)
    expected = 0.9 * (0.1 * moved[0]) + 0.1 * moved[1]
    torch.testing.assert_close(state(run)["loss"]["center"], expected)


def test_5_secondary_and_alpha_are_those_of_the_store(world: World) -> None:
    """Nothing about the pair is drawn again."""
    maker = world.maker(global_scale=(1, 1))
    for step in range(3):
        blend = maker(step, np.arange(12)).blend
        assert blend is not None
        assert blend.rows.tolist() == list(range(8))
        for image, secondary, alpha, row in zip(
            blend.image, blend.secondary, blend.alpha, blend.rows, strict=True
        ):
            recipe = world.blends[int(row)]
            assert recipe.primary == world.refs[int(row)]
            assert abs(float(alpha) - recipe.alpha) < 1e-7
            expected = maker.patches.images([world.refs.index(recipe.secondary)])[0]
            whole = crop(torch.from_numpy(expected).permute(2, 0, 1), 0, 0, 32, 32, 16)
            assert torch.equal(secondary, whole / 255)
            assert 0.4 < float(image.mean()) < 0.55  # the blend, not a patch or a variation


def test_6_e_ldm_is_of_the_encoder_that_its_metadata_names(tmp_path: Path) -> None:
    patches = image_folder(tmp_path / "patches")
    features = feature_store(tmp_path / "features.h5", patches, encoder="f" * 16)
    config = ldm_config(optim={"steps": 1, "batch_size": 4, "warmup_steps": 0})
    run = Run.start(tmp_path / "run", "ldm", config, {"encoder": "f" * 16})
    assert (
        train_ldm(config, [patches], [features], autoencoder(), run).config.encoder_id == "f" * 16
    )
    # Two encoders in one training cannot be.
    other = feature_store(tmp_path / "other.h5", patches, encoder="0" * 16)
    again = Run.start(tmp_path / "again", "ldm", config, {})
    with pytest.raises((DataError, RunError)):
        train_ldm(config, [patches], [features, other], autoencoder(), again)


def test_7_null_is_zeros_before_the_linear_layer_in_one_of_ten() -> None:
    model, seen = small(condition_dropout=0.1), []

    def denoise(latents: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        seen.append(condition)
        return torch.zeros_like(latents)

    model.denoise = denoise  # type: ignore[method-assign]
    draws = model.process.draw((20_000, 4, 1, 1), chance())
    model.loss(torch.zeros(20_000, 4, 1, 1), embeddings(20_000), draws)
    null = (seen[0] == 0).all(1)
    assert abs(float(null.float().mean()) - 0.1) < 4 * (0.09 / 20_000) ** 0.5
    assert model.config.condition_dropout == type(model.config)().condition_dropout  # the default


def test_7_guidance_1_is_the_conditional_answer() -> None:
    model = small()
    latents, condition = torch.randn(2, 4, 8, 8), model.condition(embeddings(2))
    with torch.no_grad():
        said = model.denoise(latents, torch.full((2,), 500), condition)
        assert torch.equal(model._guided(latents, 500, condition, 1.0), said)
        assert not torch.allclose(model._guided(latents, 500, condition, 2.0), said, atol=1e-4)


def test_8_exactly_one_of_two_globals_is_synthetic(world: World) -> None:
    """With p = 1 always one, either as often; a missing image gives two real views."""
    maker, items, firsts = world.maker(), np.arange(12), []
    for step in range(60):
        views = maker(step, items)
        bright = torch.stack([x.mean((1, 2, 3)) > 0.55 for x in views.global_crops], 1)
        assert views.synthetic is not None
        assert torch.equal(bright, views.synthetic)
        assert bright.sum(1).tolist() == [1, 0] * 6  # odd items have no variation
        assert views.missing == 6
        firsts.append(bright[::2, 0])
    assert abs(torch.cat(firsts).float().mean() - 0.5) < 0.1


def test_9_without_weight_and_share_gen_dino_is_dino_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "view_loader", random_loader)
    seen: list[int] = []
    watched = StudentTeacher.student
    monkeypatch.setattr(
        StudentTeacher, "student", lambda self, views: [seen.append(1), watched(self, views)][1]
    )
    config = tiny(disentangle_weight=0.0)
    plain = fit(tmp_path / "dino", config)
    count = len(seen)
    gen = fit(tmp_path / "gen", config, AUGMENTATIONS)
    assert len(seen) == 2 * count  # at weight 0 the blend costs no pass
    assert same(state(plain), state(gen))
    weighted = fit(tmp_path / "weighted", tiny(), AUGMENTATIONS)
    assert "loss_disentangle" in weighted.step_log()[0]
    assert not same(state(plain), state(weighted))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_9_with_stored_images_and_share_0_it_is_dino_to_the_bit(
    tmp_path: Path, share: float
) -> None:
    rng = np.random.default_rng(0)
    patches = make_patches(tmp_path / "patches.h5", noise(rng, 12, 40))
    refs = [PatchRef(patches.id, row) for row in range(12)]
    recipes = [Recipe.generative(ref, 1) for ref in refs]
    # Only half the patches have an interpolated image.
    recipes += [Recipe(refs[i], refs[-1 - i], 0.2 + 0.1 * i, 2) for i in range(6)]
    made = make_augmentations(
        tmp_path / "made.h5", noise(rng, len(recipes), 40), recipes, [patches.id]
    )
    views = tiny().views.model_copy(update={"synthetic_share": share})
    config = tiny(views=views, disentangle_weight=share)
    optim = OptimConfig(steps=4, batch_size=4, lr=0.02, warmup_steps=1)
    config = config.model_copy(update={"optim": optim})
    runs = []
    for name, augmentations in (("dino", []), ("gen", [made])):
        run = Run.start(tmp_path / name, name, config, {})
        train_dino(config, [patches], run, augmentations)
        runs.append(run)
    assert all(("loss_disentangle" in line) == (share > 0) for line in runs[1].step_log())
    assert same(*(state(run) for run in runs)) == (share == 0)


def test_10_defaults_are_the_published_recipe_of_vit_s_16() -> None:
    config = DinoConfig()
    optim, views, head = config.optim, config.views, config.head
    assert (config.encoder.name, config.encoder.drop_path) == ("vit_small_patch16_224", 0.1)
    assert (head.hidden, head.bottleneck, head.prototypes, head.layers) == (2048, 256, 65_536, 3)
    assert head.norm_last_layer
    assert (optim.epochs, optim.warmup_epochs, optim.lr, optim.min_lr) == (100, 10, 5e-4, 1e-6)
    assert (optim.weight_decay, optim.weight_decay_end, optim.clip_norm) == (0.04, 0.4, 3.0)
    assert (config.teacher_momentum, config.center_momentum) == (0.996, 0.9)
    assert (config.student_temperature, config.teacher_temperature) == (0.1, 0.04)
    assert (config.warmup_teacher_epochs, config.freeze_last_layer_epochs) == (0, 1)
    assert (views.global_scale, views.local_scale, views.local_crops) == ((0.4, 1), (0.05, 0.4), 8)
    assert (views.preset, views.synthetic_share, config.disentangle_weight) == ("dino", 1, 1)
    # What goes beyond the paper is off.
    assert (views.synthetic_strength, views.neighbor_share, config.quality_weight) == (1, 0, 0)
    assert (views.blend, views.dis_pairs) == ("embedding", "one")
    assert (config.target, config.blend_as) == ("geometric", "disentangle")


def test_11_k_nn_is_the_reference_on_random_features() -> None:
    """Top k by cosine, votes exp(similarity / 0.07) by class, in float64."""
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(300, 16)), rng.normal(size=(60, 16))
    labels = rng.integers(0, 5, 300)
    unit, asked = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, queries))
    for k in (10, 20, 100, 200):
        found = knn_predict(
            bank.astype(np.float32), labels, queries.astype(np.float32), k=k, temperature=0.07
        )
        for query, answer in zip(asked, found, strict=True):
            similarity = unit @ query
            near = np.argsort(-similarity)[:k]
            votes = [np.exp(similarity[near] / 0.07)[labels[near] == c].sum() for c in range(5)]
            assert answer == int(np.argmax(votes))


def test_12_genview_table_at_its_edges_and_weights() -> None:
    shares = torch.tensor([0, 0.2, 0.2001, 0.4, 0.6, 0.8, 0.8001, 1.0], dtype=torch.float64)
    assert noise_level(shares).tolist() == [0, 0, 100, 100, 200, 300, 400, 400]
    tokens = torch.rand(6, 16, 8, generator=torch.Generator().manual_seed(0))
    foreground = Foreground.fit([tokens])
    assert torch.allclose(pair_quality(tokens, tokens, foreground), torch.zeros(6), atol=1e-6)
    quality = pair_quality(tokens, tokens.flip(0), foreground)
    assert quality_weights(quality).mean().item() == pytest.approx(1, abs=1e-6)


def test_13_folds_are_disjoint_by_patient_for_the_e_ldms_data_too(
    tmp_path: Path, world: World
) -> None:
    rng = np.random.default_rng(0)
    labels, patients = rng.integers(0, 3, 60), [f"p{i // 2}" for i in range(60)]
    for split in folds(labels, patients, k=5):
        parts = [{patients[row] for row in rows} for rows in split]
        assert not parts[0] & parts[1]
        assert not parts[0] & parts[2]
        assert not parts[1] & parts[2]
        # A plan over the training slides' embeddings blends nothing from elsewhere.
        slides: Any = [_Slide(f"s{row}", 3) for row in split.train]
        for recipe in plan_recipes(slides, AugmentConfig(interpolated_sources=3)):
            assert {int(patch.store[1:]) for patch in recipe.patches} <= set(split.train.tolist())
    # And a training refuses images that blend what it was not given.
    with pytest.raises(DataError, match="not given"):
        ViewMaker(tiny().views, world.sources[0], world.augmentations, seed=0)


class _Slide:
    def __init__(self, name: str, count: int) -> None:
        self.source, self.count = {"id": name}, count

    def __len__(self) -> int:
        return self.count


def test_14_both_arms_have_the_same_epochs_batch_crops_and_seed() -> None:
    for name in recipe_names():
        config = resolve(name, seed=3)
        one, other = config.dino, config.gen_dino
        for part in ("encoder", "head", "views", "optim"):
            assert getattr(one, part) == getattr(other, part), (name, part)
        assert one.run.seed == other.run.seed == 3
        assert one.teacher_momentum == other.teacher_momentum


def test_14_the_gain_study_has_three_seeds_and_tells_mean_and_spread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "gensis_gain"))
    arms, results = importlib.import_module("arms"), importlib.import_module("results")
    assert len(set(arms.StudyConfig().seeds)) >= 3
    assert {"dino", "gen-dino"} <= {name.replace("_", "-") for name in arms.ARMS}
    assert hasattr(results, "summary")  # mean, sd and paired difference: test_gain_study.py
    for name in ("arms", "results"):
        sys.modules.pop(name)
