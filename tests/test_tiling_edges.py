"""Steps, sizes in microns, edges; and the tissue's outline, there and back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from helpers_tiling import tissue_image, write_svs
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pathgen.config import build
from pathgen.errors import ConfigError
from pathgen.stores import PatchSpec, PatchStore
from pathgen.tiling import SlideInput, TileConfig, open_slide, tile
from pathgen.tiling.contours import tissue_geojson
from pathgen.tiling.grid import ReadPlan, TileGrid
from pathgen.tiling.layout import Layout
from pathgen.tiling.masks import read_regions
from pathgen.tiling.readers.base import BaseReader
from pathgen.tiling.task import TileTask
from pathgen.tiling.tissue import TissueMask


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> BaseReader:
    """1,003 x 701 pixels of 0.5 um, dark to every edge."""
    image = np.random.default_rng(0).integers(60, 150, (701, 1003, 3), np.uint8)
    path = write_svs(
        tmp_path_factory.mktemp("edges") / "a.svs", image, levels=(1, 2), compression=None
    )
    opened = open_slide(path)
    assert isinstance(opened, BaseReader)
    return opened


# Words for sizes


def test_step_and_patch_um_are_other_words() -> None:
    config = build(TileConfig, {"patch_um": 128, "mpp": 0.5, "step": 192})
    assert (config.patch_size, config.overlap) == (256, 64)
    assert config == build(TileConfig, {"patch_size": 256, "overlap": 64})
    assert build(TileConfig, {"step": 512}).overlap == -256
    assert build(TileConfig, config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"patch_um": 100, "mpp": 0.3}, r"333 \(99.9 um\) and 334 \(100.2 um\)"),
        ({"patch_um": 100, "mpp": None}, "fixed mpp"),
        ({"patch_um": 128, "patch_size": 224}, "says otherwise"),
        ({"patch_um": -1}, "above 0"),
        ({"step": 128, "overlap": 32}, "give one of them"),
        ({"step": 0}, "whole number"),
        ({"step": 1.5}, "whole number"),
        ({"edge": "wrap"}, "edge"),
    ],
)
def test_words_that_disagree_are_refused(values: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build(TileConfig, values)


# Edges


def starts(
    slide: BaseReader, spec: PatchSpec, edge: str, axis: int
) -> tuple[NDArray[np.int64], float, int]:
    plan = ReadPlan.for_spec(slide, spec)
    grid = TileGrid.over(slide, spec, plan, edge)  # type: ignore[arg-type]
    assert sorted(set(map(tuple, grid.cells.tolist()))) == [tuple(c) for c in grid.cells.tolist()]
    x0 = slide.bounds[axis]
    return np.unique(grid.coords[:, axis]) - x0, plan.side[axis], slide.bounds[2 + axis]


@settings(max_examples=60)
@given(
    size=st.integers(16, 300), mpp=st.sampled_from([0.5, 0.77, 1.0, 2.3]),
    step=st.floats(0.2, 1.6), axis=st.sampled_from([0, 1]),
)  # fmt: skip
def test_edges_cover_what_they_say(
    slide: BaseReader, size: int, mpp: float, step: float, axis: int
) -> None:
    spec = PatchSpec(size=size, mpp=mpp, overlap=size - max(1, int(size * step)))
    pixel = mpp / 0.5
    dropped, side, length = starts(slide, spec, "drop", axis)
    padded, _, _ = starts(slide, spec, "pad", axis)
    shifted, _, _ = starts(slide, spec, "shift", axis)
    reach = (size - spec.overlap) * pixel
    if not len(dropped):  # another test's
        return
    for more in (padded, shifted):
        assert more[: len(dropped)].tolist() == dropped.tolist()
        assert len(more) - len(dropped) in (0, 1)
    # Padded: past the last patch there is nothing but a gap, or less than a pixel.
    assert padded[-1] + max(side, reach) > length - pixel - 1
    assert (padded < length).all()
    if len(shifted):
        assert shifted[-1] + side <= length + 0.51
    if len(shifted) > len(dropped):
        assert length - pixel - 0.51 < shifted[-1] + side  # ends flush
    elif side <= length:
        assert len(padded) == len(dropped)


@pytest.mark.parametrize(("edge", "count"), [("drop", 0), ("shift", 0), ("pad", 1)])
def test_a_slide_smaller_than_a_patch(slide: BaseReader, edge: str, count: int) -> None:
    spec = PatchSpec(size=1100, mpp=0.5)
    plan = ReadPlan.for_spec(slide, spec)
    grid = TileGrid.over(slide, spec, plan, edge)  # type: ignore[arg-type]
    assert grid.coords.tolist() == [[0, 0]] * count


def test_padding_is_white_and_the_rest_untouched(slide: BaseReader) -> None:
    for mpp in (0.5, 0.77, 1.0, 1.3):
        spec = PatchSpec(size=96, mpp=mpp)
        plan = ReadPlan.for_spec(slide, spec)
        grid = TileGrid.over(slide, spec, plan, "pad")
        ends = grid.coords + plan.side
        beyond = np.flatnonzero((ends > np.array(slide.size) + 1).any(axis=1))
        assert len(beyond)
        for row in beyond:
            image = plan.read(slide, grid.coords[row : row + 1])[0]
            there = (np.array(slide.size) - grid.coords[row]) * 96 / plan.side
            across, down = np.minimum(np.ceil(there - 1e-6), 96).astype(int)
            assert (image[:, across:] == 255).all()
            assert (image[down:] == 255).all()
            inner = image[: max(int(there[1]) - 2, 0), : max(int(there[0]) - 2, 0)]
            assert not inner.size or inner.max() < 200


def test_padded_patches_are_stored(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", tissue_image(700, 500), compression=None)
    values = {"patch_size": 256, "edge": "pad", "min_tissue": 0, "min_hematoxylin": 0}
    values["codec"] = "png"
    report = tile(path, tmp_path / "o", build(TileConfig, values), workers=0)
    store = PatchStore.open(report.stores[0])
    assert len(store) == 6
    assert (store.images([5])[0, 500 - 256 :] == 255).all()
    assert store.measure("tissue", [5])[0] < 188 * 244 / 256**2 + 0.01


# Outlines of the tissue


masks = st.tuples(st.integers(0, 2**32 - 1), st.floats(0.2, 0.9)).map(
    lambda drawn: np.random.default_rng(drawn[0]).random((23, 31)) < drawn[1]
)


@settings(max_examples=40)
@given(masks, st.floats(2, 40), st.integers(0, 900), st.integers(0, 900))
def test_an_outline_given_back_is_the_same_mask(
    slide: BaseReader, tmp_path_factory: pytest.TempPathFactory, pixels: NDArray[np.bool_],
    scale: float, x: int, y: int,
) -> None:  # fmt: skip
    width, height = round(31 * scale + 1), round(23 * scale + 1)
    scanned = open_slide(slide.path)
    assert isinstance(scanned, BaseReader)
    scanned.header = replace(
        scanned.header, size=(width + x, height + y), bounds=(x, y, width, height)
    )
    mask = TissueMask(pixels, 8.0, (x, y), (scale, scale))
    path = tmp_path_factory.mktemp("outline") / "a.geojson"
    path.write_text(tissue_geojson(mask, scanned.bounds, "0123"))
    regions = read_regions(path, scanned)
    assert regions.names in ((), ("Tissue",))
    np.testing.assert_array_equal(regions.like(mask), pixels)
    assert path.read_text() == tissue_geojson(mask, scanned.bounds, "0123")


def test_outlines_are_as_qupath_reads_them() -> None:
    pixels = np.zeros((20, 30), bool)
    pixels[2:10, 3:13] = True
    pixels[4:6, 5:8] = False
    pixels[14:18, 20:28] = True
    value = json.loads(
        tissue_geojson(TissueMask(pixels, 8.0, (100, 50), (4.0, 4.0)), (100, 50, 120, 80), "id")
    )
    assert value["type"] == "FeatureCollection"
    rings = [len(one["geometry"]["coordinates"]) for one in value["features"]]
    assert rings == [2, 1]
    for one in value["features"]:
        assert UUID(one["id"]).version == 5
        assert one["properties"]["objectType"] == "annotation"
        assert len(one["properties"]["classification"]["color"]) == 3  # QuPath fails without one
        for ring in one["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
    points = np.array(value["features"][0]["geometry"]["coordinates"][0])
    assert points.min(axis=0).tolist() == [12, 8]  # of the scanned part
    assert points.max(axis=0).tolist() == [52, 40]


def test_the_outline_is_written_once_and_never_over_a_corrected_one(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "s/a.svs", tissue_image())
    out = tmp_path / "o"
    plain, written = TileConfig(), TileConfig(write_tissue=True)
    tile(path, out, plain, workers=0)
    assert not (out / "tissue").exists()
    report = tile(path, out, written, workers=0)
    assert report.kept == 1  # no slide was read again
    outline = out / "tissue/a.geojson"
    fresh = tmp_path / "fresh"
    tile(path, fresh, written, workers=0)
    assert outline.read_bytes() == (fresh / "tissue/a.geojson").read_bytes()
    value = json.loads(outline.read_text())
    value["features"][0]["geometry"]["coordinates"][0][1][0] += 8
    outline.write_text(json.dumps(value))
    corrected = outline.read_bytes()
    tile(path, out, replace_config(written, min_tissue=0.3), workers=0, overwrite=True)
    assert outline.read_bytes() == corrected
    report = tile(path, tmp_path / "again", plain, masks=out / "tissue", workers=0)
    assert report.rows[0].reason == "ok"


def replace_config(config: TileConfig, **values: Any) -> TileConfig:
    return build(TileConfig, {**config.model_dump(), **values})


@pytest.mark.data
def test_a_bounded_slide_comes_back_from_qupath(data: Path, tmp_path: Path) -> None:
    path = data / "slides/leica_colon.scn"
    config = build(TileConfig, {"mpp": 1.0, "write_tissue": True})
    first = PatchStore.open(tile(path, tmp_path / "o", config, workers=0).stores[0])
    x, y, *_ = first.slide.bounds or (0, 0)
    assert (x, y) != (0, 0)
    mask = tmp_path / "o/tissue" / f"{path.stem}.geojson"
    again = PatchStore.open(
        tile(path, tmp_path / "p", config, masks=mask, workers=0).stores[0]
    )  # fmt: skip
    np.testing.assert_array_equal(first.coords(), again.coords())
    np.testing.assert_array_equal(first.measure("tissue"), again.measure("tissue"))
    found = SlideInput(path, path.stem, mask=mask)
    with open_slide(path) as slide:
        layout = Layout.of(slide, TileTask(found, tmp_path, config))
    assert layout.classes is not None
    assert np.abs(layout.classes[:, 0] - layout.tissue).max() < 0.02
