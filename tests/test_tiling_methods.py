"""Each way to find tissue finds what was drawn; presets suit their material."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_tiling import write_svs
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label

from pathgen.config import build
from pathgen.errors import ConfigError
from pathgen.stores import PatchStore
from pathgen.synthetic import SlideSpec, make_slide
from pathgen.tiling import TileConfig, TissueConfig, find_tissue, open_slide, tile
from pathgen.tiling.overview import Overview
from pathgen.tiling.presets import PRESETS, preset
from pathgen.tiling.tissue import mask_of

METHODS = ["otsu", "saturation", "density", "entropy"]


def mask(image: NDArray[np.uint8], **settings: Any) -> NDArray[np.bool_]:
    """The mask of an image at 8 um per pixel."""
    config = TissueConfig(**settings)
    return mask_of(Overview(image, (0, 0), (16.0, 16.0)), (0.5, 0.5), config).pixels


def scene(
    color: tuple[int, int, int], texture: float, seed: int = 0, glass: int = 243
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A blob of a color with a texture of that many gray levels on noisy glass, and where it is."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:160, :200]
    inside = np.hypot(x - 100, (y - 80) * 1.3) + 6 * np.sin(x / 9) < 62
    image = np.full((160, 200, 3), glass, float)
    image[inside] = color
    grain = gaussian_filter(rng.normal(size=inside.shape), 0.8)
    image[inside] += texture * (grain / grain.std())[inside, None]
    image += rng.normal(0, 0.7, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), inside


def overlap(found: NDArray[np.bool_], known: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float((found & known).sum() / (found | known).sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("color", [(226, 150, 190), (150, 90, 150)], ids=["eosin", "H&E"])
def test_stained_tissue_is_found_by_all(method: str, color: tuple[int, int, int]) -> None:
    image, inside = scene(color, 8)
    assert overlap(mask(image, method=method), inside) > 0.92


@pytest.mark.parametrize(
    ("color", "texture", "methods"),
    [
        ((205, 208, 216), 6, ["otsu", "density", "entropy"]),  # IHC, counterstain only
        ((228, 228, 229), 6, ["entropy"]),  # unstained: structure without color
        ((190, 190, 190), 5, ["density", "entropy"]),  # gray, as in silver stains
        ((150, 110, 70), 10, METHODS),  # DAB
    ],
    ids=["counterstain", "unstained", "gray", "DAB"],
)
def test_what_each_method_is_for(
    color: tuple[int, int, int], texture: float, methods: list[str]
) -> None:
    image, inside = scene(color, texture)
    for method in methods:
        assert overlap(mask(image, method=method), inside) > 0.9, method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("glass", [205, 243, 255])
@pytest.mark.parametrize("noise", [0.0, 1.0, 2.5])
def test_bare_glass_holds_nothing(method: str, glass: int, noise: float) -> None:
    rng = np.random.default_rng(0)
    image = np.full((200, 300, 3), glass) + rng.normal(0, noise, (200, 300, 3))
    shade = np.linspace(0.98, 1.02, 300)[None, :, None]  # uneven light
    found = mask(np.clip(image * shade, 0, 255).astype(np.uint8), method=method)
    assert not found.any()


@pytest.mark.parametrize("method", METHODS)
def test_fill_and_pen_are_no_tissue(method: str) -> None:
    image, inside = scene((226, 150, 190), 8)
    image[:20] = 0
    image[140:, :120] = (30, 60, 190)
    found = mask(image, method=method)
    assert not found[:20].any()
    assert not found[145:, :115].any()
    assert overlap(found[30:130], inside[30:130]) > 0.85


@pytest.mark.parametrize("method", METHODS)
def test_the_truth_of_a_synthetic_slide_is_found(
    method: str, synthetic: tuple[Path, NDArray[np.bool_]]
) -> None:
    path, known = synthetic
    with open_slide(path) as slide:
        found = find_tissue(slide, TissueConfig(method=method)).pixels  # type: ignore[arg-type]
        again = find_tissue(slide, TissueConfig(method=method)).pixels  # type: ignore[arg-type]
    assert overlap(found, known) > (0.8 if method == "saturation" else 0.85)
    assert (found & known).sum() / found.sum() > 0.95
    np.testing.assert_array_equal(found, again)


@pytest.fixture(scope="module")
def synthetic(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, NDArray[np.bool_]]:
    path = tmp_path_factory.mktemp("synthetic") / "x.svs"
    truth = make_slide(path, SlideSpec(width=2048, height=2048, mpp=1.0, seed=5))
    step = round(8 / truth.mpp)
    known = truth.tissue.reshape(256, step, 256, step).mean((1, 3)) > 0.5
    return path, known


def test_holes_are_kept_or_filled_by_their_area() -> None:
    image = np.full((120, 120, 3), 243, np.uint8)
    image[10:110, 10:110] = (226, 150, 190)
    image[30:40, 30:40] = 243  # 0.0064 mm2
    image[60:90, 60:90] = 243  # 0.0576 mm2
    image[50:56, 10:30] = 243  # a bay, open to the glass
    as_is, small, both = (mask(image, fill_holes_mm2=most) for most in (0, 0.02, 0.2))
    for found, inner, outer in ((as_is, False, False), (small, True, False), (both, True, True)):
        assert found[33:37, 33:37].all() == inner
        assert found[64:86, 64:86].any() == outer
        assert not found[:6].any()
        assert not found[52:54, 12:24].any()


# Needle cores


CORES_MPP = 2.0


@pytest.fixture(scope="module", params=[300, 600], ids=["0.3 mm", "0.6 mm"])
def cores(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, NDArray[np.bool_]]:
    """Three slanted needle cores, each broken in two, on a slide of 4 by 3 mm; where they are."""
    image = np.full((1500, 2048, 3), 243, np.float32)
    y, x = np.mgrid[:1500, :2048].astype(np.float32)
    rng = np.random.default_rng(1)
    for middle, slope in ((250, 0.05), (700, -0.08), (1200, 0.02)):
        core = np.abs(y - middle - slope * (x - 1024)) < request.param / CORES_MPP / 2
        core &= (x > 150) & (x < 1900) & (np.abs(x - 750 - middle / 4) > 30)
        image[core] = (222, 160, 195)
    known = image[..., 1] < 200
    nuclei = np.kron(rng.random((375, 512)) < 0.15, np.ones((4, 4), bool)) & known
    image[nuclei] = (110, 70, 150)
    image += rng.normal(0, 1.5, image.shape).astype(np.float32)
    path = tmp_path_factory.mktemp("cores") / "x.svs"
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return write_svs(path, pixels, mpp=CORES_MPP, compression=None), known


@pytest.mark.parametrize(("method", "mpp"), [*((m, 2.0) for m in METHODS), ("otsu", 4.0)])
def test_no_needle_core_vanishes(
    method: str, mpp: float, cores: tuple[Path, NDArray[np.bool_]], tmp_path: Path
) -> None:
    path, known = cores
    values = preset("biopsy")
    values["tissue"]["method"] = method
    config = build(TileConfig, {**values, "mpp": mpp, "patch_size": 128})
    with open_slide(path) as slide:
        found = find_tissue(slide, config.tissue).pixels
    truth = known.reshape(750, 2, 1024, 2).mean((1, 3)) > 0.5
    assert label(found)[1] == label(truth)[1] == 6
    assert overlap(found, truth) > 0.9
    store = PatchStore.open(tile(path, tmp_path, config, workers=0).stores[0])
    seen = np.zeros(known.shape, bool)
    side = round(store.patch_size_level0)
    for x, y in store.coords().tolist():
        seen[y : y + side, x : x + side] = True
    # What is missing are the corners of patches that hold less than a tenth.
    assert (seen & known).sum() / known.sum() > 0.97


def test_presets_are_valid_and_options_win() -> None:
    for name in PRESETS:
        build(TileConfig, preset(name))
    ours = preset("biopsy")
    ours["tissue"]["mpp"] = 99  # a copy
    assert preset("biopsy")["tissue"]["mpp"] == 4
    with pytest.raises(ConfigError, match=r"Did you mean 'biopsy'"):
        preset("biospy")
