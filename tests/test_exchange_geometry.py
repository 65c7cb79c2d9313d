"""Sizes of patches in two dialects, and the outlines of masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pathgen.errors import DataError
from pathgen.exchange.geometry import (
    Geometry,
    grid_of,
    level0_magnification,
    nominal_magnification,
)
from pathgen.stores.patches import SlideFacts
from pathgen.tiling.outlines import Outlines, Polygon, pixels
from pathgen.tiling.tissue import TissueMask
from pathgen.tiling.tracing import pieces


def facts(**change: Any) -> dict[str, Any]:
    """Attributes of a store: 256 pixels at 0.5 of a slide with 0.25."""
    mpp = change.pop("mpp", (0.25, 0.25))
    slide = SlideFacts(
        name="S", identity="x", width=40_000, height=30_000, mpp_x=mpp[0], mpp_y=mpp[1],
        downsamples=change.pop("downsamples", (1.0, 4.0)),
        level_sizes=change.pop("level_sizes", ((40_000, 30_000), (10_000, 7_500))),
    )  # fmt: skip
    base = {
        "patch_size": 256, "patch_size_level0": 512.0, "target_mpp": 0.5, "level0_mpp": 0.25,
        "overlap": 0, "slide": slide.model_dump(mode="json"),
    }  # fmt: skip
    return {**base, **change}


def geometry(**change: Any) -> Geometry:
    found = Geometry.of(facts(**change))
    assert found is not None
    return found


def test_a_native_level_is_named_and_its_pixels_are_the_patch() -> None:
    said = geometry(downsamples=(1.0, 2.0, 4.0), level_sizes=((8, 8), (4, 4), (2, 2))).clam("S")
    assert (said.level, said.size, said.downsample, said.level_size) == (1, 256, (2, 2), (4, 4))
    assert said.rounded == 0


def test_without_such_a_level_clam_gets_level_0_and_the_side_there() -> None:
    said = geometry().clam("S")
    assert (said.level, said.size, said.level_size) == (0, 512, (40_000, 30_000))


def test_rounding_is_told() -> None:
    said = geometry(patch_size_level0=509.6).clam("S")
    assert (said.size, said.rounded) == (510, pytest.approx(0.4))


def test_oblong_pixels_beyond_one_pixel_are_refused() -> None:
    target, mpp = 0.5, (0.25, 0.2525)
    mean = sum(256 * target / m for m in mpp) / 2
    found = geometry(mpp=mpp, patch_size_level0=mean)
    assert found.side == pytest.approx((512, 506.93), abs=0.01)
    for say in (found.clam, found.trident):
        with pytest.raises(DataError, match="whole pixels") as caught:
            say("S")
        assert caught.value.code == "PG-F03"


@given(
    st.integers(32, 1024), st.floats(0.1, 1.0), st.floats(1.0, 8.0)
)  # fmt: skip
def test_trident_computes_exactly_the_side_that_is_written(
    size: int, mpp: float, ratio: float
) -> None:
    found = geometry(
        patch_size=size, patch_size_level0=size * ratio, mpp=(mpp, mpp), level0_mpp=mpp,
        target_mpp=mpp * ratio,
    )  # fmt: skip
    said = found.trident("S")
    assert round(said.size * said.level0 / said.target) == said.size_level0
    assert abs(said.size_level0 - size * ratio) <= 0.5
    assert said.level0 == level0_magnification(mpp)


@pytest.mark.parametrize(("mpp", "nominal"), [(0.5, 20), (0.2527, 40), (1, 10), (0.7, 14.3)])
def test_magnifications_are_the_usual_ones_where_they_are_near(mpp: float, nominal: float) -> None:
    assert nominal_magnification(mpp) == nominal


def test_the_nominal_magnification_stays_where_it_gives_the_same_pixels() -> None:
    assert geometry().trident("S").target == 20
    off = geometry(patch_size_level0=509.96, mpp=(0.251, 0.251)).trident("S")
    assert off.nominal == 20
    assert off.target == 40 * 256 / 510


def test_without_pixel_size_or_objective_trident_is_refused() -> None:
    bare = {k: v for k, v in facts(target_mpp=None).items() if k not in ("slide", "level0_mpp")}
    found = Geometry.of(bare)
    assert found is not None
    with pytest.raises(DataError, match="magnification"):
        found.trident("S")


def test_stores_of_before_say_less_and_are_read() -> None:
    old = facts()
    for name in ("downsamples", "level_sizes", "suffix"):
        del old["slide"][name]
    found = Geometry.of(old)
    assert found is not None
    assert (found.clam("S").level, found.clam("S").size) == (0, 512)


@given(
    arrays(np.int64, st.tuples(st.integers(1, 40), st.just(2)), elements=st.integers(0, 300)),
    st.floats(4, 2000), st.integers(0, 5000),
)  # fmt: skip
def test_the_grid_is_found_again_from_rounded_corners(
    cells: np.ndarray[Any, Any], stride: float, start: int
) -> None:
    coords = np.rint(cells * stride).astype(np.int64) + start
    found = grid_of(coords, (stride, stride))
    assert found is not None
    assert np.array_equal(found, cells - cells.min(axis=0))


def test_a_stride_that_was_rounded_still_gives_the_grid() -> None:
    cells = np.stack(np.meshgrid(np.arange(300), np.arange(3)), -1).reshape(-1, 2)
    found = grid_of(np.rint(cells * 127.49).astype(np.int64), (127, 127))
    assert np.array_equal(found, cells)


def test_patches_on_two_grids_are_on_none() -> None:
    coords = np.array([[0, 0], [100, 0], [250, 0]])
    assert grid_of(coords, (100, 100)) is None


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_contours_cover_exactly_the_mask(mask: np.ndarray[Any, Any]) -> None:
    found = pieces(TissueMask(mask, 8.0, (70, 30), (16.0, 12.0)))
    outlines = Outlines([
        Polygon(np.array(p.exterior), tuple(np.array(hole) for hole in p.holes)) for p in found
    ])  # fmt: skip
    drawn = pixels(outlines, mask.shape, (70, 30), (16.0, 12.0))
    assert np.array_equal(drawn, mask)
    for piece in found:
        for ring in (piece.exterior, *piece.holes):
            assert ring[0] == ring[-1]
            assert len(ring) >= 5


def test_contours_are_valid_polygons() -> None:
    shapely = pytest.importorskip("shapely")
    rng = np.random.default_rng(0)
    mask = rng.random((40, 40)) < 0.6
    area = 0.0
    for piece in pieces(TissueMask(mask, 8.0)):
        polygon = shapely.Polygon(piece.exterior, piece.holes)
        assert polygon.is_valid
        area += polygon.area
    assert area == mask.sum()
