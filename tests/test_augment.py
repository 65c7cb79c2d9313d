"""Self-augmentation: the plan, the stores that follow it, and what is measured of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pathgen.augment import AugmentConfig, Conditions, augment, plan_recipes
from pathgen.data.sources import ImageFolder
from pathgen.errors import ConfigError, NoInputError, RunError, StoreError
from pathgen.extract import extract_features
from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.models.ldm import EmbeddingConditionedLDM, LDMConfig
from pathgen.models.weights import weights_id
from pathgen.progress import Silent
from pathgen.provenance import digest
from pathgen.stores import FeatureStore, PatchRef, Recipe, SelfAugmentationStore, find_stores

DIM = 12


class Features:
    """Of a feature store, only what a plan needs."""

    def __init__(self, name: str, vectors: np.ndarray[Any, Any]) -> None:
        self.source, self.vectors = {"id": name, "name": name}, vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def features(self) -> np.ndarray[Any, Any]:
        return self.vectors


def stores(lengths: list[int], seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return [
        Features(f"s{i}", rng.normal(size=(n, DIM)).astype(np.float32))
        for i, n in enumerate(lengths)
    ]


configs = st.builds(
    AugmentConfig,
    generative=st.integers(0, 3),
    interpolated=st.integers(1, 3),
    max_sources=st.none() | st.integers(1, 10),
    alphas=st.sampled_from([(0.5,), (0.2, 0.4, 0.6, 0.8)]),
    seed=st.integers(0, 2**40),
)
shapes = st.lists(st.integers(0, 8), min_size=1, max_size=4).filter(lambda n: sum(n) >= 2)


# --- the plan --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(lengths=shapes, config=configs)
def test_plan_is_complete_and_well_formed(lengths: list[int], config: AugmentConfig) -> None:
    plan = plan_recipes(stores(lengths), config)
    refs = [PatchRef(f"s{i}", row) for i, n in enumerate(lengths) for row in range(n)]
    primaries = list(dict.fromkeys(recipe.primary for recipe in plan))
    assert len(primaries) == min(len(refs), config.max_sources or len(refs))
    assert primaries == sorted(primaries)  # in the order of stores and rows
    assert len({recipe.seed for recipe in plan}) == len(plan)
    alphas = {float(np.float32(alpha)) for alpha in config.alphas}
    for primary in primaries:
        own = [recipe for recipe in plan if recipe.primary == primary]
        variations = [recipe for recipe in own if recipe.secondary == primary]
        blends = [recipe for recipe in own if recipe.secondary != primary]
        assert (len(variations), len(blends)) == (config.generative, config.interpolated)
        assert all(recipe.alpha == 1 for recipe in variations)
        assert all(recipe.alpha in alphas and recipe.secondary in refs for recipe in blends)


@settings(deadline=None, max_examples=30)
@given(lengths=shapes, config=configs, batch_size=st.integers(1, 500))
def test_plan_depends_on_seed_alone(
    lengths: list[int], config: AugmentConfig, batch_size: int
) -> None:
    plan = plan_recipes(stores(lengths), config)
    same = config.model_copy(update={"batch_size": batch_size, "steps": 7, "guidance": 1.0})
    assert plan_recipes(stores(lengths, seed=1), same) == plan
    other = config.model_copy(update={"seed": config.seed + 1})
    assert plan_recipes(stores(lengths), other) != plan


def test_secondaries_are_uniform_over_all_other_patches() -> None:
    config = AugmentConfig(generative=0, interpolated=4000)
    plan = plan_recipes(stores([3, 0, 4]), config)
    of_first = [recipe.secondary for recipe in plan if recipe.primary == PatchRef("s0", 1)]
    counts = {ref: of_first.count(ref) for ref in set(of_first)}
    assert set(counts) == {PatchRef("s0", r) for r in (0, 2)} | {
        PatchRef("s2", r) for r in range(4)
    }
    expected = 4000 / 6
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert chi_square < 25  # 5 degrees of freedom: above 25 once in 7,000 plans


def test_plan_needs_patches() -> None:
    with pytest.raises(NoInputError):
        plan_recipes(stores([0]), AugmentConfig())
    with pytest.raises(NoInputError, match="two patches"):
        plan_recipes(stores([1]), AugmentConfig())
    assert len(plan_recipes(stores([1]), AugmentConfig(interpolated=0))) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"generative": 0, "interpolated": 0},
        {"alphas": (0.5, 1.0)},
        {"alphas": ()},
        {"max_sources": 0},
        {"format": "jpeg"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig(**wrong)


# --- the condition ---------------------------------------------------------------------------


def test_conditions_lie_on_the_arc_between_their_sources() -> None:
    conditions = Conditions(stores([4, 5]))
    one, two = PatchRef("s0", 3), PatchRef("s1", 2)
    unit = torch.nn.functional.normalize(conditions.vectors, dim=1)
    first, second = unit[3], unit[6]
    alphas = (1.0, 0.8, 0.5, 0.0)
    made = conditions.of([Recipe(one, two, alpha, 0) for alpha in alphas])
    torch.testing.assert_close(made.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(made[0], first)
    torch.testing.assert_close(made[3], second)
    whole = torch.acos(first @ second)
    for alpha, point in zip(alphas, made, strict=True):  # alpha is the primary's share of the arc
        torch.testing.assert_close(
            torch.acos((point @ first).clamp(-1, 1)), (1 - alpha) * whole, atol=1e-3, rtol=0
        )


def test_opposite_and_zero_embeddings_give_no_nan() -> None:
    vectors = np.zeros((3, DIM), np.float32)
    vectors[0, 0], vectors[1, 0] = 1, -1
    conditions = Conditions([Features("s0", vectors)])  # type: ignore[list-item]
    pairs = [(0, 1), (1, 0), (0, 2), (2, 1)]
    made = conditions.of([Recipe(PatchRef("s0", a), PatchRef("s0", b), 0.4, 0) for a, b in pairs])
    assert torch.isfinite(made).all()


# --- the stores ------------------------------------------------------------------------------


class Parts:
    """Untrained models that fit each other, and features of two folders of patches."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.sources = []
        for name, count in (("a", 5), ("b", 3)):
            (folder / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 255, (20, 20, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{name}{i}.png")
            self.sources.append(ImageFolder(folder / name))
        torch.manual_seed(0)
        vit = {"patch_size": 8, "embed_dim": DIM, "depth": 1, "num_heads": 2}
        self.encoder = Encoder(EncoderConfig(image_size=16, kwargs=vit, drop_path=0)).eval()
        paths = extract_features(self.encoder, self.sources, folder / "features")
        self.features = [FeatureStore.open(path) for path in paths]
        small = {"block_out_channels": (8, 8), "norm_groups": 4}
        self.autoencoder = Autoencoder(AutoencoderConfig(image_size=16, **small)).eval()
        self.ldm = EmbeddingConditionedLDM(
            LDMConfig(
                embedding_dim=DIM,
                context_dim=8,
                layers_per_block=1,
                attention=(False, True),
                latent_size=8,
                encoder_id=self.encoder.id,
                **small,
            )
        ).eval()

    def augment(self, out: Path, config: AugmentConfig, **more: Any) -> list[Path]:
        more.setdefault("encoder", self.encoder)
        return augment(
            self.ldm, self.autoencoder, more.pop("encoder"), more.pop("features", self.features),
            out, config, device="cpu", **more,
        )  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return Parts(tmp_path_factory.mktemp("parts"))


CONFIG = AugmentConfig(steps=2, batch_size=3)


@pytest.fixture(scope="module")
def drawn(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("drawn")
    return parts.augment(out, CONFIG, sources=parts.sources)


def test_stores_follow_the_plan(parts: Parts, drawn: list[Path]) -> None:
    plan = plan_recipes(parts.features, CONFIG)
    assert [path.name for path in drawn] == ["a.h5", "b.h5"]
    found = [SelfAugmentationStore.open(path) for path in drawn]
    assert [recipe for store in found for recipe in store.recipes()] == plan
    for store, source in zip(found, parts.sources, strict=True):
        assert {recipe.primary.store for recipe in store.recipes()} == {source.id}
        assert store.images().shape == (2 * len(source), 16, 16, 3)
        assert len(store.generative(PatchRef(source.id, 0))) == 1
        assert len(store.interpolated(PatchRef(source.id, 0))) == 1


def test_an_image_can_be_made_again_from_its_recipe(parts: Parts, drawn: list[Path]) -> None:
    store = SelfAugmentationStore.open(drawn[1])
    conditions = Conditions(parts.features)
    for row in (0, 3):
        recipe = store.recipes([row])[0]
        latents = parts.ldm.sample(
            conditions.of([recipe]), steps=2, guidance=CONFIG.guidance, seeds=[recipe.seed]
        )
        with torch.no_grad():
            image = parts.autoencoder.decode(latents)[0]
        pixels = (image * 255).round().permute(1, 2, 0).numpy()
        assert np.abs(pixels - store.images([row])[0]).max() <= 1


def test_cosine_is_of_the_stored_image_and_its_condition(parts: Parts, drawn: list[Path]) -> None:
    store = SelfAugmentationStore.open(drawn[0])
    own = parts.encoder.encode(store.images())
    asked = Conditions(parts.features).of(store.recipes()).numpy()
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    np.testing.assert_allclose(store.cosine(), (own * asked).sum(1), atol=1e-5)
    metrics = json.loads((drawn[0].parent / "metrics.json").read_text())
    both = np.concatenate([SelfAugmentationStore.open(path).cosine() for path in drawn])
    assert metrics["images"] == len(both) == 16
    assert metrics["generative"]["mean"] == pytest.approx(both[0::2].mean(), abs=1e-5)
    assert metrics["interpolated"]["q50"] == pytest.approx(np.median(both[1::2]), abs=1e-5)
    unit = torch.nn.functional.normalize(Conditions(parts.features).vectors, dim=1)
    pairs = (unit @ unit.T)[~torch.eye(8, dtype=torch.bool)]
    assert metrics["random_pair"]["mean"] == pytest.approx(float(pairs.mean()), abs=0.05)


def test_provenance_names_what_the_images_came_from(parts: Parts, drawn: list[Path]) -> None:
    store = SelfAugmentationStore.open(drawn[0])
    assert store.attrs["encoder"] == parts.encoder.id == store.provenance.inputs["encoder"]
    assert store.attrs["ldm"] == weights_id(parts.ldm) == store.provenance.inputs["ldm"]
    # Any patch may be the second half of a blend, so all features count.
    assert store.provenance.inputs["features"] == digest([f.id for f in parts.features])
    assert store.provenance.inputs["of"] == parts.features[0].id
    done = json.loads((drawn[0].parent / "done.json").read_text())
    assert done["stores"] == [path.name for path in drawn]
    assert store.provenance.config["guidance"] == store.attrs["guidance"] == 2.0
    with Image.open(drawn[0].parent / "sheet.png") as sheet:
        assert sheet.width == 6 * (128 + 4)


def test_finished_stores_are_kept_and_a_missing_one_is_made_again(
    parts: Parts, tmp_path: Path
) -> None:
    first = parts.augment(tmp_path, CONFIG)
    bytes_before = [path.read_bytes() for path in first]
    first[1].unlink()
    times = first[0].stat().st_mtime_ns
    again = parts.augment(tmp_path, CONFIG)
    assert [path.read_bytes() for path in again] == bytes_before
    assert first[0].stat().st_mtime_ns == times
    with pytest.raises(StoreError, match="another augmentation store"):
        parts.augment(tmp_path, CONFIG.model_copy(update={"seed": 1}))
    parts.augment(tmp_path, CONFIG.model_copy(update={"seed": 1}), overwrite=True)
    assert [path.read_bytes() for path in again] != bytes_before


def test_a_large_source_is_drawn_in_parts_that_a_stop_leaves_whole(
    parts: Parts, drawn: list[Path], tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"shard": 3})

    class Interrupt(Silent):
        def task(self, title: str, total: int, done: int = 0) -> Any:
            return _Interrupting(7)

    with pytest.raises(KeyboardInterrupt):
        parts.augment(tmp_path, config, progress=Interrupt())
    assert [path.name for path in find_stores(tmp_path)] == ["a-00000.h5", "a-00001.h5"]
    paths = parts.augment(tmp_path, config)
    found = [SelfAugmentationStore.open(path) for path in paths]
    assert max(map(len, found)) == 3
    assert [r for s in found for r in s.recipes()] == plan_recipes(parts.features, CONFIG)
    whole = np.concatenate([SelfAugmentationStore.open(path).images() for path in drawn])
    difference = np.abs(np.concatenate([s.images() for s in found]).astype(int) - whole)
    assert difference.max() <= 1
    for store in found:  # no list of all sources in each
        named = {ref.store for r in store.recipes() for ref in (r.primary, r.secondary)}
        assert set(store.sources) == named


def test_batch_size_changes_no_more_than_rounding(parts: Parts, tmp_path: Path) -> None:
    images = []
    for size in (1, 5, 64):
        config = CONFIG.model_copy(update={"batch_size": size})
        paths = parts.augment(tmp_path / str(size), config)
        images.append(np.concatenate([SelfAugmentationStore.open(p).images() for p in paths]))
    for other in images[1:]:
        difference = np.abs(images[0].astype(int) - other)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-2


def test_an_interrupt_leaves_whole_stores_only(parts: Parts, tmp_path: Path) -> None:
    class Interrupt(Silent):
        def task(self, title: str, total: int, done: int = 0) -> Any:
            return _Interrupting(12)

    with pytest.raises(KeyboardInterrupt):
        parts.augment(tmp_path, CONFIG, progress=Interrupt())
    assert [path.name for path in find_stores(tmp_path)] == ["a.h5"]
    assert not (tmp_path / "done.json").exists()
    parts.augment(tmp_path, CONFIG)
    assert len(find_stores(tmp_path)) == 2
    assert json.loads((tmp_path / "done.json").read_text())["images"] == 16


class _Interrupting:
    def __init__(self, after: int) -> None:
        self.left = after

    def __enter__(self) -> _Interrupting:
        return self

    def __exit__(self, *_: object) -> None: ...

    def advance(self, count: int = 1, note: str = "") -> None:
        self.left -= count
        if self.left < 0:
            raise KeyboardInterrupt


def test_models_that_do_not_belong_together_are_refused(parts: Parts, tmp_path: Path) -> None:
    torch.manual_seed(9)
    stranger = Encoder(parts.encoder.config)
    with pytest.raises(RunError, match="another encoder"):
        parts.augment(tmp_path, CONFIG, encoder=stranger)
    kept, ldm = parts.autoencoder, parts.ldm
    told = ldm.config.model_copy(update={"autoencoder_id": weights_id(kept)})
    parts.ldm = EmbeddingConditionedLDM(told)
    parts.autoencoder = Autoencoder(kept.config)  # the same shape, other weights
    try:
        with pytest.raises(RunError, match="PG-T04 latents are of another autoencoder"):
            parts.augment(tmp_path, CONFIG)
    finally:
        parts.autoencoder, parts.ldm = kept, ldm
    parts.autoencoder = Autoencoder(kept.config.model_copy(update={"image_size": 32}))
    try:
        with pytest.raises(ConfigError, match="do not fit"):
            parts.augment(tmp_path, CONFIG)
    finally:
        parts.autoencoder = kept


def test_without_an_encoder_nothing_is_measured(parts: Parts, tmp_path: Path) -> None:
    paths = parts.augment(tmp_path, CONFIG.model_copy(update={"max_sources": 2}), encoder=None)
    found = [SelfAugmentationStore.open(path) for path in paths]
    assert sum(map(len, found)) == 4
    assert all(np.isnan(store.cosine()).all() for store in found)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["generative"] is None
    assert metrics["random_pair"] is not None
