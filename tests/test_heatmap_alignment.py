"""Maps lie where the tissue is: a tumor of known outline, a head that sees it, and every output
read back by other software than wrote it; on a slide without bounds and on one with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import shapely
import tifffile
from helpers_heatmap import (
    CORNER,
    MPP,
    TUMOR,
    MeanColor,
    expected_attention,
    tumor_head,
    write_run,
    write_slides,
)
from numpy.typing import NDArray
from PIL import Image
from shapely import affinity
from shapely.geometry import shape

torch = pytest.importorskip("torch")

from pathgen.errors import DataError  # noqa: E402
from pathgen.extract import extract_features  # noqa: E402
from pathgen.heatmap import Heatmap, HeatmapConfig, SlideModel, load_model  # noqa: E402
from pathgen.tiling import TileConfig, tile  # noqa: E402

#: Level-0 pixels a patch is wide: 48 * 0.77 / 0.5, no whole number; with overlap, 36 more apart.
SIDE = 48 * 0.77 / MPP
TILINGS = {
    "beside": TileConfig(patch_size=48, mpp=0.77, min_hematoxylin=0, min_tissue=0.3),
    "overlapping": TileConfig(
        patch_size=48, mpp=0.77, overlap=24, min_hematoxylin=0, min_tissue=0.3
    ),
}
CASES = [(slide, tiling) for slide in ("plain", "bounded") for tiling in TILINGS]


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_slides(tmp_path_factory.mktemp("slides"))


@pytest.fixture(scope="module")
def models(
    slides: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, SlideModel]:
    found = {}
    for name, config in TILINGS.items():
        root = tmp_path_factory.mktemp(name)
        report = tile(list(slides.values()), root / "tiles", config, workers=0)
        extract_features(MeanColor(), report.stores, root / "features")
        run = write_run(root / "run", [tumor_head()], [{"train": [], "valid": [], "test": []}])
        config_ = HeatmapConfig(longest=600, mpp=1.0, ome="overlay", attention="min-max")
        found[name] = load_model(run, features=root / "features", config=config_, device="cpu")
    return found


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(
    request: pytest.FixtureRequest, slides: dict[str, Path], models: dict[str, SlideModel]
) -> tuple[str, Path, Heatmap]:
    slide, tiling = request.param
    return slide, slides[slide], models[tiling].heatmap(slides[slide])


def tiles_of(path: Path) -> tuple[list[Any], list[dict[str, float]]]:
    features = json.loads(path.read_text())["features"]
    return (
        [shape(feature["geometry"]) for feature in features],
        [feature["properties"]["measurements"] for feature in features],
    )


def overlap_of(one: Any, other: Any) -> float:
    """Intersection over union of two areas."""
    return float(one.intersection(other).area / one.union(other).area)


def hot_tiles(polygons: list[Any], attention: NDArray[np.float64]) -> Any:
    """The union of tiles whose weight is above the middle of the least and the greatest."""
    middle = (attention.min() + attention.max()) / 2
    return shapely.union_all([p for p, v in zip(polygons, attention, strict=True) if v > middle])


def test_tiles_for_qupath_lie_on_the_tumor(case: tuple[str, Path, Heatmap], tmp_path: Path) -> None:
    """Counted from the corner of the scanned part, as QuPath does, or from that of the canvas.

    A tile is hot or not, so the outline is met to within a tile: along the tumor's border of
    length L half a side of a tile may be wrong on the mean.
    """
    slide, _, heatmap = case
    least = 1 - TUMOR.length * SIDE / 2 / TUMOR.area
    corner = (0, 0) if slide == "plain" else CORNER
    for shifted in (True, False):
        heatmap.to_qupath(tmp_path / "x.geojson", bounds_shift=shifted)
        polygons, measures = tiles_of(tmp_path / "x.geojson")
        if not shifted:
            polygons = [affinity.translate(p, -corner[0], -corner[1]) for p in polygons]
        attention = np.array([one["attention"] for one in measures])
        assert len(polygons) == len(heatmap)
        assert all(p.area == pytest.approx(SIDE**2, rel=1e-3) for p in polygons)
        assert attention.sum() == pytest.approx(1, abs=1e-4)
        # Tile by tile: what shapely says of the drawing is what the head weighed of the pixels.
        assert np.allclose(attention, expected_attention(polygons), rtol=0.06)
        assert overlap_of(hot_tiles(polygons, attention), TUMOR) > least
        evidence = np.array([one["evidence: tumor"] for one in measures])
        assert np.corrcoef(evidence, attention)[0, 1] > 0.9
        order = np.argsort(np.argsort(attention))
        assert np.corrcoef([one["attention percentile"] for one in measures], order)[0, 1] > 0.97


@pytest.mark.parametrize("off", [(SIDE / 4, 0.0), (0.0, -SIDE / 4), (CORNER[0], CORNER[1])])
def test_the_check_above_sees_a_quarter_of_a_patch(
    models: dict[str, SlideModel], slides: dict[str, Path], tmp_path: Path,
    off: tuple[float, float],
) -> None:  # fmt: skip
    """And bounds that were forgotten."""
    models["beside"].heatmap(slides["bounded"]).to_qupath(tmp_path / "x.geojson")
    polygons, measures = tiles_of(tmp_path / "x.geojson")
    attention = np.array([one["attention"] for one in measures])
    moved = [affinity.translate(polygon, *off) for polygon in polygons]
    assert not np.allclose(attention, expected_attention(moved), rtol=0.06)


def test_a_finer_map_may_be_asked_of_one_slide(
    models: dict[str, SlideModel], slides: dict[str, Path]
) -> None:
    """Stored features cannot give it, and there is no encoder: that is said."""
    with pytest.raises(DataError, match=r"PG-H01.*finer map needs"):
        models["beside"].heatmap(slides["plain"], config=HeatmapConfig(overlap=0.5))


def test_the_top_tiles_lie_inside(case: tuple[str, Path, Heatmap], tmp_path: Path) -> None:
    _, _, heatmap = case
    heatmap.to_qupath(tmp_path / "top.geojson", top=20)
    polygons, measures = tiles_of(tmp_path / "top.geojson")
    assert len(polygons) == 20
    assert all(polygon.within(TUMOR) for polygon in polygons)
    least = min(one["attention"] for one in measures)
    assert least == pytest.approx(np.sort(heatmap.attention)[-20], rel=1e-4)


def hot(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a picture is yellow, the upper end of the colors: much red and green, little blue."""
    r, g, b = rgb.astype(float).transpose(2, 0, 1)
    return np.asarray((r > 120) & (g > 120) & (b < (r + g) / 2 - 30))


def overlap_in_pixels(mask: NDArray[np.bool_], scale: float, heatmap: Heatmap) -> float:
    """Best intersection over union of hot pixels with those where the mean weight of the tiles
    over a pixel's center is above some share of the greatest."""
    total, count = np.zeros(mask.shape), np.zeros(mask.shape)
    corners = (heatmap.place.coords - heatmap.place.frame[:2]) / scale
    for (x, y), weight in zip(corners, heatmap.attention, strict=True):
        # The pixels with centers i + 0.5 in it.
        x0, y0, x1, y1 = (int(np.ceil(v - 0.5)) for v in (x, y, x + SIDE / scale, y + SIDE / scale))
        total[max(y0, 0) : y1, max(x0, 0) : x1] += weight
        count[max(y0, 0) : y1, max(x0, 0) : x1] += 1
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    shares = np.linspace(0.4, 0.95, 23) * mean.max()
    return max(float((mask & (mean > s)).sum() / (mask | (mean > s)).sum()) for s in shares)


def inside(mask: NDArray[np.bool_], scale: float) -> float:
    """Share of hot pixels in the tumor, drawn by shapely."""
    rows, columns = (np.indices(mask.shape) + 0.5) * scale
    return float(shapely.contains_xy(TUMOR, columns, rows)[mask].mean())


def test_the_picture_is_hot_on_the_tumor(case: tuple[str, Path, Heatmap], tmp_path: Path) -> None:
    _, _, heatmap = case
    heatmap.write(tmp_path / "out")
    facts = json.loads((tmp_path / "out/prediction.json").read_text())
    panel = facts["pictures"]["attention.png"]
    with Image.open(tmp_path / "out/attention.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    left, top = panel["left"], panel["top"]
    shown = hot(pixels[top : top + panel["height"], left : left + panel["width"]])
    assert overlap_in_pixels(shown, panel["level0_per_pixel"], heatmap) > 0.98
    assert inside(shown, panel["level0_per_pixel"]) > 0.95
    other = pixels[top : top + panel["height"], : panel["width"]]  # the tissue alone
    assert not hot(other).any()


def test_the_ome_tiff_is_hot_on_the_tumor(case: tuple[str, Path, Heatmap], tmp_path: Path) -> None:
    """Read by tifffile with its own scale, level by level, and by OpenSlide."""
    _, _, heatmap = case
    path = heatmap.to_ome_tiff(tmp_path / "x.ome.tiff", "overlay")
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        series = tiff.series[0]
        meta = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
        um = float(meta["PhysicalSizeX"])
        assert um == pytest.approx(1.0)
        assert meta["PhysicalSizeXUnit"] == "µm"
        assert len(series.levels) > 1
        for number, level in enumerate(series.levels):
            shown = hot(level.asarray())
            assert overlap_in_pixels(shown, um / MPP * 2**number, heatmap) > 0.97
            assert inside(shown, um / MPP * 2**number) > 0.95
        per_cm = tiff.pages[0].tags["XResolution"].value
        assert per_cm[0] / per_cm[1] == pytest.approx(10_000 / um, rel=1e-4)
    with openslide.OpenSlide(path) as slide:
        pixels = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    assert overlap_in_pixels(hot(pixels), um / MPP, heatmap) > 0.97


def test_channels_of_numbers_are_means_of_what_covers_a_pixel(
    case: tuple[str, Path, Heatmap], tmp_path: Path
) -> None:
    """By shapely, pixel by pixel, for a sample of them."""
    _, _, heatmap = case
    path = heatmap.to_ome_tiff(tmp_path / "x.ome.tiff", "values")
    with tifffile.TiffFile(path) as tiff:
        meta = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
        found = tiff.series[0].levels[0].asarray()
    names = [channel["Name"] for channel in meta["Channel"]]
    assert names == list(heatmap.measurements())
    assert found.dtype == np.float32
    scale, (x, y) = 1.0 / MPP, heatmap.place.frame[:2]
    boxes = np.array([shapely.box(a, b, a + SIDE, b + SIDE) for a, b in heatmap.place.coords])
    rng = np.random.default_rng(0)
    for row, column in rng.integers(0, found.shape[1:], (60, 2)):
        pixel = shapely.box(
            x + column * scale, y + row * scale, x + (column + 1) * scale, y + (row + 1) * scale
        )
        areas = shapely.area(shapely.intersection(boxes, pixel))
        for channel, values in zip(found, heatmap.measurements().values(), strict=True):
            if areas.sum() < 1e-3:
                assert np.isnan(channel[row, column])
            else:
                wanted = (values * areas).sum() / areas.sum()
                assert channel[row, column] == pytest.approx(wanted, rel=1e-3, abs=1e-7)
