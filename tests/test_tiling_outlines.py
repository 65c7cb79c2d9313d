"""What a class covers of a patch is the area that geometry says; shapely is the oracle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pathgen.tiling.outlines import LINES, Outlines, Polygon, pixels, shares
from pathgen.tiling.regions import OutlineRegions, RasterRegions
from pathgen.tiling.tissue import TissueMask

shapely = pytest.importorskip("shapely")


def star(rng: np.random.Generator, holes: int = 0) -> Polygon:
    """A simple polygon around a point, of many depths; holes lie anywhere."""
    corners = int(rng.integers(3, 40))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = rng.uniform(60, 700, corners)
    center = rng.uniform(0, 1500, 2)
    ring = center + np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    inner = [star(rng).exterior * 0.4 + center * 0.6 for _ in range(holes)]
    return Polygon(ring, tuple(inner))


def area(polygon: Polygon) -> shapely.Geometry:
    """Exterior without holes; rings by the even-odd rule, as an exclusive or of triangles is."""
    whole = shapely.make_valid(shapely.Polygon(polygon.exterior), method="linework")
    for hole in polygon.holes:
        whole = whole.difference(shapely.make_valid(shapely.Polygon(hole), method="linework"))
    return whole


def covered(shape: shapely.Geometry, coords: NDArray[np.int64], side: tuple[float, float]):
    boxes = shapely.box(*coords.T, *(coords + side).T)
    return shapely.area(shapely.intersection(shape, boxes)) / (side[0] * side[1])


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(0, 2), st.floats(20, 600))
def test_shares_are_areas(seed: int, count: int, holes: int, side: float) -> None:
    rng = np.random.default_rng(seed)
    polygons = [star(rng, holes) for _ in range(count)]
    union = shapely.union_all([area(p) for p in polygons])
    coords = rng.integers(-500, 2000, (40, 2))
    sides = (side, side * 1.02)
    found = shares(Outlines(polygons), coords, sides)
    expected = covered(union, coords, sides)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 0.02  # needles thinner than the lines lie apart
    assert np.abs(found - expected).mean() < 0.002


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_what_is_excluded_is_cut_out(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = [star(rng), star(rng)], [star(rng)]
    shape = shapely.union_all([area(p) for p in one]).difference(area(other[0]))
    coords = rng.integers(-300, 1800, (30, 2))
    found = shares(Outlines(one), coords, (256.0, 256.0), Outlines(other))
    assert np.abs(found - covered(shape, coords, (256.0, 256.0))).max() < 0.02


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(3, 40), st.floats(3, 40))
def test_pixels_are_those_with_their_center_inside(seed: int, sx: float, sy: float) -> None:
    rng = np.random.default_rng(seed)
    polygons = [star(rng, 1), star(rng)]
    origin = (float(rng.integers(-200, 300)), float(rng.integers(-200, 300)))
    found = pixels(Outlines(polygons), (50, 60), origin, (sx, sy))
    x = origin[0] + (np.arange(60) + 0.5) * sx
    y = origin[1] + (np.arange(50) + 0.5) * sy
    union = shapely.union_all([area(p) for p in polygons])
    across, down = np.meshgrid(x, y)
    inside = shapely.contains_xy(union, across, down)
    near = shapely.distance(union.boundary, shapely.points(across, down)) < 1e-6
    assert (found == inside)[~near].all()


def test_squares_are_exact() -> None:
    square = Polygon(np.array([[10.0, 20], [110, 20], [110, 120], [10, 120]]))
    coords = np.array([[10, 20], [60, 70], [0, 0], [200, 200], [-90, -80]])
    found = shares(Outlines([square]), coords, (100.0, 100.0))
    np.testing.assert_allclose(found, [1, 0.25, 0.9 * 0.8, 0, 0], atol=0.5 / LINES)
    assert found[0] == 1
    assert found[3] == 0


@pytest.mark.parametrize(
    ("ring", "expected"),
    [
        ([[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]], 1.0),  # closed
        ([[0, 0], [100, 100], [100, 0], [0, 100]], 0.5),  # a bow tie
        ([[0, 0], [100, 0], [100, 100], [0, 100]] * 2, 0.0),  # twice around is out again
        ([[0, 0], [100, 0], [50, 0]], 0.0),  # without area
        ([[0, 0], [100, 0], [100, 100], [100, 100], [0, 100]], 1.0),  # a corner given twice
    ],
)
def test_odd_rings(ring: list[list[float]], expected: float) -> None:
    polygon = Polygon(np.array(ring, np.float64))
    found = shares(Outlines([polygon]), np.array([[0, 0]]), (100.0, 100.0))
    assert found[0] == pytest.approx(expected, abs=0.01)


def test_a_hole_cuts_only_its_own_polygon() -> None:
    outer = np.array([[0.0, 0], [100, 0], [100, 100], [0, 100]])
    hole = outer * 0.5 + 25
    with_hole, whole = Polygon(outer, (hole,)), Polygon(outer)
    at, side = np.array([[0, 0]]), (100.0, 100.0)
    assert shares(Outlines([with_hole]), at, side)[0] == pytest.approx(0.75)
    assert shares(Outlines([with_hole, whole]), at, side)[0] == 1
    assert shares(Outlines([Polygon(outer * 0.5, (outer + 200,))]), at, side)[0] == 0.25


def test_nothing_is_nothing() -> None:
    assert shares(Outlines([]), np.array([[0, 0]]), (9.0, 9.0)).tolist() == [0]
    one = Outlines([star(np.random.default_rng(0))])
    assert shares(one, np.empty((0, 2), int), (9.0, 9.0)).shape == (0,)
    assert not pixels(Outlines([]), (4, 5), (0, 0), (1, 1)).any()


def test_many_rows_agree_with_one_by_one() -> None:
    """Rows are cut in batches; where a batch ends must not show."""
    polygons = [star(np.random.default_rng(7), 1)]
    x, y = np.meshgrid(np.arange(-600, 2400, 150), np.arange(-600, 2400, 11))
    coords = np.stack([x, y], axis=-1).reshape(-1, 2)
    coords = np.random.default_rng(0).permutation(coords)
    together = shares(Outlines(polygons), coords, (40.0, 40.0))
    some = np.arange(0, len(coords), 97)
    alone = [shares(Outlines(polygons), coords[i : i + 1], (40.0, 40.0))[0] for i in some]
    np.testing.assert_allclose(together[some], alone, atol=1e-6)
    assert together.max() == 1


# Rasters


@given(st.integers(0, 2**32 - 1), st.floats(2, 30), st.floats(0.5, 8))
def test_a_rasters_shares_are_those_of_its_pixels(seed: int, side: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    raster = rng.integers(0, 4, (20, 30), np.uint8)
    regions = RasterRegions(raster, (5.0, 7.0), (scale, scale), {"a": (1, 3), "b": (2,)}, "abc")
    coords = rng.integers(-10, 100, (25, 2))
    found = regions.shares(coords, (side, side))
    for column, values in enumerate([(1, 3), (2,), ()]):
        whole = TissueMask(np.isin(raster, values), 1.0, (5, 7), (scale, scale))
        np.testing.assert_allclose(found[:, column], whole.fraction(coords, side), atol=1e-5)


def test_a_raster_and_its_outline_are_alike() -> None:
    raster = np.zeros((60, 80), np.uint8)
    raster[10:40, 20:70] = 2
    box = Polygon(np.array([[200.0, 100], [700, 100], [700, 400], [200, 400]]))
    outline = OutlineRegions({"x": Outlines([box])}, None, ["x"])
    drawn = RasterRegions(raster, (0.0, 0.0), (10.0, 10.0), {"x": (2,)}, ["x"])
    coords = np.random.default_rng(0).integers(0, 800, (200, 2))
    np.testing.assert_allclose(
        drawn.shares(coords, (97.0, 97.0)), outline.shares(coords, (97.0, 97.0)), atol=1 / LINES
    )
    mask = TissueMask(np.zeros((30, 40), bool), 8.0, (40, 0), (20.0, 20.0))
    assert (drawn.like(mask) == outline.like(mask)).all()
    assert drawn.like(mask).sum() == 25 * 15
    assert not drawn.like(mask, ["other"]).any()
