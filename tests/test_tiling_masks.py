"""Masks from outside: each tool's file means on the slide what it means in that tool."""

from __future__ import annotations

import gzip
import io
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from helpers_tiling import tissue_image, write_svs
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pathgen.errors import SlideError
from pathgen.tiling import open_slide
from pathgen.tiling.annotations import parse_asap, parse_geojson
from pathgen.tiling.masks import MaskConfig, read_regions
from pathgen.tiling.readers.base import BaseReader

SQUARE = [[256, 128], [768, 128], [768, 640], [256, 640], [256, 128]]
HOLE = [[384, 256], [512, 256], [512, 384], [384, 384], [384, 256]]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,536 x 1,024 pixels of 0.5 um."""
    return write_svs(tmp_path_factory.mktemp("masks") / "a.svs", tissue_image())


@pytest.fixture
def bounded(slide: Path) -> BaseReader:
    """The same slide, of which only a part was scanned."""
    opened = open_slide(slide)
    assert isinstance(opened, BaseReader)
    opened.header = replace(opened.header, bounds=(128, 64, 1024, 896))
    return opened


def feature(rings: Any, properties: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    geometry = {"type": "Polygon", "coordinates": rings}
    return {"type": "Feature", "geometry": geometry, "properties": properties or {}, **more}


def tumor(rings: Any) -> dict[str, Any]:
    return feature(rings, {"classification": {"name": "Tumor", "color": [200, 0, 0]}})


ASAP = """<?xml version="1.0"?>
<ASAP_Annotations>
 <Annotations>
  <Annotation Name="A 0" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58"><Coordinates>
   <Coordinate Order="1" X="768,0" Y="128" /><Coordinate Order="0" X="256" Y="128" />
   <Coordinate Order="2" X="768" Y="640.0" /><Coordinate Order="3" X="256" Y="640" />
  </Coordinates></Annotation>
  <Annotation Name="A 1" Type="Rectangle" PartOfGroup="Exclusion" Color="#000"><Coordinates>
   <Coordinate Order="0" X="384" Y="256" /><Coordinate Order="1" X="512" Y="256" />
   <Coordinate Order="2" X="512" Y="384" /><Coordinate Order="3" X="384" Y="384" />
  </Coordinates></Annotation>
  <Annotation Name="A 2" Type="Dot" PartOfGroup="None"><Coordinates>
   <Coordinate Order="0" X="9" Y="9" /></Coordinates></Annotation>
 </Annotations>
 <AnnotationGroups><Group Name="Tumor" PartOfGroup="None" Color="#F4FA58"><Attributes />
 </Group></AnnotationGroups>
</ASAP_Annotations>"""

AT = np.array([[256, 128], [384, 256], [0, 0], [640, 512]])
EXPECTED = [0.75, 0.75, 0.0, 0.25]  # of squares of 256 pixels there, with the hole


def shares(path: Path, slide: Any, **settings: Any) -> dict[str, list[float]]:
    regions = read_regions(path, slide, MaskConfig(**settings))
    found = regions.shares(AT, (256.0, 256.0))
    return {name: found[:, i].round(3).tolist() for i, name in enumerate(regions.names)}


# Tools


@pytest.mark.parametrize("form", ["collection", "list", "feature", "gz", "bom", "multi"])
def test_qupath_files_count_from_the_scanned_part(
    form: str, bounded: BaseReader, tmp_path: Path
) -> None:
    rings = [[[x - 128, y - 64] for x, y in ring] for ring in (SQUARE, HOLE)]
    one = tumor(rings)
    if form == "multi":
        one["geometry"] = {"type": "MultiPolygon", "coordinates": [rings, []]}
    value: Any = {"collection": {"type": "FeatureCollection", "features": [one]}, "list": [one]}
    data = json.dumps(value.get(form, one)).encode()
    if form == "gz":
        data = gzip.compress(data)
    path = tmp_path / "anything"
    path.write_bytes(b"\xef\xbb\xbf" + data if form == "bom" else data)
    assert shares(path, bounded) == {"Tumor": EXPECTED}
    plain = shares(path, bounded, frame="canvas")
    assert plain != {"Tumor": EXPECTED}


def test_trident_counts_from_the_canvas(bounded: BaseReader, tmp_path: Path) -> None:
    value = {
        "type": "FeatureCollection", "features": [feature([SQUARE, HOLE], {"tissue_id": 0})],
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}},
    }  # fmt: skip
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(value))
    assert shares(path, bounded) == {"tissue": EXPECTED}


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"classification": "Stroma"}, "Stroma"),
        ({"classification": {"name": "Stroma", "colorRGB": -3670016}}, "Stroma"),
        (
            {"classification": {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}},
            "Tumor: Positive",
        ),
        ({"objectType": "annotation", "name": "region 7"}, "unclassified"),
        ({"classification": None}, "unclassified"),
    ],
)
def test_classifications_of_qupath(properties: dict[str, Any], name: str) -> None:
    found = parse_geojson(json.dumps([feature([SQUARE], properties)]).encode(), "x")
    assert list(found.polygons) == [name]


def test_asap_groups_rectangles_and_exclusions(bounded: BaseReader, tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(ASAP)
    whole = [1.0, 1.0, 0.0, 0.25]
    assert shares(path, bounded) == {"Exclusion": [0.25, 0.25, 0, 0], "Tumor": whole}
    assert shares(path, bounded, exclude="Exclusion") == {"Tumor": EXPECTED}
    classes = {"cancer": "Tumor", "all": ["Tumor", "Exclusion"]}
    assert shares(path, bounded, classes=classes) == {"all": whole, "cancer": whole}
    assert "1 outlines of the mask have no area" in read_regions(path, bounded).note


def test_a_class_that_is_not_there_is_said(bounded: BaseReader, tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text(ASAP)
    regions = read_regions(path, bounded, MaskConfig(min_class={"tumor": 0.5}))
    assert regions.names == ("Exclusion", "Tumor", "tumor")
    assert "no class 'tumor', but Exclusion, Tumor" in regions.note


def raster(values: tuple[int, int] = (1, 2)) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The square and its hole at 1/16: the square is values[0], the hole values[1]."""
    found = np.zeros((64, 96), np.uint8)
    found[8:40, 16:48] = values[0]
    found[16:24, 24:32] = values[1]
    return found


def test_histoqc_masks_cover_the_canvas(bounded: BaseReader, tmp_path: Path) -> None:
    path = tmp_path / "a.svs_mask_use.png"
    for image in (Image.fromarray(raster((255, 0))), Image.fromarray(raster((255, 0)) > 0)):
        image.save(path)
        assert shares(path, bounded) == {"mask": EXPECTED}


@pytest.mark.parametrize("kind", ["png", "palette", "tiff", "pyramid", "panda", "16 bits", "rgba"])
def test_rasters_of_values(kind: str, bounded: BaseReader, tmp_path: Path) -> None:
    path = tmp_path / "mask"
    values = raster()
    if kind == "png":
        Image.fromarray(values).save(path, "PNG")
    elif kind == "palette":
        image = Image.fromarray(values)
        image.putpalette([7 * i % 256 for i in range(768)])  # colors say nothing
        image.save(path, "PNG")
    elif kind == "rgba":
        Image.fromarray(np.dstack([values] * 3 + [values * 0 + 255])).save(path, "PNG")
    elif kind == "panda":  # the value in red
        tifffile.imwrite(path, np.dstack([values, values * 0, values * 0]), photometric="rgb")
    elif kind == "16 bits":
        tifffile.imwrite(path, values.astype(np.uint16))
    elif kind == "pyramid":
        with tifffile.TiffWriter(path) as tiff:
            tiff.write(np.kron(values, np.ones((4, 4), np.uint8)), subifds=1, tile=(64, 64))
            tiff.write(values, subfiletype=1, tile=(64, 64))
    else:
        tifffile.imwrite(path, values, compression="zlib")
    found = shares(path, bounded, classes={"tumor": 1, "any": [1, 2]})
    assert found == {"any": [1.0, 1.0, 0.0, 0.25], "tumor": EXPECTED}


def test_a_raster_of_the_scanned_part(bounded: BaseReader, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(raster((9, 0))[4:60, 8:72]).save(path)
    assert shares(path, bounded, frame="bounds") == {"mask": EXPECTED}
    with pytest.raises(SlideError, match="PG-M03"):
        read_regions(path, bounded)


# What is refused


def refused(data: bytes, slide: Any, tmp_path: Path, **settings: Any) -> SlideError:
    path = tmp_path / "mask"
    path.write_bytes(data)
    with pytest.raises(SlideError) as caught:
        read_regions(path, slide, MaskConfig(**settings))
    return caught.value


BOMB = b"""<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>
<ASAP_Annotations>&b;</ASAP_Annotations>"""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"hello", "neither"),
        (b"\xff\xd8\xff\xe0 a JPEG", "PNG"),
        (b"{", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"type": "Topology"}', "no GeoJSON"),
        (b'[{"type": "Feature", "geometry": {"type": "Circle", "coordinates": []}}]', "unknown"),
        (b'[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": 3}}]', "coord"),
        (b"[3]", "no object"),
        (json.dumps([feature([[[0, 0], [1, 0], [float("nan"), 3]]])]).encode(), "not finite"),
        (json.dumps([feature([[[0, 0], [1, 0], [1e300, 3]]])]).encode(), "beyond"),
        (json.dumps([feature([[[0, 0], ["x", 0], [1, 3]]])]).encode(), "positions"),
        (json.dumps([feature([[[0, 0], [10**400, 0], [1, 3]]])]).encode(), "positions"),
        (json.dumps([feature([SQUARE], {"classification": 5})]).encode(), "classification"),
        (BOMB, "DOCTYPE"),
        (BOMB.decode().replace("1.0", '1.0" encoding="utf-16').encode("utf-16"), "DOCTYPE"),
        (b"<a><b></a>", "XML of 'a'"),
        (b"<ASAP_Annotations><b>", "not valid XML"),
        (b"<Annotations/>", "not of ASAP"),
        (b"\x1f\x8b broken", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n broken", "cannot"),
        (b"II*\0\x08\0\0\0", "Error"),
    ],
)
def test_what_cannot_be_understood_is_refused(
    data: bytes, why: str, bounded: BaseReader, tmp_path: Path
) -> None:
    error = refused(data, bounded, tmp_path)
    assert error.code == "PG-M02"
    assert why.lower() in str(error).lower()


def test_a_packed_bomb_is_refused(
    bounded: BaseReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathgen.tiling.masks.MAX_TEXT", 2**20)
    assert "more than" in str(refused(gzip.compress(b"[" + b" " * 2**21), bounded, tmp_path))


def png(values: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


def test_several_values_need_names(bounded: BaseReader, tmp_path: Path) -> None:
    error = refused(png(raster((1, 2))), bounded, tmp_path)
    assert error.code == "PG-M04"
    assert "Besides 0 it holds 1, 2" in str(error)
    error = refused(png(raster()), bounded, tmp_path, classes={"a": "Tumor"})
    assert error.code == "PG-M04"


def test_colors_are_no_values(bounded: BaseReader, tmp_path: Path) -> None:
    picture = np.dstack([raster(), raster((3, 4)), raster((5, 6))])
    assert "color picture" in str(refused(png(picture), bounded, tmp_path, classes={"a": 1}))


@pytest.mark.parametrize(("height", "fits"), [(64, True), (65, True), (63, True), (66, False),
                                              (50, False)])  # fmt: skip
def test_a_raster_of_other_proportions_is_refused(
    height: int, fits: bool, bounded: BaseReader, tmp_path: Path
) -> None:
    path = tmp_path / "mask"
    path.write_bytes(png(np.ones((height, 96), np.uint8)))
    if fits:
        read_regions(path, bounded)
    else:
        assert refused(path.read_bytes(), bounded, tmp_path).code == "PG-M03"


def test_outlines_of_a_larger_slide_are_refused(bounded: BaseReader, tmp_path: Path) -> None:
    far = [[x * 9 + 1600, y * 9] for x, y in SQUARE]
    assert refused(json.dumps([tumor([far])]).encode(), bounded, tmp_path).code == "PG-M03"


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["type", "features", "geometry", "coordinates", "properties", "x",
                         "classification", "geometries", "name", "names"]), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(values, st.sampled_from(["Polygon", "MultiPolygon", "GeometryCollection", "Point"]))
def test_any_json_is_read_or_refused(value: Any, kind: str) -> None:
    bare = {"type": "Feature", "properties": value, "geometry": value}
    inner = {"type": "Feature", "geometry": {"type": kind, "coordinates": value}}
    for one in (value, [value], [bare], [inner], {"type": "FeatureCollection", "features": value}):
        try:
            found = parse_geojson(json.dumps(one).encode(), "x")
        except SlideError as error:
            assert error.code == "PG-M02"  # noqa: PT017 - either way is right
        else:
            for polygon in itertools.chain(*found.polygons.values()):
                assert np.isfinite(polygon.exterior).all()
                assert len(polygon.exterior) >= 3


@given(st.integers(0, len(ASAP) - 1), st.binary(min_size=1, max_size=12))
def test_any_damage_to_xml_is_read_or_refused(at: int, noise: bytes) -> None:
    data = ASAP.encode()
    try:
        parse_asap(data[:at] + noise + data[at + len(noise) :], "x")
    except SlideError as error:
        assert error.code == "PG-M02"  # noqa: PT017 - either way is right
