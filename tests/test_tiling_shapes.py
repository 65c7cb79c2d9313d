"""Masks in a few bytes a pixel are, to the pixel, those of scipy.ndimage and scikit-image."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_tiling import tissue_image, write_svs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage
from skimage import filters

from pathgen.tiling.overview import Overview
from pathgen.tiling.segment import (
    DENSE,
    Light,
    _otsu_of,
    _threshold,
    bands,
    counted,
    glass,
    segment,
)
from pathgen.tiling.shapes import Runs, closed, dilated, filled, large_pieces
from pathgen.tiling.tissue import TissueConfig, TissueMask, background, mask_of

threshold_otsu: Any = filters.threshold_otsu
METHODS = ["otsu", "saturation", "density", "entropy"]
masks = arrays(np.bool_, st.tuples(st.integers(1, 24), st.integers(1, 24)))
FULL, CROSS = np.ones((3, 3)), None


def disk(reach: int) -> NDArray[np.bool_]:
    down, across = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(np.hypot(down, across) <= reach + 0.5)


@given(masks, st.integers(0, 30))
def test_dilation_is_scipys(mask: NDArray[np.bool_], reach: int) -> None:
    expected = ndimage.binary_dilation(mask, disk(reach))
    np.testing.assert_array_equal(dilated(mask, reach), expected)


@given(masks, st.integers(0, 9))
def test_closing_is_scipys_on_an_endless_plane(mask: NDArray[np.bool_], reach: int) -> None:
    around = 2 * reach + 1
    expected = ndimage.binary_closing(np.pad(mask, around), disk(reach))
    np.testing.assert_array_equal(closed(mask, reach), expected[around:-around, around:-around])


@given(masks, st.booleans())
def test_pieces_are_scipys(mask: NDArray[np.bool_], corners: bool) -> None:
    labels, count = ndimage.label(mask, FULL if corners else CROSS)
    runs = Runs.of(mask, corners)
    areas = np.bincount(labels.ravel())
    where = runs.starts // (mask.shape[1] + 2), runs.starts % (mask.shape[1] + 2) - 1
    np.testing.assert_array_equal(runs.areas(), areas[labels[where]])
    assert len(set(runs.piece.tolist())) == count
    for piece in set(runs.piece.tolist()):
        drawn = runs.drawn(runs.piece == piece)
        np.testing.assert_array_equal(drawn, labels == labels[where][piece])


@given(masks, st.integers(0, 30))
def test_small_pieces_go_and_small_holes_are_filled(mask: NDArray[np.bool_], least: int) -> None:
    labels, _ = ndimage.label(mask, FULL)
    areas = np.bincount(labels.ravel())
    np.testing.assert_array_equal(
        large_pieces(mask, 1000.0, least), mask & (areas >= least)[labels]
    )
    holes, _ = ndimage.label(np.pad(~mask, 1, constant_values=True))
    small = np.bincount(holes.ravel()) <= least
    small[holes[0, 0]] = False
    expected = mask | (small[holes] & (holes > 0))[1:-1, 1:-1] if least else mask
    np.testing.assert_array_equal(filled(mask, 1000.0, least), expected)


def test_long_winding_pieces_are_one() -> None:
    """A comb and a spiral: many runs that meet only far away."""
    comb = np.zeros((400, 401), bool)
    comb[:, ::2] = True
    comb[-1] = True
    spiral = np.zeros((201, 201), bool)
    x = y = 100
    for leg, (down, across) in enumerate([(0, 1), (1, 0), (0, -1), (-1, 0)] * 24):
        for _ in range(2 * (leg // 2 + 1)):
            spiral[y, x] = True
            y, x = y + down, x + across
    for mask in (comb, spiral):
        assert len(set(Runs.of(mask, corners=False).piece.tolist())) == 1
        assert Runs.of(mask).areas()[0] == mask.sum()


# Otsu, glass, and light


@given(arrays(np.float32, st.integers(2, 300), elements=st.floats(0, 0.5, width=32)))
def test_the_threshold_is_scikit_images(values: NDArray[np.float32]) -> None:
    if np.ptp(values) <= 256 * np.spacing(values.max()):
        return  # scikit-image's histogram refuses these
    counts, edges = np.histogram(values, 256)
    assert _otsu_of(counts, (edges[:-1] + edges[1:]) / 2) == pytest.approx(
        threshold_otsu(values, nbins=256), rel=1e-6
    )


@pytest.mark.parametrize("steps", [0, 1, 100, 300])
def test_values_that_differ_by_rounding_have_a_threshold(steps: int) -> None:
    values = np.full((4, 4), 0.3, np.float32)
    values[0, 0] += steps * np.spacing(values[0, 0])
    found = _threshold(values, np.zeros((4, 4), bool), (0.01, 0.2))
    assert found == pytest.approx(0.2)


@given(arrays(np.uint8, st.integers(2, 300)))
def test_the_threshold_of_bytes_is_scikit_images(values: NDArray[np.uint8]) -> None:
    counts = counted(values)
    np.testing.assert_array_equal(counts, np.bincount(values, minlength=256))
    there = np.arange(int(values.min()), int(values.max()) + 1)
    if len(there) > 1:
        assert _otsu_of(counts[there], there) == threshold_otsu(values)


@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40), st.just(3))))
def test_glass_is_the_median_of_the_brightest_twentieth(pixels: NDArray[np.uint8]) -> None:
    dark = pixels.min(axis=2).astype(np.float64)
    expected = np.median(pixels[dark >= np.percentile(dark, 95)], axis=0)
    np.testing.assert_array_equal(glass(pixels), np.clip(expected, 200, 255).astype(np.float32))


def reference(pixels: NDArray[np.uint8], mpp: float) -> tuple[NDArray[np.bool_], ...]:
    """The default method, on whole arrays in single precision: tissue and pen."""
    light = pixels.astype(np.float32)
    through = np.clip(ndimage.uniform_filter(light, (3, 3, 0)) / glass(pixels), 1 / 255, 1)
    densities, black = -np.log10(through), pixels.max(axis=2) < 20
    density, chroma = densities.max(axis=2), 1 - through.min(axis=2) / through.max(axis=2)

    def otsu(values: NDArray[np.float32], limits: tuple[float, float]) -> float:
        return float(np.clip(threshold_otsu(np.clip(values[~black], 0, 0.5), 256), *limits))

    config = TissueConfig()
    found = density > otsu(density, config.density)
    found &= (chroma > otsu(chroma, config.chroma)) | (density > DENSE)
    red, green, _ = np.moveaxis(densities, 2, 0)
    low = densities.min(axis=2)
    pen = (low > 0.35) & (low > 0.85 * density) | (red > 0.25) & (red > 1.25 * green)
    labels, _ = ndimage.label(pen, FULL)
    big = np.bincount(labels.ravel()) * (mpp / 1000) ** 2 >= 0.05
    big[0] = False
    return found & ~black, ndimage.binary_dilation(big[labels], disk(round(48 / mpp)))


def scene(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Tissue with a stroke of pen and scanner fill."""
    image = tissue_image(width, height, seed=seed)
    image[height // 8 : height // 6, : width // 2] = (30, 60, 190)
    image[: height // 20] = 0
    return np.ascontiguousarray(image)


@pytest.mark.parametrize("seed", range(3))
def test_bands_change_no_pixel(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    image = scene(500, 700, seed)
    tissue, pen = reference(image, 8.0)
    assert tissue.any()
    assert pen.any()
    for band in (1, 700 * 7, 2**18):
        monkeypatch.setattr("pathgen.tiling.segment.BAND", band)
        for found, expected in zip(segment(image, 8.0, TissueConfig()), (tissue, pen), strict=True):
            np.testing.assert_array_equal(found, expected)


@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))))
def test_light_is_averaged_as_scipy_does_it(pixels: NDArray[np.uint8]) -> None:
    light = Light.of(pixels, 8.0)
    smooth = ndimage.uniform_filter(pixels.astype(np.float32), (3, 3, 0))
    expected = np.clip(smooth / light.glass, 1 / 255, 1)
    for row in range(len(pixels)):
        for color in range(3):
            found = light.through(slice(row, row + 1), color)
            np.testing.assert_array_equal(found[0], expected[row, :, color])


def test_what_is_left_out_has_no_say_in_a_threshold() -> None:
    values = np.linspace(0, 0.5, 200, dtype=np.float32).reshape(10, 20)
    out = np.zeros((10, 20), bool)
    out[5:] = True
    expected = threshold_otsu(values[:5], nbins=256)
    assert _threshold(values, out, (0, 1)) == pytest.approx(expected)
    assert _threshold(values, np.ones((10, 20), bool), (0.1, 0.7)) == 0.7


# Memory and start


@pytest.mark.parametrize("method", METHODS)
def test_a_mask_takes_few_bytes_a_pixel(method: str) -> None:
    """With the overview's own 3 at most 16, whatever the method; it was 52 and more."""
    image = np.tile(scene(512, 512), (4, 4, 1))
    overview = Overview(image, (0, 0), (16.0, 16.0))
    config = TissueConfig(method=method, fill_holes_mm2=0.1)  # type: ignore[arg-type]
    mask_of(Overview(image[:64, :64], (0, 0), (16.0, 16.0)), (0.5, 0.5), config)  # imports
    tracemalloc.start()
    try:
        mask = mask_of(overview, (0.5, 0.5), config)
        mask.fraction(np.zeros((1, 2)), 64)
        background(image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 3 + peak / mask.pixels.size < 16


def test_sums_are_exact_in_as_many_bytes_as_needed() -> None:
    pixels = np.random.default_rng(0).random((301, 211)) < 0.5
    mask = TissueMask(pixels, 8.0)
    assert mask._sums.dtype == np.uint32
    np.testing.assert_array_equal(mask._sums[1:, 1:], pixels.cumsum(0).cumsum(1))
    assert not mask._sums[0].any()
    assert not mask._sums[:, 0].any()
    share = mask.fraction(np.array([[10, 20], [100, 7]]), (50, 31))
    expected = [pixels[20:51, 10:60].mean(), pixels[7:38, 100:150].mean()]
    np.testing.assert_allclose(share, expected, rtol=1e-6)


def test_bands_are_all_rows_once() -> None:
    for shape in ((1, 1), (5, 2**20), (3000, 1000)):
        rows = [row for band in bands(shape) for row in range(band.start, band.stop)]
        assert rows == list(range(shape[0]))


def test_tiling_starts_without_scipy(tmp_path: Path) -> None:
    """Its import takes longer than the mask of a small slide."""
    path = write_svs(tmp_path / "a.svs", tissue_image())
    script = (
        "import sys; from pathgen.tiling import find_tissue, open_slide\n"
        f"with open_slide({str(path)!r}) as slide: assert find_tissue(slide).pixels.any()\n"
        "print([m for m in sys.modules if m in ('scipy.ndimage', 'skimage')])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr
