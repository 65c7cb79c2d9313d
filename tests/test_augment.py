"""The stores of synthetic patches: that they follow the plan, and who may make them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_augment import CONFIG, Parts, make_parts
from PIL import Image

from pathgen.augment import Conditions, plan_recipes
from pathgen.errors import ConfigError, RunError, StoreError
from pathgen.extract import extract_features
from pathgen.models.autoencoder import Autoencoder
from pathgen.models.encoder import Encoder
from pathgen.models.ldm import EmbeddingConditionedLDM
from pathgen.models.weights import weights_id
from pathgen.progress import Silent
from pathgen.provenance import digest
from pathgen.stores import FeatureStore, PatchRef, SelfAugmentationStore, find_stores

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def drawn(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return parts.augment(tmp_path_factory.mktemp("drawn"), sources=parts.sources)


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
        assert (store.attempts() == 1).all()
        assert store.encoded([0])[0].startswith(b"\x89PNG")


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
    assert store.attrs["precision"] == "fp32"  # what auto is on a CPU
    with Image.open(drawn[0].parent / "sheet.png") as sheet:
        assert sheet.width == 6 * (128 + 4)


def test_finished_stores_are_kept_and_a_missing_one_is_made_again(
    parts: Parts, tmp_path: Path
) -> None:
    first = parts.augment(tmp_path)
    bytes_before = [path.read_bytes() for path in first]
    first[1].unlink()
    times = first[0].stat().st_mtime_ns
    again = parts.augment(tmp_path)
    assert [path.read_bytes() for path in again] == bytes_before
    assert first[0].stat().st_mtime_ns == times
    with pytest.raises(StoreError, match="another augmentation store"):
        parts.augment(tmp_path, CONFIG.model_copy(update={"seed": 1}))
    # What is measured afterwards changes no image.
    check = CONFIG.check.model_copy(update={"images": 1})
    parts.augment(tmp_path, CONFIG.model_copy(update={"check": check}))
    assert first[0].stat().st_mtime_ns == times
    assert json.loads((tmp_path / "done.json").read_text())["check"]["images"] == 1
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
    assert not (tmp_path / "done.json").exists()
    paths = parts.augment(tmp_path, config)
    found = [SelfAugmentationStore.open(path) for path in paths]
    assert max(map(len, found)) == 3
    assert [r for s in found for r in s.recipes()] == plan_recipes(parts.features, CONFIG)
    assert json.loads((tmp_path / "done.json").read_text())["images"] == 16
    whole = np.concatenate([SelfAugmentationStore.open(path).images() for path in drawn])
    difference = np.abs(np.concatenate([s.images() for s in found]).astype(int) - whole)
    assert difference.max() <= 1
    for store in found:  # no list of all sources in each
        named = {ref.store for r in store.recipes() for ref in (r.primary, r.secondary)}
        assert set(store.sources) == named


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


def test_batch_size_changes_no_more_than_rounding(
    parts: Parts, drawn: list[Path], tmp_path: Path
) -> None:
    images = [np.concatenate([SelfAugmentationStore.open(path).images() for path in drawn])]
    for size in (1, 64):
        config = CONFIG.model_copy(update={"batch_size": size})
        paths = parts.augment(tmp_path / str(size), config)
        images.append(np.concatenate([SelfAugmentationStore.open(p).images() for p in paths]))
    for other in images[1:]:
        difference = np.abs(images[0].astype(int) - other)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 1e-2


def test_bf16_is_near_fp32_and_said_in_the_store(parts: Parts, tmp_path: Path) -> None:
    images = {}
    for precision in ("fp32", "bf16"):
        config = CONFIG.model_copy(update={"precision": precision, "max_sources": 2})
        found = [
            SelfAugmentationStore.open(path) for path in parts.augment(tmp_path / precision, config)
        ]
        assert {store.attrs["precision"] for store in found} == {precision}
        images[precision] = np.concatenate([store.images().astype(int) for store in found])
    difference = np.abs(images["fp32"] - images["bf16"])
    assert 0 < difference.mean() < 4


def test_models_that_do_not_belong_together_are_refused(parts: Parts, tmp_path: Path) -> None:
    torch.manual_seed(9)
    stranger = Encoder(parts.encoder.config)
    with pytest.raises(RunError, match="another encoder"):
        parts.augment(tmp_path, encoder=stranger)
    kept, ldm = parts.autoencoder, parts.ldm
    told = ldm.config.model_copy(update={"autoencoder_id": weights_id(kept)})
    parts.ldm = EmbeddingConditionedLDM(told)
    parts.autoencoder = Autoencoder(kept.config)  # the same shape, other weights
    try:
        with pytest.raises(RunError, match="PG-T04 latents are of another autoencoder"):
            parts.augment(tmp_path)
    finally:
        parts.autoencoder, parts.ldm = kept, ldm
    parts.autoencoder = Autoencoder(kept.config.model_copy(update={"image_size": 32}))
    try:
        with pytest.raises(ConfigError, match="do not fit"):
            parts.augment(tmp_path)
    finally:
        parts.autoencoder = kept


def test_without_an_encoder_nothing_is_measured(parts: Parts, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"max_sources": 2})
    paths = parts.augment(tmp_path, config, encoder=None)
    found = [SelfAugmentationStore.open(path) for path in paths]
    assert sum(map(len, found)) == 4
    assert all(np.isnan(store.cosine()).all() for store in found)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["generative"] is None
    assert metrics["random_pair"] is not None
    assert metrics["sets"] is None


def test_synthetic_images_can_be_embedded_like_patches(
    parts: Parts, drawn: list[Path], tmp_path: Path
) -> None:
    opened = [SelfAugmentationStore.open(path) for path in drawn]
    paths = extract_features(parts.encoder, drawn[0].parent, tmp_path / "folder")
    assert [path.name for path in paths] == ["a.h5", "b.h5"]
    for path, store in zip(paths, opened, strict=True):
        features = FeatureStore.open(path)
        assert (features.name, features.source["id"]) == (store.name, store.id)
        np.testing.assert_allclose(
            features.features(), parts.encoder.encode(store.images()), atol=1e-5
        )
    one = extract_features(parts.encoder, drawn[1], tmp_path / "one")
    np.testing.assert_array_equal(
        FeatureStore.open(one[0]).features(), FeatureStore.open(paths[1]).features()
    )
