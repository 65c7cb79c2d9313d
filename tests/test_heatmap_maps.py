"""How numbers become colors, pictures and files."""

from __future__ import annotations

import gzip
import json
import uuid
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.stats
import shapely
import tifffile
from helpers_exchange import write_patches
from helpers_heatmap import CORNER, write_scn
from helpers_tiling import tissue_image
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pathgen.errors import ConfigError, DataError
from pathgen.heatmap import colors, tiles
from pathgen.heatmap.answer import Answer, Spread, Voices
from pathgen.heatmap.drawing import nice, um_text
from pathgen.heatmap.files import picture_names
from pathgen.heatmap.pixels import NoPixels, SlidePixels, StorePixels
from pathgen.heatmap.place import Place
from pathgen.heatmap.raster import rasterize
from pathgen.heatmap.result import CAVEAT, Heatmap
from pathgen.heatmap.settings import HeatmapConfig
from pathgen.stores.patches import PatchStore
from pathgen.tiling import open_slide


def heatmap(count: int = 12, seed: int = 0, side: float = 60.0, **known: Any) -> Heatmap:
    """Patches of a grid of four columns, with random numbers."""
    rng = np.random.default_rng(seed)
    attention = rng.dirichlet(np.ones(count)).astype(np.float32)
    cells = np.stack([np.arange(count) % 4, np.arange(count) // 4], 1)
    coords = np.rint(cells * side).astype(np.int64) + (100, 40)
    bounds = (100, 40, 300, int(side * (count // 4 + 1)))
    values: dict[str, Any] = {
        "slide": "S1", "source": "0123", "attention": attention,
        "place": Place(coords, (side, side), 32, bounds, (0.5, 0.5)),
        "evidence": rng.normal(size=(count, 2)).astype(np.float32), "outputs": ("benign", "tumor"),
        "answer": Answer("classes", ("benign", "tumor"), np.array([0.2, 0.8]), 1),
        "voices": Voices(("fold-0",), ("ab",), "held out"),
        "config": HeatmapConfig(longest=240, mpp=1.0),
    }  # fmt: skip
    return Heatmap(**(values | known))


# Rasters


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1), side=st.floats(3, 40), scale=st.floats(0.7, 25),
    count=st.integers(1, 12),
)  # fmt: skip
def test_a_pixel_is_the_mean_of_what_covers_it(
    seed: int, side: float, scale: float, count: int
) -> None:
    """By areas of intersection, for patches that overlap and lie across the frame's edge."""
    rng = np.random.default_rng(seed)
    coords = rng.integers(-20, 110, (count, 2))
    values = rng.normal(size=(count, 2))
    frame = (5.0, -7.0, 90.0, 60.0)
    found = rasterize(values, coords, (side, side * 0.9), frame, scale)
    height, width = found.share.shape
    assert (width, height) == (int(np.ceil(90 / scale)), int(np.ceil(60 / scale)))
    boxes = shapely.box(*coords.T, coords[:, 0] + side, coords[:, 1] + side * 0.9)
    rows, columns = np.indices((height, width)).reshape(2, -1)
    pick = rng.permutation(rows.size)[:40]
    x, y = 5 + columns[pick] * scale, -7 + rows[pick] * scale
    pixels = shapely.box(x, y, x + scale, y + scale)
    areas = shapely.area(shapely.intersection(pixels[:, None], boxes[None])) / scale**2
    for area, row, column in zip(areas, rows[pick], columns[pick], strict=True):
        total = area.sum()
        assert found.share[row, column] == pytest.approx(min(total, 1), abs=1e-5)
        if total > 1e-3:
            wanted = area @ values / total
            assert np.allclose(found.values[:, row, column], wanted, rtol=1e-3, atol=1e-4)
        elif total == 0:
            assert np.isnan(found.values[:, row, column]).all()


def test_equal_values_stay_equal_however_patches_overlap() -> None:
    rng = np.random.default_rng(1)
    found = rasterize(np.full(300, 0.25), rng.integers(0, 500, (300, 2)), (37.3, 37.3),
                      (0, 0, 500, 500), 3.1)  # fmt: skip
    there = np.isfinite(found.values[0])
    assert there.mean() > 0.4
    assert np.allclose(found.values[0][there], 0.25, atol=1e-5)


# Numbers


@given(st.lists(st.integers(0, 20), min_size=1, max_size=50))
def test_percentiles_are_ranks_with_ties_shared(values: list[int]) -> None:
    wanted = (scipy.stats.rankdata(values) - 0.5) / len(values) * 100
    assert np.allclose(colors.percentiles(np.array(values)), wanted)


def test_spread_says_how_few_patches_hold_half() -> None:
    found = Spread.of(np.array([0.6, 0.1, 0.1, 0.1, 0.1]))
    assert (found.patches, found.half, found.highest) == (5, 1, pytest.approx(3))
    assert Spread.of(np.full(8, 1 / 8)).half == 4
    assert Spread.of(np.full(8, 1 / 8)).is_flat
    assert "nearly the same" in Spread.of(np.full(8, 1 / 8)).sentence()


def test_colors_run_evenly_from_dark_to_light() -> None:
    """Perceived lightness of the attention colors only rises; of evidence it peaks at zero."""

    def lightness(kind: colors.Kind) -> NDArray[np.float64]:
        from skimage.color import rgb2lab

        return np.asarray(rgb2lab(colors.table(kind)[None] / 255.0)[0, :, 0])

    # Whole numbers of red, green and blue are up to half of one off.
    assert (np.diff(lightness("attention")) > -0.2).all()
    middle = lightness("evidence")
    assert 118 < middle.argmax() < 138
    balanced = colors.balanced(np.array([-2.0, 0.0, 2.0]), 2.0)
    assert balanced.tolist() == [0.0, 0.5, 1.0]
    red, _, blue = colors.colored(np.array([1.0]), "evidence")[0]
    assert red > blue  # for


@given(st.floats(1e-3, 1e7))
def test_scale_bars_have_lengths_that_people_count_in(most: float) -> None:
    found = nice(most)
    assert most / 2.5 - 1e-9 <= found <= most * (1 + 1e-6)
    assert float(f"{found:.0e}"[0]) in (1, 2, 5)
    assert um_text(2000) == "2,000 µm (2 mm)"


# Pictures


def test_the_scale_bar_is_as_long_as_it_says() -> None:
    """240 pixels show 300 level-0 pixels of 0.5 um: 50 um are a third or less, and 80 pixels."""
    picture, panel = heatmap().picture()
    assert panel.scale == pytest.approx(300 / 240)
    row = np.asarray(picture.convert("L"))[panel.top + panel.height + 15]
    bar = row[panel.left : panel.left + panel.width] < 60
    assert bar[:80].all()
    assert not bar[80:86].any()


def test_without_a_pixel_size_there_is_no_bar_but_a_picture() -> None:
    place = heatmap().place
    bare = heatmap(place=Place(place.coords, place.side, 32, None, None))
    picture, panel = bare.picture()
    row = np.asarray(picture.convert("L"))[panel.top + panel.height + 15]
    assert (row > 60).all()
    assert bare.facts()["patch_um"] is None


def test_every_picture_carries_what_it_does_not_mean() -> None:
    found = heatmap()
    assert "not where tumor is" in CAVEAT
    assert found.legend("attention").caveat == CAVEAT
    assert "not an outline" in found.legend("tumor").caveat
    assert "percentile" in found.legend("attention").title
    raw = heatmap(config=HeatmapConfig(attention="min-max"))
    assert "raw" in raw.legend("attention").title
    with pytest.raises(ConfigError, match="no such map"):
        found.picture("stroma")


def test_labels_and_macros_are_never_shown(tmp_path: Path) -> None:
    """The SCN's macro is red through and through; nothing of the slide is."""
    path = write_scn(tmp_path / "x.scn", tissue_image(640, 512))
    with open_slide(path) as slide:
        place = Place(np.array([CORNER]) + 100, (64.0, 64.0), 32, slide.bounds, (0.5, 0.5))
        found = heatmap(1, place=place, pixels=SlidePixels(slide), evidence=None, outputs=())
        pixels = np.asarray(found.picture()[0]).astype(int)
    assert not ((pixels[..., 0] > 240) & (pixels[..., 1:] < 40).all(-1)).any()


def test_tissue_lies_right_where_the_slide_has_other_bounds_than_its_store(tmp_path: Path) -> None:
    """As when the reader that tiled knew none: then the frame is the whole canvas."""
    path = write_scn(tmp_path / "x.scn", tissue_image(640, 512))
    with open_slide(path) as slide:
        bounds, size = slide.bounds, slide.size
        coords = np.array([bounds[:2]])
        whole = Place(coords, (64.0, 64.0), 32, (0, 0, *size), (0.5, 0.5))
        own = Place(coords, (64.0, 64.0), 32, bounds, (0.5, 0.5))
        large, small = (SlidePixels(slide).overview(place, 4.0) for place in (whole, own))
    x, y = (round(v / 4) for v in bounds[:2])
    assert np.array_equal(large[y : y + small.shape[0], x : x + small.shape[1]], small)
    assert (large[:y] == 255).all()
    assert (large[:, :x] == 255).all()


def test_patches_beyond_the_frame_are_cut_and_not_squeezed(tmp_path: Path) -> None:
    path = write_patches(tmp_path / "S1.h5", "S1")
    with PatchStore.open(path) as store:
        place = Place.of(store.attrs, store.coords(), "S1")
    x, y, width, height = place.frame
    whole = StorePixels(path).overview(place, 2.0)
    inner = replace(place, bounds=(int(x) + 20, int(y) + 20, int(width) - 40, int(height) - 40))
    assert np.array_equal(StorePixels(path).overview(inner, 2.0), whole[10:-10, 10:-10])


def test_stored_patches_make_a_picture_where_there_is_no_slide(tmp_path: Path) -> None:
    path = write_patches(tmp_path / "S1.h5", "S1")
    with PatchStore.open(path) as store:
        place = Place.of(store.attrs, store.coords(), "S1")
        images = store.images()
    shown = StorePixels(path).overview(place, 2.0)  # 64 level-0 pixels are 32 pixels stored
    for (x, y), image in zip(place.coords - place.frame[:2], images, strict=True):
        part = shown[int(y) // 2 : int(y) // 2 + 32, int(x) // 2 : int(x) // 2 + 32]
        assert np.array_equal(part, image)
    assert (shown[:, 64 * 4 // 2 :] == 255).all()


def test_a_sheet_shows_the_patches_asked_for(tmp_path: Path) -> None:
    path = write_patches(tmp_path / "S1.h5", "S1")
    with PatchStore.open(path) as store:
        place = Place.of(store.attrs, store.coords(), "S1")
        images = store.images()
    found = heatmap(len(images), place=place, pixels=StorePixels(path))
    order = found.top(5)
    assert (np.diff(found.attention[order]) <= 0).all()
    sheet = np.asarray(found.montage(order, columns=5))
    for i, row in enumerate(order):
        cell = sheet[16 : 16 + 160, 16 + i * 170 : 16 + i * 170 + 160]
        small = np.asarray(
            Image.fromarray(images[row]).resize((160, 160), Image.Resampling.LANCZOS)
        )
        assert np.array_equal(cell, small)
    with pytest.raises(DataError, match="PG-H04"):
        heatmap(pixels=NoPixels()).montage([0])


def test_files_of_classes_never_share_a_name() -> None:
    outputs = ("a/b", "a b", "A/B", "..")
    names = picture_names(heatmap(evidence=np.zeros((12, 4), np.float32), outputs=outputs))
    assert len({name.casefold() for name in names.values()}) == 5
    assert all("/" not in name and not name.startswith(".") for name in names.values())


def test_a_notebook_gets_one_picture() -> None:
    text = heatmap(slide="<b>S1</b>")._repr_html_()
    assert text.count("data:image/png;base64,") == 1
    assert "<b>" not in text
    assert "predicted tumor" in repr(heatmap())


# Files


def test_many_tiles_are_compressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "GZIP_ABOVE", 10)
    found = heatmap()
    path = found.to_qupath(tmp_path / "x.geojson")
    assert path.name == "x.geojson.gz"
    features = json.loads(gzip.decompress(path.read_bytes()))["features"]
    assert len(features) == 12
    assert len({uuid.UUID(feature["id"]) for feature in features}) == 12
    for feature in features:
        known = feature["properties"]
        assert known["objectType"] == "tile"
        assert known["classification"] == "Attention tile"
        assert list(known["measurements"]) == [
            "attention", "attention percentile", "evidence: benign", "evidence: tumor"
        ]  # fmt: skip
    few = found.to_qupath(tmp_path / "few.geojson", top=3)
    assert few.suffix == ".geojson"


def test_unknown_bounds_are_not_guessed(tmp_path: Path) -> None:
    place = heatmap().place
    bare = heatmap(place=Place(place.coords, place.side, 32, None, None))
    with pytest.raises(DataError, match=r"PG-H03.*--no-bounds-shift"):
        bare.to_qupath(tmp_path / "x.geojson")
    path = bare.to_qupath(tmp_path / "x.geojson", bounds_shift=False)
    first = json.loads(path.read_text())["features"][0]["geometry"]["coordinates"][0][0]
    assert first == place.coords[0].tolist()


def test_deep_zoom_tiles_put_together_are_the_picture(tmp_path: Path) -> None:
    found = heatmap(60, side=75.3, config=HeatmapConfig(mpp=0.5))
    path = found.to_deepzoom(tmp_path / "x.dzi")
    xml = ElementTree.parse(path).getroot()
    size = xml[0].attrib
    width, height = int(size["Width"]), int(size["Height"])
    side, overlap = int(xml.attrib["TileSize"]), int(xml.attrib["Overlap"])
    whole = found.overlay("attention", 1.0)
    assert whole.shape == (height, width, 3)
    levels = sorted((tmp_path / "x_files").iterdir(), key=lambda level: int(level.name))
    last = int(np.ceil(np.log2(max(width, height))))
    assert [level.name for level in levels] == [str(i) for i in range(last + 1)]
    for level in levels:
        shrink = 2 ** (last - int(level.name))
        size_ = -(-width // shrink), -(-height // shrink)
        canvas = np.zeros((size_[1], size_[0], 3), np.uint8)
        for tile in level.iterdir():
            column, row = map(int, tile.stem.split("_"))
            with Image.open(tile) as opened:
                pixels = np.asarray(opened)
            x, y = column * side, row * side
            dx, dy = overlap if column else 0, overlap if row else 0
            part = pixels[dy : dy + side, dx : dx + side]
            canvas[y : y + part.shape[0], x : x + part.shape[1]] = part
        if shrink == 1:
            assert np.abs(canvas.astype(int) - whole).mean() < 2
        assert canvas.any(-1).all()


@pytest.mark.parametrize("kind", ["overlay", "values"])
def test_ome_levels_halve_and_carry_the_scale(tmp_path: Path, kind: str) -> None:
    found = heatmap(80, side=90.5, config=HeatmapConfig(mpp=1.0))
    path = found.to_ome_tiff(tmp_path / "x.ome.tiff", kind)
    with tifffile.TiffFile(path) as tiff:
        levels = tiff.series[0].levels
        sizes = [level.shape[1:] if kind == "values" else level.shape[:2] for level in levels]
    assert sizes[0] == (-(-int(90.5 * 21) // 2), 150)
    assert max(sizes[-1]) <= 512
    for fine, coarse in pairwise(sizes):
        assert coarse == tuple(-(-length // 2) for length in fine)


def test_a_slide_too_large_for_its_scale_is_drawn_coarser() -> None:
    from pathgen.heatmap.pyramid import MOST, MOST_VALUES, map_scale

    place = heatmap().place
    huge = Place(place.coords, place.side, 32, (0, 0, 400_000, 300_000), (0.25, 0.25))
    for most in (MOST, MOST_VALUES // 8):
        scale = map_scale(heatmap(place=huge, config=HeatmapConfig(mpp=1.0)), most)
        assert 400_000 * 300_000 / scale**2 == pytest.approx(most)


def test_an_ordered_answer_that_is_not_the_likeliest_says_why() -> None:
    answer = Answer("ordinal", ("0", "1", "2"), np.array([0.4, 0.25, 0.35]), choice=1)
    assert answer.sentence() == "predicted 1, the median (0.25); 0 0.40, 2 0.35"
    likeliest = Answer("ordinal", ("0", "1", "2"), np.array([0.2, 0.5, 0.3]), choice=1)
    assert likeliest.sentence() == "predicted 1 (0.50); 2 0.30, 0 0.20"
