"""What is measured of synthetic images: copies, closeness to the source, curves over alpha."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_augment import CONFIG, Ideal, Parts, make_parts, stores
from PIL import Image
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

from pathgen.augment import CheckConfig, copies, curves
from pathgen.augment.copies import nearest
from pathgen.augment.curves import ALPHAS, draw_curves, interpolation_curves
from pathgen.augment.judge import closer_to_source, compare_kinds
from pathgen.augment.looks import Look, shrink
from pathgen.evaluate.generation import frechet_distance
from pathgen.stores import PatchRef, Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


def checking(**settings: int) -> Any:
    return CONFIG.model_copy(update={"check": CheckConfig(**settings)})


# --- copies ----------------------------------------------------------------------------------


def test_the_nearest_is_found_in_pieces_and_without_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    reference = rng.random((60, 7)).astype(np.float32) + 100  # far off: squares are large
    queries = np.concatenate([reference[[3, 40]], rng.random((20, 7)).astype(np.float32) + 100])
    oracle = NearestNeighbors(n_neighbors=2).fit(reference.astype(np.float64))
    for held in (copies.DISTANCES, 200):
        monkeypatch.setattr(copies, "DISTANCES", held)
        found = nearest(queries, reference, torch.device("cpu"))
        distance, row = oracle.kneighbors(queries.astype(np.float64))
        np.testing.assert_allclose(found.distance, distance[:, 0], atol=2e-3)
        assert found.distance[:2].tolist() == [0, 0]
        assert found.row[:2].tolist() == [3, 40]
        own = np.array([5, 6, 59])
        found = nearest(reference[own], reference, torch.device("cpu"), itself=own)
        distance, row = oracle.kneighbors(reference[own].astype(np.float64))
        np.testing.assert_array_equal(found.row, row[:, 1])
        np.testing.assert_allclose(found.distance, distance[:, 1], rtol=1e-6)


def test_shrinking_is_a_mean_over_areas() -> None:
    images = torch.rand(2, 3, 64, 64)
    by_hand = images.reshape(2, 3, 32, 2, 32, 2).mean((3, 5)).flatten(1).numpy()
    np.testing.assert_allclose(shrink(images), by_hand, atol=1e-6)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.getbasetemp())


class Copies:
    """Images through all stores, of which only pixels are asked for the sheet."""

    def __init__(self, pixels: Any) -> None:
        self.pixels = pixels

    def images(self, items: list[int]) -> Any:
        return self.pixels[items]


def test_copies_are_found_and_told_from_likeness_to_the_source(
    parts: Parts, tmp_path: Path
) -> None:
    """Of four images two are copies of their source, one is of another patch, one is noise."""
    rng = np.random.default_rng(1)
    real = np.concatenate([
        np.stack([np.asarray(Image.fromarray(p).resize((16, 16))) for p in source.images()])
        for source in parts.sources
    ])  # fmt: skip
    from pathgen.data.patches import PatchDataset
    from pathgen.train.autoencoder import load_images

    patches = PatchDataset(parts.sources)
    shown = load_images(patches, range(8), 16)
    noise = torch.from_numpy(rng.random((1, 3, 16, 16)).astype(np.float32))
    images = torch.cat([shown[[1, 2, 6]], noise])
    recipes = [Recipe.generative(patches.locate(item), item) for item in (1, 2, 3, 4)]
    painter = Ideal(parts.features, checking(images=8, real=8))
    painter.autoencoder = parts.autoencoder  # type: ignore[attr-defined]
    vectors = painter.conditions.vectors.numpy()
    look = Look(
        items=np.arange(4), images=Copies(real[:4]), recipes=recipes,  # type: ignore[arg-type]
        embeddings=vectors[[1, 2, 6, 4]], small=shrink(images),
    )  # fmt: skip
    path = tmp_path / "memorization.png"
    found = copies.find_copies(path, {"generative": look}, painter, parts.sources)  # type: ignore[arg-type]
    assert (found["images"], found["real"], found["reference"]) == ({"generative": 4}, 8, 8)
    pixels = found["pixels"]["generative"]
    assert pixels["suspects"] == 0.75
    assert (pixels["suspects_of_source"], pixels["suspects_of_others"]) == (0.5, 0.25)
    assert pixels["nearest"]["q05"] < 0.1 < found["pixels"]["threshold"]
    small = shrink(shown) / 3072**0.5
    distances = np.linalg.norm(small[:, None] - small[None], axis=2) + 9 * np.eye(8)
    assert found["pixels"]["threshold"] == pytest.approx(
        np.quantile(distances.min(1), 0.01), rel=1e-4
    )
    assert found["embedding"]["generative"]["nearest_is_source"] == 0.75
    with Image.open(path) as sheet:
        assert sheet.width == 8 * (128 + 4)  # four pairs


def test_all_sources_are_among_the_real_patches_and_others_fill_up() -> None:
    painter = Ideal(stores([30, 30]), checking(images=4, real=20))
    recipes = [Recipe(PatchRef("s0", 3), PatchRef("s1", 5), 0.4, 0)]
    look = Look(np.arange(1), None, recipes, None, None)  # type: ignore[arg-type]
    rows = copies._real_rows({"interpolated": look}, painter, np.random.default_rng(0))  # type: ignore[arg-type]
    assert len(rows) == len(set(rows.tolist())) == 20
    assert {3, 35} <= set(rows.tolist())
    assert (np.diff(rows) > 0).all()


# --- closeness -------------------------------------------------------------------------------


def looks(painter: Ideal, count: int, alpha: float, noise: float) -> dict[str, Look]:
    rng = np.random.default_rng(2)
    pairs = [rng.choice(60, 2, replace=False).tolist() for _ in range(count)]
    patch = painter.conditions.patch
    made = {
        "generative": [Recipe.generative(patch(a), i) for i, (a, _) in enumerate(pairs)],
        "interpolated": [Recipe(patch(a), patch(b), alpha, i) for i, (a, b) in enumerate(pairs)],
    }
    result = {}
    for kind, recipes in made.items():
        vectors = painter.conditions.of(recipes).numpy()
        vectors = vectors + noise * rng.normal(size=vectors.shape)
        result[kind] = Look(
            np.arange(count), None, recipes, vectors.astype(np.float32), None  # type: ignore[arg-type]
        )  # fmt: skip
    return result


def test_images_at_their_condition_are_closer_to_it_than_any_other() -> None:
    painter = Ideal(stores([30, 30], dim=64), checking(images=40))
    found = closer_to_source(looks(painter, 40, 0.9, 0.0), painter)  # type: ignore[arg-type]
    assert found is not None
    assert found["generative"] == {"images": 40, "source": 1.0}
    assert found["interpolated"]["primary"] == 1.0
    assert found["interpolated"]["secondary"] < 0.95  # a tenth of it
    lost = closer_to_source(looks(painter, 40, 0.5, 1e4), painter)  # type: ignore[arg-type]
    assert lost is not None
    assert lost["generative"]["source"] == pytest.approx(0.5, abs=0.2)
    assert lost["interpolated"]["primary"] == pytest.approx(0.5, abs=0.2)
    assert lost["interpolated"]["nearer"] > lost["interpolated"]["primary"]


def test_kinds_are_compared_at_equal_sizes_with_a_floor_of_real_patches() -> None:
    painter = Ideal(stores([30, 30], dim=4), checking(images=20))
    seen = looks(painter, 25, 0.5, 0.0)
    found = compare_kinds(seen, painter)  # type: ignore[arg-type]
    assert found is not None
    assert found["images"] == 20
    assert found["warning"] is None
    for name in ("real", "generative", "interpolated"):
        assert (found[name]["n_real"], found[name]["n_synthetic"]) == (20, 20)
    # Unit vectors beside longer ones, hence farther off than real beside real.
    assert found["generative"]["fid"] > found["real"]["fid"]
    assert found["generative"]["kid"] > found["real"]["kid"]
    few = Ideal(stores([5, 5]), checking(images=20))
    assert compare_kinds(looks_of(few), few) is None  # type: ignore[arg-type]
    high = Ideal(stores([30, 30], dim=64), checking(images=20))
    warned = compare_kinds(looks(high, 25, 0.5, 0.0), high)  # type: ignore[arg-type]
    assert warned is not None
    assert "20 images in 64 dimensions" in warned["warning"]
    vectors = painter.conditions.vectors.numpy()
    assert frechet_distance(vectors, vectors) < found["real"]["fid"]


def looks_of(painter: Ideal) -> dict[str, Look]:
    recipes = [Recipe.generative(PatchRef("s0", 0), 1)] * 9
    vectors = painter.conditions.vectors.numpy()[[0] * 9]
    return {"generative": Look(np.arange(9), None, recipes, vectors, None)}  # type: ignore[arg-type]


# --- curves over alpha -----------------------------------------------------------------------


def test_images_that_follow_their_condition_move_from_one_source_to_the_other() -> None:
    painter = Ideal(stores([30, 30]), checking(pairs=9))
    found = interpolation_curves(painter)  # type: ignore[arg-type]
    assert found is not None
    assert (found["pairs"], found["alphas"]) == (9, list(ALPHAS))
    assert found["monotone_share"] == found["steps_up"] == found["spearman"] == 1
    assert found["mean_is_monotone"] is True
    assert found["primary"]["mean"][-1] == pytest.approx(1, abs=1e-6)  # alpha 1 is the primary
    assert found["secondary"]["mean"][0] == pytest.approx(1, abs=1e-6)
    assert found["primary"]["q10"][2] <= found["primary"]["mean"][2] <= found["primary"]["q90"][2]


def test_images_that_ignore_alpha_or_turn_it_round_are_told() -> None:
    class Lost(Ideal):
        def draw(self, recipes: list[Recipe]) -> Any:
            chances = [np.random.default_rng([r.seed, int(10 * r.alpha)]) for r in recipes]
            return np.stack([chance.normal(size=12) for chance in chances]).astype(np.float32)

    found = interpolation_curves(Lost(stores([30, 30]), checking(pairs=200)))  # type: ignore[arg-type]
    assert found is not None
    assert found["monotone_share"] < 0.05  # 1 in 720 orders of six
    assert found["steps_up"] == pytest.approx(0.5, abs=0.07)
    assert found["spearman"] == pytest.approx(0, abs=0.15)

    class Turned(Ideal):
        def draw(self, recipes: list[Recipe]) -> Any:
            return super().draw([r._replace(alpha=1 - r.alpha) for r in recipes])

    turned = interpolation_curves(Turned(stores([30, 30]), checking(pairs=9)))  # type: ignore[arg-type]
    assert turned is not None
    assert turned["monotone_share"] == turned["steps_up"] == 0
    assert turned["spearman"] == -1
    assert interpolation_curves(Ideal(stores([30]), checking(pairs=0))) is None  # type: ignore[arg-type]


def test_rank_correlation_is_spearmans() -> None:
    values = np.random.default_rng(0).normal(size=(20, 6))
    expected = [spearmanr(row, range(6)).statistic for row in values]
    np.testing.assert_allclose(curves._rank_correlation(values), expected, atol=1e-12)


# --- all of it -------------------------------------------------------------------------------


def test_a_run_writes_all_numbers_and_pictures_and_again_the_same(
    parts: Parts, tmp_path: Path
) -> None:
    config = checking(images=4, pairs=2).model_copy(update={"batch_size": 16})
    metrics = []
    for name in ("one", "two"):
        parts.augment(tmp_path / name, config, sources=parts.sources)
        metrics.append((tmp_path / name / "metrics.json").read_bytes())
    assert metrics[0] == metrics[1]
    values = json.loads(metrics[0])
    assert values["copies"]["images"] == {"generative": 4, "interpolated": 4}
    assert values["copies"]["real"] == 8
    assert set(values["closer_to_source"]) == {"generative", "interpolated"}
    assert values["interpolation"]["pairs"] == 2
    assert values["counts"]["attempts"] == 16
    for picture in ("sheet.png", "memorization.png", "interpolation.png"):
        with Image.open(tmp_path / "one" / picture) as content:
            content.verify()
        assert (tmp_path / "one" / picture).read_bytes() == (
            tmp_path / "two" / picture
        ).read_bytes()
    draw_curves(tmp_path / "again.png", values["interpolation"])
    assert (tmp_path / "again.png").read_bytes() == (
        tmp_path / "one" / "interpolation.png"
    ).read_bytes()
