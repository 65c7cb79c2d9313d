"""QuPath's GeoJSON: what is written, and that it comes back at the same place."""

from __future__ import annotations

import gzip
import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_exchange import BLOCK, write_features, write_patches

from pathgen.exchange import export_stores, qupath, verify
from pathgen.stores.patches import PatchStore
from pathgen.tiling import TileConfig, open_slide, tile
from pathgen.tiling.annotations import parse_geojson
from pathgen.tiling.masks import read_regions
from pathgen.tiling.outlines import Outlines, pixels
from pathgen.tiling.tissue import TissueMask

BOUNDS = (100, 60, 1600, 1200)


def tissue() -> TissueMask:
    """Two pieces, one with a hole, over the bounds."""
    mask = np.zeros((75, 100), np.bool_)
    mask[5:40, 10:60] = True
    mask[15:25, 20:30] = False
    mask[50:60, 70:90] = True
    return TissueMask(mask, 4.0, BOUNDS[:2], (16.0, 16.0))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("qupath")
    patches = write_patches(root / "S1.h5", "S1", bounds=BOUNDS, mask=tissue())
    write_features(root / "f/S1.h5", patches, labeled=True)
    export_stores([patches, root / "f"], root / "out", "qupath")
    return root


@pytest.fixture(scope="module")
def features(written: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((written / "out/S1.geojson").read_text())["features"]
    return found


def test_every_feature_follows_the_rules_of_qupath(features: list[dict[str, Any]]) -> None:
    assert len({feature["id"] for feature in features}) == len(features)
    for feature in features:
        assert str(uuid.UUID(feature["id"])) == feature["id"]
        assert feature["type"] == "Feature"
        properties = feature["properties"]
        assert properties["objectType"] in ("tile", "annotation")
        said = properties["classification"]
        assert set(said) == {"name", "color"}
        assert len(said["color"]) == 3
        for value in properties.get("measurements", {}).values():
            assert isinstance(value, int | float) or value == "NaN"


def test_tiles_lie_where_qupath_shows_them(written: Path, features: list[dict[str, Any]]) -> None:
    tiles = [f for f in features if f["properties"]["objectType"] == "tile"]
    with PatchStore.open(written / "S1.h5") as store:
        for tile, (x, y), score in zip(
            tiles, store.coords().tolist(), store.measure("tissue").tolist(), strict=True
        ):
            (ring,) = tile["geometry"]["coordinates"]
            x, y = x - BOUNDS[0], y - BOUNDS[1]
            assert ring == [[x, y], [x + 64, y], [x + 64, y + 64], [x, y + 64], [x, y]]
            measured = tile["properties"]["measurements"]
            assert set(measured) == {"tissue", "hematoxylin"}
            assert measured["tissue"] == pytest.approx(score, rel=1e-5)
    names = [tile["properties"]["classification"]["name"] for tile in tiles[:3]]
    assert names == ["Patch", "stroma", "tumor"]  # labels -1, 0, 1


def test_what_we_write_is_read_back_at_the_same_place(written: Path) -> None:
    found = parse_geojson((written / "out/S1.geojson").read_bytes(), "S1")
    assert found.frame == "bounds"
    assert set(found.polygons) == {"Tissue", "Patch", "stroma", "tumor"}
    # In pixels of the scanned part, as its frame says.
    mask = tissue().pixels
    drawn = pixels(Outlines(found.polygons["Tissue"]), mask.shape, (0, 0), (16.0, 16.0))
    assert np.array_equal(drawn, mask)
    tiles = sum(len(found.polygons[name]) for name in ("Patch", "stroma", "tumor"))
    assert tiles == len(BLOCK)


def test_trident_contours_are_read_back_as_canvas_pixels(written: Path, tmp_path: Path) -> None:
    export_stores(written / "S1.h5", tmp_path / "out", "trident")
    data = (tmp_path / "out/contours_geojson/S1.geojson").read_bytes()
    found = parse_geojson(data, "S1")
    assert found.frame == "canvas"
    mask = tissue().pixels
    drawn = pixels(Outlines(found.polygons["tissue"]), mask.shape, BOUNDS[:2], (16.0, 16.0))
    assert np.array_equal(drawn, mask)


def test_many_tiles_are_compressed_without_a_time(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qupath, "GZIP_ABOVE", 3)
    for name in ("a", "b"):
        export_stores(written / "S1.h5", tmp_path / name, "qupath")
    one, other = ((tmp_path / name / "S1.geojson.gz").read_bytes() for name in ("a", "b"))
    assert one == other
    assert len(json.loads(gzip.decompress(one))["features"]) == len(BLOCK) + 2
    assert verify(tmp_path / "a").good


def test_what_is_not_a_number_is_written_as_qupath_reads_it() -> None:
    assert [qupath.number(value) for value in (float("nan"), 0.25, 1)] == ["NaN", 0.25, 1.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"id": "7"}, "no UUID"),
        ({"geometry": None}, "no geometry"),
        ({"properties": {"classification": {"name": "Tumor"}}}, "no color"),
        ({"properties": {"objectType": "patch"}}, "not known"),
        ({"properties": {"measurements": {"a": "high"}}}, "no number"),
    ],
)
def test_verification_names_what_qupath_would_refuse(
    features: list[dict[str, Any]], tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    text = json.dumps({"type": "FeatureCollection", "features": [{**features[0], **change}]})
    (tmp_path / "x.geojson").write_text(text)
    (finding,) = verify(tmp_path, "qupath").findings
    assert finding.state == "error"
    assert said in finding.what


@pytest.mark.data
def test_a_bounded_slide_goes_out_and_comes_back(data: Path, tmp_path: Path) -> None:
    """The SCN declares a canvas of 52,800 x 153,464 with a small scanned part."""
    path = data / "slides/leica_colon.scn"
    config = TileConfig(patch_size=512, mpp=1.0)
    report = tile([path], tmp_path / "tiles", config, workers=0)
    export_stores(report.stores, tmp_path / "out", "qupath")
    with open_slide(path) as slide, PatchStore.open(report.stores[0]) as store:
        assert slide.bounds[0] > 0
        regions = read_regions(tmp_path / "out/leica_colon.geojson", slide)
        side = store.patch_size_level0
        shares = regions.shares(store.coords(), (side, side))
        by_name = dict(zip(regions.names, shares.T, strict=True))
        assert np.allclose(by_name["Patch"], 1, atol=1e-3)
        assert np.allclose(by_name["Tissue"], store.measure("tissue"), atol=0.02)


def test_tiatoolbox_reads_the_tiles(written: Path) -> None:
    storage = pytest.importorskip("tiatoolbox.annotation.storage")
    store = storage.DictionaryStore.from_geojson(written / "out/S1.geojson")
    found = list(store.values())
    tiles = [item for item in found if item.properties.get("objectType") == "tile"]
    assert len(tiles) == len(BLOCK)
    with PatchStore.open(written / "S1.h5") as patches:
        corners = {tuple(xy) for xy in (patches.coords() - BOUNDS[:2]).tolist()}
    assert {tuple(map(int, tile.geometry.bounds[:2])) for tile in tiles} == corners
    assert all(tile.geometry.area == 64 * 64 for tile in tiles)


@pytest.mark.data
@pytest.mark.filterwarnings("ignore")
def test_lazyslide_puts_the_tiles_where_they_were_cut(data: Path, tmp_path: Path) -> None:
    lazyslide = pytest.importorskip("lazyslide")
    wsidata = pytest.importorskip("wsidata")
    path = data / "slides/leica_colon.scn"
    report = tile([path], tmp_path / "tiles", TileConfig(patch_size=512, mpp=1.0), workers=0)
    export_stores(report.stores, tmp_path / "out", "qupath")
    wsi = wsidata.open_wsi(path, store=None, reader="openslide")
    lazyslide.io.load_annotations(
        wsi, tmp_path / "out/leica_colon.geojson", in_bounds=True, key_added="ours"
    )
    found = wsi.shapes["ours"]
    tiles = found[found["classification_name"] == "Patch"]
    with PatchStore.open(report.stores[0]) as patches:
        wanted = {tuple(xy) for xy in patches.coords().tolist()}
    assert set(tiles.geometry.bounds[["minx", "miny"]].itertuples(index=False, name=None)) == wanted
