"""One batch through student and teacher: the options of the blend, and parts of a batch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_data import make_augmentations, make_patches, noise
from helpers_dino import flat, random_views, same, tiny
from torch import Tensor

from pathgen.checkpoints import read_checkpoint
from pathgen.data.views import Blend, Views
from pathgen.models.dino import StudentTeacher
from pathgen.models.losses import DinoLoss
from pathgen.pretraining import resolve
from pathgen.runs import Run
from pathgen.stores import PatchRef, Recipe
from pathgen.train.dino import train_dino
from pathgen.train.distill import DinoTerms, dino_loss

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def pair() -> StudentTeacher:
    """In eval mode, so that stochastic depth does not tell two passes apart."""
    torch.manual_seed(0)
    return StudentTeacher(tiny().encoder, tiny().head).eval()


@pytest.fixture
def loss() -> DinoLoss:
    found = DinoLoss(64)
    found.center.normal_(generator=torch.Generator().manual_seed(0))
    return found


def views(rows: list[int], *, others: int = 1, each: int = 1) -> Views:
    """Eight samples, the blends of `rows` among `others` further sources with `each` views."""
    plain, draw = random_views(0, 8, blend=False), torch.Generator().manual_seed(9)

    def images() -> Tensor:
        return torch.rand(len(rows), 3, 32, 32, generator=draw)

    shares = torch.rand(len(rows), 1 + others, generator=draw)
    blend = Blend(
        images(), [[images() for _ in range(each)] for _ in range(others)],
        shares / shares.sum(1, keepdim=True), torch.tensor(rows),
    )  # fmt: skip
    return plain._replace(blend=blend)


def cross_entropy(pair: StudentTeacher, loss: DinoLoss, image: Tensor, target: Tensor) -> Tensor:
    (answer,) = pair.student([image])
    return -(target * torch.log_softmax(answer / 0.1, -1)).sum(-1)


def test_a_positive_is_one_more_student_view_among_all_pairs(
    pair: StudentTeacher, loss: DinoLoss
) -> None:
    batch = views([1, 2, 6])
    assert batch.blend is not None
    crops = [*batch.global_crops, *batch.local_crops]
    answers = pair.student(crops)
    targets = [loss.target(t, 0.04) for t in pair.teacher(batch.global_crops)]
    total, count = torch.zeros(()), 0
    for i, q in enumerate(targets):
        for j, answer in enumerate(answers):
            if i != j:
                total = total - (q * torch.log_softmax(answer / 0.1, -1)).sum()
                count += 8
        own = q[batch.blend.rows]
        total = total + cross_entropy(pair, loss, batch.blend.image, own).sum()
        count += 3
    terms = dino_loss(pair, loss, batch, 0.04, 0.0, blend_as="positive")
    torch.testing.assert_close(terms.total, total / count)


@pytest.mark.parametrize("others", [1, 2])
@pytest.mark.parametrize("each", [1, 2])
def test_each_choice_of_teacher_views_is_a_target(
    pair: StudentTeacher, loss: DinoLoss, others: int, each: int
) -> None:
    batch = views([0, 3, 4, 7], others=others, each=each)
    blend = batch.blend
    assert blend is not None
    first = [t[blend.rows] for t in pair.teacher(batch.global_crops)][:each]
    further = [pair.teacher(list(source)) for source in blend.others]
    found = []
    if others == 1:
        choices = [[a, b] for a in first for b in further[0]]
    else:
        choices = [[a, b, c] for a in first for b in further[0] for c in further[1]]
    for choice in choices:
        mixed = sum(blend.shares[:, k, None] * part for k, part in enumerate(choice))
        target = torch.softmax((mixed - loss.center) / 0.04, -1)
        found.append(cross_entropy(pair, loss, blend.image, target).mean())
    assert len(choices) == each ** (1 + others)
    terms = dino_loss(pair, loss, batch, 0.04, 0.5)
    assert terms.blend is not None
    torch.testing.assert_close(terms.blend, torch.stack(found).mean())
    torch.testing.assert_close(terms.total, terms.dino + 0.5 * terms.blend)


@pytest.mark.parametrize("blend_as", ["disentangle", "positive"])
@pytest.mark.parametrize("rows", [[0, 1, 2, 5], [4, 6], [0, 1, 2, 3, 4, 5, 6, 7]])
def test_the_mean_over_equal_parts_is_the_whole(
    pair: StudentTeacher, loss: DinoLoss, blend_as: str, rows: list[int]
) -> None:
    """However unevenly the blends lie, and where a part has none."""
    batch = views(rows)

    def terms(part: Views) -> DinoTerms:
        return dino_loss(pair, loss, part, 0.04, 0.7, blend_as=blend_as)  # type: ignore[arg-type]

    whole, parts = terms(batch), [terms(batch.part(slice(i, i + 4))) for i in (0, 4)]
    for name in ("total", "dino", "blend", "teacher_entropy", "teacher_mean"):
        mean = torch.stack([getattr(part, name) for part in parts]).mean(0)
        torch.testing.assert_close(mean, getattr(whole, name))


def test_parts_of_parts_are_parts() -> None:
    batch = views([0, 3, 4, 7])
    one = batch.part(slice(2, 8)).part(slice(1, 3))  # samples 3 and 4
    other = batch.part(slice(3, 5))
    assert one.blend is not None
    assert other.blend is not None
    assert one.blend.rows.tolist() == other.blend.rows.tolist() == [0, 1]
    assert one.blend.share == other.blend.share == (1, 3, 4)
    assert one.blended == other.blended == 0.5
    assert torch.equal(one.blend.image, batch.blend.image[1:3])  # type: ignore[union-attr]
    assert torch.equal(one.global_crops[0], batch.global_crops[0][3:5])


def test_weight_0_leaves_the_blend_alone(pair: StudentTeacher, loss: DinoLoss) -> None:
    batch = views([0, 3])
    with_blend, without = (
        dino_loss(pair, loss, x, 0.04, 0.0) for x in (batch, batch._replace(blend=None))
    )
    assert with_blend.blend is None
    assert torch.equal(with_blend.total, without.total)


OPTIONS = [
    "gen_dino.views.blend=pixel", "gen_dino.views.blend=off", "gen_dino.blend_as=positive",
    "gen_dino.target=arithmetic", "gen_dino.disentangle_weight=0", "gen_dino.views.dis_pairs=all",
    "gen_dino.views.synthetic_strength=0.5", "gen_dino.views.neighbor_share=0.3",
    "gen_dino.quality_weight=1", "augment.alphas=[0.5]", "augment.generative=4",
    "augment.interpolated_sources=3",
]  # fmt: skip


@pytest.mark.parametrize("line", OPTIONS)
def test_every_option_is_one_line_in_a_recipe(line: str) -> None:
    plain, changed = (
        flat(resolve("tiny", lines).model_dump(mode="json")) for lines in ([], [line])
    )
    key = "/" + line.split("=")[0].replace(".", "/")
    different = {k for k in plain | changed if plain.get(k) != changed.get(k)}
    assert different
    assert all(k.startswith(key) for k in different)


def test_all_options_together_train_and_resume(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    places = [(i % 3, i // 3) for i in range(9)]
    patches = make_patches(tmp_path / "patches.h5", noise(rng, 9, 40), places=places)
    refs = [PatchRef(patches.id, row) for row in range(9)]
    recipes = [Recipe.generative(ref, seed) for seed in (1, 2) for ref in refs[::2]]
    recipes += [
        Recipe(refs[i], refs[i + 1], 0.5, 3, tertiary=refs[i + 2], beta=0.3) for i in range(6)
    ]
    images = noise(rng, len(recipes), 40)
    made = make_augmentations(tmp_path / "made.h5", images, recipes, [patches.id], mixed=3)
    options = {"dis_pairs": "all", "synthetic_strength": 0.5, "neighbor_share": 0.5}
    config = tiny(
        views=tiny().views.model_copy(update=options), quality_weight=1.0,
        optim={"steps": 4, "batch_size": 4, "warmup_steps": 1}, center_start="first_batch",
        run={"device": "cpu", "save_every": 2, "log_every": 1, "keep_checkpoints": 2},
    )  # fmt: skip
    run = Run.start(tmp_path / "run", "gen-dino", config, {})
    train_dino(config, [patches], run, [made])
    assert all(line["loss_disentangle"] > 0 for line in run.step_log())
    # From the checkpoint in the middle to the same end.
    half, whole = run.checkpoints()
    again = Run.start(tmp_path / "again", "gen-dino", config, {})
    shutil.copytree(half, again.path / half.relative_to(run.path))
    train_dino(config, [patches], again, [made])
    ends = [read_checkpoint(folder)["parts"] for folder in (whole, again.checkpoints()[-1])]
    assert same(*ends)
