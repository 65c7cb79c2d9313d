"""Patches lie where their coordinates say, at the scale that was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
from helpers_tiling import tissue_image, write_svs, write_tiff
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.stores import PatchSpec
from pathgen.tiling import open_slide
from pathgen.tiling.grid import ReadPlan, TileGrid
from pathgen.tiling.overview import read_overview
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.tissue import TissueMask


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 40), st.floats(0.5, 7), st.floats(0.5, 7))
def test_fraction_is_the_area_of_tissue(seed: int, side: float, sx: float, sy: float) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.random((9, 13)) < 0.5
    mask = TissueMask(pixels, 8.0, (100, 50), (sx, sy))
    coords = np.stack([rng.integers(90, 180, 20), rng.integers(40, 110, 20)], axis=1)
    expected = []
    for x, y in coords:  # overlap of the square with each mask pixel, one by one
        x0, y0 = (x - 100) / sx, (y - 50) / sy
        x1, y1 = x0 + side / sx, y0 + side / sy
        across = np.clip(np.minimum(x1, np.arange(13) + 1) - np.maximum(x0, np.arange(13)), 0, 1)
        down = np.clip(np.minimum(y1, np.arange(9) + 1) - np.maximum(y0, np.arange(9)), 0, 1)
        expected.append((down @ pixels @ across) / ((x1 - x0) * (y1 - y0)))
    np.testing.assert_allclose(mask.fraction(coords, side), expected, atol=1e-5)


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> SlideReader:
    path = tmp_path_factory.mktemp("grid") / "x.svs"
    image = tissue_image(1024, 768, seed=3)
    return open_slide(write_svs(path, image, levels=(1, 2, 8), compression=None))


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> SlideReader:
    """Its sides are no multiple of any downsample, so OpenSlide's downsamples are a little off."""
    path = tmp_path_factory.mktemp("grid") / "y.svs"
    image = tissue_image(1003, 701, seed=3)
    return open_slide(write_svs(path, image, levels=(1, 2), compression=None))


@settings(max_examples=50)
@given(
    size=st.integers(16, 300), mpp=st.floats(0.5, 5), share=st.floats(0, 0.9),
)  # fmt: skip
def test_the_grid_holds_exactly_the_whole_patches(
    slide: SlideReader, size: int, mpp: float, share: float
) -> None:
    spec = PatchSpec(size=size, mpp=mpp, overlap=int(size * share))
    plan = ReadPlan.for_spec(slide, spec)
    grid = TileGrid.over(slide, spec, plan)
    step = np.array(plan.side) * (spec.size - spec.overlap) / spec.size
    # Half a pixel may be rounded either way: the two sums differ in their last bit.
    assert np.abs(grid.coords - grid.cells[:, ::-1] * step).max(initial=0) <= 0.5 + 1e-6
    ends = grid.coords + plan.side
    assert (ends <= np.array(slide.size) + 0.51).all()
    for axis, length in enumerate(slide.size):
        count = len(np.unique(grid.coords[:, axis])) if len(grid) else 0
        if len(grid):
            assert count * step[axis] + plan.side[axis] > length - 1e-3  # one more does not fit
    rows = [row for strip in grid.strips(plan) for piece in strip for row in piece]
    assert sorted(rows) == list(range(len(grid)))
    assert grid.cells.tolist() == sorted(grid.cells.tolist())


@pytest.mark.parametrize(
    ("mpp", "level", "native"),
    [(0.5, 0, True), (0.5004, 0, True), (0.503, 0, False), (0.99, 0, False), (1.0, 1, True),
     (1.3, 1, False), (3.9, 1, False), (4.0, 2, True), (4.5, 2, False), (None, 0, True)],
)  # fmt: skip
def test_the_coarsest_level_that_is_fine_enough(
    slide: SlideReader, mpp: float | None, level: int, native: bool
) -> None:
    plan = ReadPlan.for_spec(slide, PatchSpec(mpp=mpp))
    assert (plan.level, plan.native) == (level, native)
    assert plan.mpp == pytest.approx(mpp or 0.5, rel=2e-3)
    assert abs(plan.mpp_error) <= 1e-3
    if not native:
        assert plan.mpp_error == 0
        assert plan.side == pytest.approx((256 * mpp / 0.5,) * 2)  # type: ignore[operator]


def test_upsampling_is_refused_unless_allowed(slide: SlideReader) -> None:
    with pytest.raises(SlideError, match=r"PG-S08.*upsampled"):
        ReadPlan.for_spec(slide, PatchSpec(mpp=0.25))
    plan = ReadPlan.for_spec(slide, PatchSpec(mpp=0.25), allow_upsample=True)
    assert plan.side == (128, 128)
    assert ReadPlan.for_spec(slide, PatchSpec(mpp=0.49)).level == 0  # within what scanners vary


@pytest.mark.parametrize(
    ("which", "mpp", "level"),
    [("slide", 0.5, 0), ("slide", 1.0, 1), ("slide", 4.0, 2), ("uneven", 0.5, 0),
     ("uneven", 1.001, 1)],
)  # fmt: skip
def test_native_patches_are_openslides_region(
    which: str, mpp: float, level: int, request: pytest.FixtureRequest
) -> None:
    slide: SlideReader = request.getfixturevalue(which)
    spec = PatchSpec(size=64, mpp=mpp)
    plan = ReadPlan.for_spec(slide, spec)
    assert (plan.native, plan.level) == (True, level)
    coords = TileGrid.over(slide, spec, plan).coords[::3]
    with openslide.OpenSlide(slide.path) as other:
        images = plan.read(slide, coords)
        # Asked for a place between two pixels of a level OpenSlide blends them; here the nearest
        # are taken as they are.
        whole = np.asarray(other.read_region((0, 0), level, slide.level_sizes[level]))
        corners = np.rint(coords / slide.downsamples[level]).astype(int)
        for image, (x, y) in zip(images, corners.tolist(), strict=True):
            np.testing.assert_array_equal(image, whole[y : y + 64, x : x + 64, :3])


@pytest.mark.parametrize("mpp", [0.5, 0.77, 1.0, 1.9, 4.7])
def test_a_patch_does_not_depend_on_its_neighbors(slide: SlideReader, mpp: float) -> None:
    spec = PatchSpec(size=64, mpp=mpp)
    plan = ReadPlan.for_spec(slide, spec)
    coords = TileGrid.over(slide, spec, plan).coords[:24]
    together = plan.read(slide, coords)
    alone = np.concatenate([plan.read(slide, coords[i : i + 1]) for i in range(len(coords))])
    assert np.abs(together.astype(int) - alone).max() <= 1  # rounding of the box


def dots(width: int, height: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Soft dark dots on white, and their centers in level-0 pixels (pixel i spans i to i + 1)."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width))
    cells = np.stack(np.meshgrid(np.arange(60, width - 60, 120), np.arange(60, height - 60, 120)))
    points = cells.reshape(2, -1).T + rng.uniform(-15, 15, (cells[0].size, 2))
    for x, y in points:
        i, j = np.mgrid[int(y) - 24 : int(y) + 25, int(x) - 24 : int(x) + 25]
        blob = np.exp(-(((j + 0.5 - x) ** 2 + (i + 0.5 - y) ** 2) / (2 * 6.0**2)))
        image[int(y) - 24 : int(y) + 25, int(x) - 24 : int(x) + 25] += blob
    gray = np.clip(255 - 200 * image, 0, 255)
    return np.repeat(np.asarray(gray + 0.5, np.uint8)[..., None], 3, axis=2), points


POINTS = {levels: dots(1031, 783, seed=i) for i, levels in enumerate([(1,), (1, 2), (1, 4)])}


@pytest.mark.parametrize("levels", POINTS)
@pytest.mark.parametrize("mpp", [0.5, 0.6, 0.87, 1.31, 2.7])
def test_known_points_are_found_within_half_a_pixel(
    tmp_path: Path, mpp: float, levels: tuple[int, ...]
) -> None:
    image, points = POINTS[levels]  # its sides are no multiple of any downsample
    path = write_svs(tmp_path / "x.svs", image, levels=levels, compression=None)
    spec = PatchSpec(size=96, mpp=mpp, overlap=48)
    errors = []
    with open_slide(path) as slide:
        plan = ReadPlan.for_spec(slide, spec)
        coords = TileGrid.over(slide, spec, plan).coords
        for corner in coords:
            dark = 255.0 - plan.read(slide, corner[None])[0, ..., 0]
            errors += offsets(dark, (points - corner) / plan.side * spec.size, 12 / mpp)
    assert len(errors) > 20
    assert np.abs(errors).max() < 0.5
    assert np.abs(np.mean(errors, axis=0)).max() < 0.2


def offsets(
    dark: NDArray[np.float64], points: NDArray[np.float64], reach: float
) -> list[NDArray[np.float64]]:
    """Centroid minus expected place of each dot that lies whole in the patch."""
    found = []
    for x, y in points:
        if min(x, y) < reach + 1 or max(x, y) > len(dark) - reach - 1:
            continue
        x0, x1, y0, y1 = (round(v) for v in (x - reach, x + reach, y - reach, y + reach))
        part = dark[y0:y1, x0:x1]
        down, across = np.mgrid[y0:y1, x0:x1] + 0.5
        center = np.array([(part * across).sum(), (part * down).sum()]) / part.sum()
        found.append(center - (x, y))
    return found


def test_x_and_y_scales_are_both_kept(tmp_path: Path) -> None:
    image, _ = dots(1200, 1200)
    path = write_tiff(tmp_path / "x.tif", image, per_cm=(2e4, 2e4 / 1.015))
    with open_slide(path) as slide:
        plan = ReadPlan.for_spec(slide, PatchSpec(size=100, mpp=1.0))
        assert plan.side == pytest.approx((200, 200 / 1.015))
        assert plan.read(slide, np.array([[10, 20]])).shape == (1, 100, 100, 3)


@pytest.mark.parametrize("scale", [3.0, 4.0, 7.3, 16.0, 33.3])
def test_overview_averages_areas(slide: SlideReader, scale: float) -> None:
    overview = read_overview(slide, scale)
    height, width = overview.pixels.shape[:2]
    assert (width, height) == tuple(np.ceil(np.array(slide.size) / scale).astype(int))
    whole = slide.read((0, 0), 0, slide.size).mean((0, 1))
    assert np.abs(overview.pixels.mean((0, 1)) - whole).max() < 5
