"""The tissue's outline: one tracer, one form of annotation, and never one of older settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_exchange import write_patches
from helpers_tiling import tissue_image, write_svs
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pathgen.config import build
from pathgen.exchange import export_stores
from pathgen.stores import PatchStore
from pathgen.tiling import TileConfig, tile
from pathgen.tiling.contours import NAMESPACE, tissue_geojson, tissue_path, write_tissue
from pathgen.tiling.maskattr import read_mask
from pathgen.tiling.tissue import TissueMask
from pathgen.tiling.tracing import pieces

MASK = np.array(
    [
        [1, 1, 1, 0, 0, 0],
        [1, 0, 1, 0, 0, 1],
        [1, 1, 0, 0, 1, 0],  # the hole touches the outside, two pieces touch each other
        [0, 0, 0, 0, 0, 0],
    ],
    np.bool_,
)


def test_pieces_holes_and_corners_that_touch() -> None:
    found = pieces(TissueMask(MASK, 8.0))
    assert [len(piece.holes) for piece in found] == [1, 0, 0]
    ring = found[0].exterior
    assert ring[0] == ring[-1]
    assert {tuple(xy) for xy in ring} == {(0, 0), (3, 0), (3, 2), (2, 2), (2, 3), (0, 3)}
    assert {tuple(xy) for xy in found[0].holes[0]} == {(1, 1), (2, 1), (2, 2), (1, 2)}
    assert pieces(TissueMask(np.zeros((3, 4), np.bool_), 8.0)) == []


@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_rings_are_simple_and_turn_as_they_should(pixels: NDArray[np.bool_]) -> None:
    from scipy.ndimage import label

    found = pieces(TissueMask(pixels, 8.0))
    assert len(found) == label(pixels)[1]
    area = 0.0
    for piece in found:
        for ring, sign in [(piece.exterior, 1), *((hole, -1) for hole in piece.holes)]:
            corners = [tuple(xy) for xy in ring[:-1]]
            assert len(set(corners)) == len(corners), "it touches itself"
            x, y = np.array(ring).T
            signed = float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)
            assert signed * sign > 0
            area += signed
            steps = np.diff(ring, axis=0)
            assert ((steps == 0).sum(axis=1) == 1).all()  # along the pixels,
            assert ((steps[1:] == 0) != (steps[:-1] == 0)).all()  # and turning at every corner
    assert area == pixels.sum()


def annotations(path: Path) -> list[dict[str, Any]]:
    found = json.loads(path.read_text())["features"]
    return [one for one in found if one["properties"]["objectType"] == "annotation"]


def test_an_export_has_the_same_annotations(tmp_path: Path) -> None:
    bounds = (100, 60, 1600, 1200)
    mask = TissueMask(MASK, 4.0, bounds[:2], (16.5, 16.0))
    patches = write_patches(tmp_path / "S1.h5", "S1", bounds=bounds, mask=mask)
    with PatchStore.open(patches) as store:
        write_tissue(tmp_path / "own.geojson", mask, store.slide)
    export_stores(patches, tmp_path / "out", "qupath")
    exported = annotations(tmp_path / "out/S1.geojson")
    for one in exported:
        assert one["properties"].pop("isLocked") is True
    assert exported == annotations(tmp_path / "own.geojson")
    assert len(exported) == 3


def test_ids_are_of_the_outline_and_of_nothing_else() -> None:
    mask = TissueMask(MASK, 8.0, (100, 50), (4.3, 4.0))
    first = tissue_geojson(mask, (100, 50, 60, 40), "a")
    with np.printoptions(precision=2, threshold=3, floatmode="fixed"):
        assert tissue_geojson(mask, (100, 50, 60, 40), "a") == first
    ids = [one["id"] for one in json.loads(first)["features"]]
    other = [
        one["id"] for one in json.loads(tissue_geojson(mask, (100, 50, 60, 40), "b"))["features"]
    ]
    assert len({*ids, *other}) == 6
    # A long ring differs from another in its middle alone.
    pixels = np.ones((1, 3000), np.bool_)
    pixels = np.concatenate([np.arange(3000)[None] % 2 == 0, pixels])
    changed = pixels.copy()
    changed[0, 1500] ^= True
    one, two = (
        json.loads(tissue_geojson(TissueMask(p, 8.0), (0, 0, 9, 9), "a"))["features"][0]["id"]
        for p in (pixels, changed)
    )
    assert one != two
    assert str(NAMESPACE) == "0bc7a50f-d55d-57cc-be0e-96217306c652"  # for ever


def test_an_outline_of_other_settings_is_made_anew(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "s/a.svs", tissue_image())
    out, outline = tmp_path / "o", tissue_path(tmp_path / "o", "a")
    written = TileConfig(write_tissue=True)
    coarse = build(TileConfig, {"tissue": {"mpp": 20.0}})
    tile(path, out, written, workers=0)
    first = outline.read_bytes()
    tile(path, out, coarse, workers=0, overwrite=True)
    report = tile(path, out, coarse.model_copy(update={"write_tissue": True}), workers=0)
    assert report.kept == 1
    fresh = coarse.model_copy(update={"write_tissue": True})
    tile(path, tmp_path / "fresh", fresh, workers=0)
    assert outline.read_bytes() == tissue_path(tmp_path / "fresh", "a").read_bytes() != first
    before = outline.stat().st_mtime_ns
    tile(path, out, fresh, workers=0)
    assert outline.stat().st_mtime_ns == before  # nothing to do
    outline.write_text("mine")
    tile(path, out, fresh, workers=0)
    assert outline.read_text() == "mine"


def test_an_outline_of_an_earlier_version_is_made_anew(tmp_path: Path) -> None:
    """It says that it was not changed, and not of what it was made."""
    patches = write_patches(tmp_path / "S1.h5", "S1", mask=TissueMask(MASK, 4.0, (0, 0), (9, 9)))
    own = tmp_path / "own.geojson"
    with PatchStore.open(patches) as store:
        mask = read_mask(store.attrs["tissue_mask"])
        write_tissue(own, mask, store.slide)
        value, text = json.loads(own.read_text()), own.read_text()
        del value["pathgen"]["mask"]
        own.write_text(json.dumps(value, indent=1))
        write_tissue(own, mask, store.slide)
        assert own.read_text() == text


def test_a_large_outline_is_traced_in_moments() -> None:
    import time

    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(np.random.default_rng(0).normal(size=(1000, 1000)), 2)
    start = time.perf_counter()
    found = pieces(TissueMask(noise > 0, 8.0))
    assert time.perf_counter() - start < 5  # of 130,000 edges; a tenth of a second alone
    assert len(found) > 500


@pytest.mark.parametrize("scale", [1 / 3, 31.7])
def test_positions_are_rounded_to_a_thousandth(scale: float) -> None:
    mask = TissueMask(MASK, 8.0, (10, 20), (scale, scale))
    rings = json.loads(tissue_geojson(mask, (10, 20, 9, 9), "a"))["features"][0]["geometry"]
    drawn = np.array(rings["coordinates"][0]) / scale
    assert np.abs(drawn - np.rint(drawn)).max() < 0.002 / min(scale, 1)
