"""Regions drawn by hand: what is repaired covers the same, and tiling keeps to it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from helpers_tiling import tissue_image, write_svs
from hypothesis import given, settings
from hypothesis import strategies as st

import pathgen
from pathgen.errors import ConfigError, DataError, SlideError
from pathgen.session.untangle import area, simple, tidied, untangled
from pathgen.stores import PatchStore
from pathgen.tiling.outlines import Outlines, Polygon, pixels

SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100]]
BOW_TIE = [[200, 0], [300, 100], [300, 0], [200, 100]]


def feature(rings: Sequence[Any], name: str | None = "Tumor") -> dict[str, Any]:
    properties = {} if name is None else {"classification": {"name": name}}
    closed = [[*ring, ring[0]] for ring in rings]
    geometry = {"type": "Polygon", "coordinates": closed}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def write(path: Path, *features: Any) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def shapes(polygons: Sequence[Polygon]) -> list[shapely.Polygon]:
    return [shapely.Polygon(polygon.exterior, polygon.holes) for polygon in polygons]


# --- rings that cross --------------------------------------------------------------------

corners = st.integers(0, 12).map(lambda v: v * 20.0)
ring = st.lists(st.tuples(corners, corners), min_size=3, max_size=12).map(np.array)
free = st.floats(0, 240, width=32).map(lambda v: round(v, 2))
wild = st.lists(st.tuples(free, free), min_size=3, max_size=12).map(np.array)


@settings(max_examples=40)
@given(st.lists(ring | wild, min_size=1, max_size=3))
def test_untangled_rings_are_valid_and_cover_the_same(rings: list[np.ndarray]) -> None:
    tidy = [found for one in rings if len(found := tidied(one)) >= 3]
    if not tidy:
        return
    parts = untangled(tidy)
    found = shapes(parts)
    assert all(shape.is_valid for shape in found)
    together = shapely.union_all(found)
    assert together.area == pytest.approx(sum(shape.area for shape in found), abs=1e-3)
    # The definition, on a raster: even-odd within a ring, holes taken away from the exterior.
    first, *holes = (np.concatenate([one, one[:1]]) for one in tidy)
    grid = (np.stack(np.meshgrid(np.arange(48), np.arange(48)), -1) * 5 + 2.5 + 1e-3) * 1.0
    expected = odd(first, grid)
    for hole in holes:
        expected &= ~odd(hole, grid)
    inside = shapely.contains_xy(together, grid[..., 0], grid[..., 1])
    edges = shapely.union_all([shapely.LineString(one) for one in (first, *holes)])
    near = shapely.distance(edges, shapely.points(grid)) < 0.05  # rounding may move an edge
    assert np.array_equal(inside | near, expected | near)


def odd(closed: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Whether a ray to the right crosses a ring an odd number of times, point by point."""
    inside = np.zeros(grid.shape[:2], bool)
    for (x0, y0), (x1, y1) in pairwise(closed):
        if y0 != y1:
            hit = (y0 <= grid[..., 1]) != (y1 <= grid[..., 1])
            inside ^= hit & (x0 + (grid[..., 1] - y0) / (y1 - y0) * (x1 - x0) > grid[..., 0])
    return inside


@settings(max_examples=40)
@given(ring | wild)
def test_simple_is_what_shapely_calls_so(points: np.ndarray) -> None:
    tidy = tidied(points)
    if len(tidy) >= 3:
        assert simple([tidy]) == shapely.LinearRing(tidy).is_simple


def test_the_area_is_that_of_tiling() -> None:
    star = np.array([[50, 0], [80, 100], [0, 38], [100, 38], [20, 100]], float)
    parts = untangled([tidied(star)])
    assert len(parts) == 5  # the middle is wound around twice: outside
    raster = pixels(Outlines([Polygon(star)]), (2000, 2000), (0, 0), (0.05, 0.05)).sum() * 0.05**2
    assert sum(abs(area(part.exterior)) for part in parts) == pytest.approx(raster, rel=1e-3)


# --- files -------------------------------------------------------------------------------


def test_good_regions_stay_as_they_are(tmp_path: Path) -> None:
    hole = [[20, 20], [40, 20], [40, 40], [20, 40]]
    path = write(tmp_path / "S1.geojson", feature([SQUARE, hole]), feature([SQUARE], "Stroma"))
    found = pathgen.annotations(path)
    assert repr(found) == "2 regions: Stroma 1, Tumor 1 · no problems"
    (tumor,) = shapes(found.polygons["Tumor"])
    assert tumor.equals(shapely.Polygon(SQUARE, [hole]))
    assert found.kept_at(tmp_path / "kept.geojson") == path
    assert len(found.problems()) == 0
    assert pathgen.annotations(path, classes=["Stroma"]).classes == ("Stroma",)


def test_bad_ones_are_repaired_or_left_out_and_said(tmp_path: Path) -> None:
    path = write(
        tmp_path / "S1.geojson",
        feature([SQUARE]), feature([BOW_TIE]), feature([[[0, 0], [float("nan"), 5], [5, 5]]]),
        feature([[[0, 0], [50, 50], [100, 100]]]), feature([[[0, 0], [0, 0], [9, 0], [9, 9]]]),
        {"type": "Feature", "properties": {}, "geometry": {"type": "Circle"}}, 7,
        {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [1, 2]}},
    )  # fmt: skip
    found = pathgen.annotations(path, classes=["Tumor"])
    table = found.problems()
    assert list(table.columns) == ["class", "what", "what was done"]
    said = " | ".join(table["what"])
    for words in (
        "not finite", "crosses itself", "without an area", "repeated corners", "Circle",
        "it is no object", "1 point or line",
    ):  # fmt: skip
        assert words in said
    # The square, the two halves of the bow tie, and the ring that had a corner twice.
    areas = sorted(shape.area for shape in shapes(found.polygons["Tumor"]))
    assert areas == pytest.approx([40.5, 2500, 2500, 10000])
    assert "problem" in repr(found)
    assert "crosses itself" in found._repr_html_()


def test_what_was_repaired_is_written_and_read_again_the_same(tmp_path: Path) -> None:
    path = write(tmp_path / "S1.geojson", feature([SQUARE]), feature([BOW_TIE], "Stroma"))
    found = pathgen.annotations(path)
    again = pathgen.annotations(found.to_geojson(tmp_path / "clean.geojson"))
    assert repr(again) == "3 regions: Stroma 2, Tumor 1 · no problems"
    assert again.table().equals(found.table())
    assert found.frame == again.frame == "bounds"


def test_packed_files_and_those_of_asap_are_read(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.geojson", feature([SQUARE]))
    packed = tmp_path / "a.geojson.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    asap = tmp_path / "a.xml"
    points = "".join(
        f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(SQUARE)
    )
    asap.write_text(
        '<ASAP_Annotations><Annotations><Annotation Type="Polygon" PartOfGroup="Tumor">'
        f"<Coordinates>{points}</Coordinates></Annotation></Annotations></ASAP_Annotations>"
    )
    for path, frame in ((packed, "bounds"), (asap, "canvas")):
        found = pathgen.annotations(path)
        assert found.classes == ("Tumor",)
        assert shapes(found.polygons["Tumor"])[0].area == 10_000
        assert found.frame == frame


def test_a_class_that_is_not_there_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", feature([SQUARE]))
    found = pathgen.annotations(path, classes=["Tumor", "tumour"])
    assert found.problems()["what was done"].tolist() == ["did you mean 'Tumor'?"]
    with pytest.raises(DataError, match=r"PG-N06.*Tumor \(1\)"):
        pathgen.annotations(path, classes=["Necrosis"])
    with pytest.raises(DataError, match="no regions"):
        pathgen.annotations(write(tmp_path / "b.geojson"))
    (tmp_path / "c.geojson").write_text("{]")
    with pytest.raises(SlideError, match="PG-M02"):
        pathgen.annotations(tmp_path / "c.geojson")


def test_names_are_text_in_a_notebook(tmp_path: Path) -> None:
    path = write(tmp_path / "a.geojson", feature([SQUARE], "<b>"), feature([BOW_TIE], "<b>"))
    shown = pathgen.annotations(path)._repr_html_()
    assert "<b>" not in shown
    assert "&lt;b&gt;" in shown


def test_regions_can_be_drawn(tmp_path: Path) -> None:
    found = pathgen.annotations(
        write(tmp_path / "a.geojson", feature([SQUARE]), feature([SQUARE], "B"))
    )
    (axes,) = found.plot().axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["B", "Tumor"]
    low, high = axes.get_ylim()
    assert low > high


# --- tiling within -----------------------------------------------------------------------


def test_patches_within_are_those_that_shapely_finds(tmp_path: Path) -> None:
    svs = write_svs(tmp_path / "S1.svs", tissue_image(1024, 768))
    tumor = [[200, 100], [600, 150], [650, 600], [150, 500]]
    path = write(tmp_path / "S1.geojson", feature([tumor]), feature([BOW_TIE], "Stroma"))
    options = {"mpp": 0.5, "size": 64, "workers": 0, "min_hematoxylin": 0}
    every = pathgen.tile(svs, tmp_path / "all", **options)
    roi = pathgen.annotations(path)
    within = pathgen.tile(svs, tmp_path / "in", within=roi, min_overlap=0.3, **options)
    outlines = [shapely.Polygon(tumor), *shapes(roi.polygons["Stroma"])]
    parts = [outlines[0], shapely.union_all(outlines[1:])]

    def share(x: int, y: int) -> list[float]:
        return [part.intersection(shapely.box(x, y, x + 64, y + 64)).area / 64**2 for part in parts]

    with PatchStore.open(every.stores[0]) as store:
        expected = {(x, y): share(x, y) for x, y in store.coords().tolist()}
    with PatchStore.open(within.stores[0]) as store:
        found = {(x, y): shares for (x, y), shares in
                 zip(store.coords().tolist(), store.class_shares(), strict=True)}  # fmt: skip
        assert store.class_names == ("Stroma", "Tumor")
    sure = {place for place, both in expected.items() if max(both) > 0.31}
    maybe = {place for place, both in expected.items() if max(both) > 0.29}
    assert sure <= set(found) <= maybe
    for place, (stroma, tumor_) in found.items():
        assert expected[place] == pytest.approx([tumor_, stroma], abs=0.02)
    assert f"outside {within.counts['dropped_class']}" in within.summary()
    kept = tmp_path / "in" / "annotations" / "S1.geojson"
    assert all(shape.is_valid for shape in shapes(pathgen.annotations(kept).polygons["Stroma"]))
    again = pathgen.tile(svs, tmp_path / "in", within=str(path), min_overlap=0.3, **options)
    assert again.kept == 1


def test_regions_for_several_slides_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        write_svs(tmp_path / "slides" / f"{name}.svs", tissue_image(512, 384))
    path = write(tmp_path / "a.geojson", feature([SQUARE]))
    with pytest.raises(ConfigError, match="one mask for several slides"):
        pathgen.tile(tmp_path / "slides", tmp_path / "out", within=path, workers=0)
    with pytest.raises(ConfigError, match="min_overlap"):
        pathgen.tile(tmp_path / "slides", tmp_path / "out", within=path, min_overlap=0, workers=0)
    with pytest.raises(ConfigError, match="given twice"):
        pathgen.tile(tmp_path / "slides", tmp_path / "out", within=path, masks=path, workers=0)


def test_a_plan_and_a_refusal_leave_nothing_behind(tmp_path: Path) -> None:
    svs = write_svs(tmp_path / "S1.svs", tissue_image(512, 384))
    whole = [[0, 0], [512, 0], [512, 384], [0, 384]]
    path = write(tmp_path / "a.geojson", feature([whole]), feature([BOW_TIE]))
    plan = pathgen.plan_tiles(svs, tmp_path / "out", within=path, mpp=0.5, size=64, workers=0)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError):
        pathgen.tile([svs, write_svs(tmp_path / "S2.svs", tissue_image(512, 384))],
                     tmp_path / "out", within=path, workers=0)  # fmt: skip
    assert not (tmp_path / "out").exists()
    assert plan.run(workers=0).counts["done"] == 1
