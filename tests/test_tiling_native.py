"""The native reader: the slide's own tiles, at their size or smaller, copied or decoded."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from helpers_tiling import tissue_image, write_svs
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2hed

import pathgen
from pathgen.errors import SlideError
from pathgen.stores.patches import COPIED, NATIVE, RESAMPLED, PatchSpec, PatchStore
from pathgen.tiling import TileConfig
from pathgen.tiling.grid import ReadPlan, TileGrid
from pathgen.tiling.readers import open_with
from pathgen.tiling.readers.native import NativeReader, native_beside
from pathgen.tiling.readers.openslide import OpenSlideReader
from pathgen.tiling.readers.tilejpeg import DamagedTile, TileJpeg
from pathgen.tiling.readers.tiles import JpegCodec, PageCodec, TiledLevel
from pathgen.tiling.stain import stain_scores

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,536 x 1,024 at 0.5 um, JPEG tiles of 256 px, levels 1 and 4."""
    return write_svs(tmp_path_factory.mktemp("native") / "a.svs", tissue_image(seed=5))


def zeroed(source: Path, out: Path, tile: int, level: int = 0) -> Path:
    """A copy of a slide with the pixels of one tile overwritten."""
    data = bytearray(source.read_bytes())
    with tifffile.TiffFile(source) as tiff:
        page = [page for page in tiff.pages if page.is_tiled][level]
        start, length = page.dataoffsets[tile], page.databytecounts[tile]
    data[start + length // 2 : start + length] = bytes(length - length // 2)
    out.write_bytes(data)
    return out


# ------------------------------------------------------------------------------------- the tiles


@pytest.mark.parametrize("space", ["rgb", "ycbcr"])
@pytest.mark.parametrize("tables", [False, True])
def test_a_tile_becomes_a_file_that_other_decoders_read_alike(space: str, tables: bool) -> None:
    picture = Image.fromarray(tissue_image(256, 256, seed=1))
    buffer = io.BytesIO()
    options = {"keep_rgb": True} if space == "rgb" else {}
    picture.save(buffer, "JPEG", quality=95, subsampling=0, **options)
    whole = buffer.getvalue()
    with Image.open(io.BytesIO(whole)) as opened:
        expected = np.asarray(opened.convert("RGB"))
    data, shared = split(whole) if tables else (whole, None)
    file = TileJpeg(space, shared).whole(without_application_data(data))  # type: ignore[arg-type]
    with Image.open(io.BytesIO(file)) as opened:
        np.testing.assert_array_equal(np.asarray(opened.convert("RGB")), expected)
    codec = JpegCodec((256, 256), TileJpeg(space, shared))  # type: ignore[arg-type]
    assert np.abs(codec.decode(data, 0, 1).astype(int) - expected).max() <= 1


def segments(data: bytes) -> list[tuple[int, bytes]]:
    found, at = [], 2
    while data[at + 1] != 0xDA:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append((data[at + 1], data[at : at + length]))
        at += length
    return [*found, (0xDA, data[at:])]


def split(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG without its tables, and the tables alone, as a TIFF keeps them."""
    parts = segments(data)
    tables = b"".join(part for marker, part in parts if marker in (0xDB, 0xC4))
    rest = b"".join(part for marker, part in parts if marker not in (0xDB, 0xC4))
    return b"\xff\xd8" + rest, b"\xff\xd8" + tables + b"\xff\xd9"


def without_application_data(data: bytes) -> bytes:
    kept = (part for marker, part in segments(data) if marker not in (0xE0, 0xEE))
    return b"\xff\xd8" + b"".join(kept)


@example(b"\xff\xd8\xff\xc0\x00\x02")  # a frame header that ends at once
@given(st.binary(max_size=64) | st.binary(max_size=60).map(lambda b: b"\xff\xd8" + b))
def test_no_bytes_do_worse_than_damaged(data: bytes) -> None:
    with pytest.raises(DamagedTile):
        JpegCodec((256, 256), TileJpeg("ycbcr")).decode(data, 0, 1)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(0, 40_000), min_size=1, max_size=12),
    gaps=st.lists(st.integers(0, 40_000), min_size=12, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_bytes_of_tiles_come_back_whatever_lies_between(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], gaps: list[int], order: object
) -> None:
    rng = np.random.default_rng(len(lengths))
    places = list(range(len(lengths)))
    order.shuffle(places)  # type: ignore[attr-defined]
    offsets, at = np.zeros(len(lengths), np.int64), 0
    for place in places:
        at += gaps[place]
        offsets[place] = at
        at += lengths[place]
    data = rng.bytes(at + 10)
    path = tmp_path_factory.getbasetemp() / "tiles.bin"
    path.write_bytes(data)
    counts = np.array(lengths, np.int64)
    codec = PageCodec((16, 16), None)
    level = TiledLevel((16 * len(lengths), 16), (16, 16), len(lengths), offsets, counts, codec)
    wanted = [*places[::2], *places[::-1]]
    file = os.open(path, os.O_RDONLY)
    try:
        found = level.fetch(file, wanted)
    finally:
        os.close(file)
    assert found == [data[offsets[i] : offsets[i] + counts[i]] for i in wanted]


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_smaller_decode_is_near_the_average(svs: Path, shrink: int) -> None:
    with NativeReader(svs) as slide:
        full = slide.read_level(0, (256, 0, 1280, 1024)).astype(float)
        small = slide.read_level(0, (256 // shrink, 0, 1280 // shrink, 1024 // shrink), shrink)
    mean = full.reshape(1024 // shrink, shrink, 1024 // shrink, shrink, 3).mean((1, 3))
    assert np.abs(small - mean).mean() < 2
    assert abs((small - mean).mean()) < 0.3  # no shift in brightness


# ------------------------------------------------------------------------------------ the choice


def test_it_is_chosen_where_it_is_the_same(svs: Path, tmp_path: Path) -> None:
    with open_with(svs, "auto", None) as slide:
        assert slide.reader == "native"
    odd = write_svs(tmp_path / "odd.svs", tissue_image(700, 530), levels=(1, 3))
    with open_with(odd, "auto", None) as slide, openslide.OpenSlide(odd) as other:
        assert slide.reader == "native"
        assert slide.level_sizes == other.level_dimensions
        for level, (width, height) in enumerate(slide.level_sizes):
            theirs = np.asarray(other.read_region((0, 0), level, (width, height)).convert("RGB"))
            np.testing.assert_array_equal(slide.read((0, 0), level, (width, height)), theirs)


def test_where_openslide_fills_in_missing_tiles_it_is_left_to_it(svs: Path, tmp_path: Path) -> None:
    data = bytearray(svs.read_bytes())
    with tifffile.TiffFile(svs) as tiff:
        counts = tiff.pages[0].tags["TileByteCounts"]
        data[counts.valueoffset : counts.valueoffset + 4] = bytes(4)
    holed = tmp_path / "holed.svs"
    holed.write_bytes(data)
    with OpenSlideReader(holed) as slide:
        assert native_beside(slide) is None


def test_what_it_cannot_lay_out_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "strips.tif"
    tifffile.imwrite(path, tissue_image(300, 200), photometric="rgb", rowsperstrip=16)
    with pytest.raises(SlideError, match="PG-S10"):
        open_with(path, "native", None)


# ------------------------------------------------------------------------------------- OME-TIFF


@pytest.mark.parametrize(
    ("unit", "size", "mpp"), [("µm", 0.25, 0.25), ("nm", 250.0, 0.25), ("mm", 0.0005, 0.5)]
)
def test_an_ome_tiff_with_its_pyramid_in_sub_directories(
    tmp_path: Path, unit: str, size: float, mpp: float
) -> None:
    image = tissue_image(1024, 768, seed=2)
    path = tmp_path / "x.ome.tif"
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        metadata = {"axes": "YXS", "PhysicalSizeX": size, "PhysicalSizeXUnit": unit,
                    "PhysicalSizeY": size, "PhysicalSizeYUnit": unit}  # fmt: skip
        tiff.write(image, subifds=1, metadata=metadata, **options)
        tiff.write(image[::2, ::2], subfiletype=1, **options)
    with open_with(path, "auto", None) as slide:
        assert (slide.reader, slide.vendor, slide.mpp_source) == ("native", "ome-tiff", "ome")
        assert slide.mpp == pytest.approx(mpp)
        assert slide.level_sizes == ((1024, 768), (512, 384))
        np.testing.assert_array_equal(slide.read((0, 0), 0, (1024, 768)), image)
        np.testing.assert_array_equal(slide.read((0, 0), 1, (512, 384)), image[::2, ::2])


# -------------------------------------------------------------------------------------- the plan


def test_a_coarser_scale_is_decoded_smaller(svs: Path) -> None:
    with NativeReader(svs) as slide:
        plan = ReadPlan.for_spec(slide, PatchSpec(size=128, mpp=1.0))
        assert (plan.level, plan.shrink, plan.native, plan.mpp_error) == (0, 2, True, 0.0)
        spec = PatchSpec(size=128, mpp=1.2)
        plan = ReadPlan.for_spec(slide, spec)
        assert (plan.level, plan.shrink, plan.native) == (0, 2, False)
        coords = TileGrid.over(slide, spec, plan).coords
        images = plan.read(slide, coords)
    with OpenSlideReader(svs) as slide:
        other = ReadPlan.for_spec(slide, spec)
        assert (other.level, other.shrink) == (0, 1)
        theirs = other.read(slide, coords)
    assert np.abs(images.astype(int) - theirs).mean() < 2


def test_a_grid_between_whole_pixels_is_averaged_from_twice_the_size(svs: Path) -> None:
    class Shifted(NativeReader):
        @property
        def bounds(self) -> tuple[int, int, int, int]:
            return 3, 1, 1400, 1000

    with Shifted(svs) as slide:
        plan = ReadPlan.for_spec(slide, PatchSpec(size=128, mpp=1.0))
        assert (plan.shrink, plan.native) == (1, False)


# ------------------------------------------------------------------------------------ the stores


def tiled(svs: Path, out: Path, **options: object) -> PatchStore:
    report = pathgen.tile(svs, out, TileConfig(**options), workers=0)
    assert report.counts["done"] == 1, report.rows[0].message
    store = pathgen.open_store(report.stores[0])
    assert isinstance(store, PatchStore)
    return store


def test_tiles_are_copied_bit_for_bit(svs: Path, tmp_path: Path) -> None:
    copied = tiled(svs, tmp_path / "a", mpp=0.5)
    assert set(copied.table.read("made")) == {COPIED}
    with tifffile.TiffFile(svs) as tiff, openslide.OpenSlide(svs) as other:
        page = tiff.pages[0]
        for data, (x, y) in zip(copied.encoded(), copied.coords().tolist(), strict=True):
            index = y // 256 * 6 + x // 256
            tiff.filehandle.seek(page.dataoffsets[index])
            raw = tiff.filehandle.read(page.databytecounts[index])
            scan = raw[raw.index(b"\xff\xda") :]
            assert data.endswith(scan)  # the compressed pixels are untouched
            with Image.open(io.BytesIO(data)) as image:
                theirs = other.read_region((x, y), 0, (256, 256)).convert("RGB")
                assert np.abs(np.asarray(image, int) - np.asarray(theirs)).max() <= 1
    np.testing.assert_array_equal(copied.images([0])[0], decoded(copied.encoded([0])[0]))


def decoded(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(
    ("options", "made"),
    [({"copy_tiles": False}, NATIVE), ({"codec": "png"}, NATIVE),
     ({"patch_size": 224}, NATIVE), ({"mpp": 0.8, "patch_size": 96}, RESAMPLED),
     ({"mpp": 1.0, "patch_size": 128}, RESAMPLED)],
)  # fmt: skip
def test_what_is_no_tile_as_it_stands_is_decoded(
    svs: Path, tmp_path: Path, options: dict[str, object], made: int
) -> None:
    store = tiled(svs, tmp_path / "a", **{"mpp": 0.5, **options})
    assert set(store.table.read("made")) == {made}


@pytest.mark.parametrize("options", [{"overlap": 128}, {"edge": "pad"}, {"edge": "shift"}])
def test_each_patch_says_how_it_was_made(
    svs: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    store = tiled(svs, tmp_path / "a", mpp=0.5, min_tissue=0.01, **options)
    whole = ~(store.coords() % 256).any(axis=1)
    whole &= (store.coords() + 256 <= [1536, 1024]).all(axis=1)
    np.testing.assert_array_equal(store.table.read("made"), np.where(whole, COPIED, NATIVE))
    assert store.grid().tolist() == sorted(store.grid().tolist())


def test_scores_are_the_same_however_a_patch_is_stored(svs: Path, tmp_path: Path) -> None:
    copied = tiled(svs, tmp_path / "a", mpp=0.5, min_hematoxylin=0)
    written = tiled(svs, tmp_path / "b", mpp=0.5, min_hematoxylin=0, copy_tiles=False)
    through = tiled(svs, tmp_path / "c", mpp=0.5, min_hematoxylin=0, reader="openslide")
    np.testing.assert_array_equal(copied.coords(), written.coords())
    np.testing.assert_array_equal(copied.coords(), through.coords())
    for name in ("hematoxylin_mean", "eosin_mean"):
        np.testing.assert_allclose(copied.measure(name), written.measure(name), atol=0.004)
        np.testing.assert_allclose(through.measure(name), written.measure(name), atol=1e-6)
    assert np.abs(copied.images().astype(int) - through.images()).mean() < 2


def test_a_grid_may_start_at_the_slides_tiles(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "a.svs", tissue_image(seed=5))

    class Bounded(NativeReader):
        @property
        def bounds(self) -> tuple[int, int, int, int]:
            return 100, 30, 1300, 900

    with Bounded(path) as slide:
        spec = PatchSpec(size=256, mpp=0.5)
        plan = ReadPlan.for_spec(slide, spec)
        plain = TileGrid.over(slide, spec, plan)
        aligned = TileGrid.over(slide, spec, plan, align="native")
        assert (plan.whole_tiles(slide, plain.coords) == -1).all()
        assert (plan.whole_tiles(slide, aligned.coords) >= 0).all()
        np.testing.assert_array_equal(aligned.coords.min(axis=0), [256, 256])
        assert (aligned.coords + 256 <= [1400, 930]).all()


# ------------------------------------------------------------------------------------ the damage


@pytest.mark.parametrize("options", [{}, {"copy_tiles": False}, {"overlap": 32}])
def test_a_damaged_tile_takes_only_its_own_patches_along(
    svs: Path, tmp_path: Path, options: dict[str, object]
) -> None:
    bad = zeroed(svs, tmp_path / "bad.svs", tile=8)  # second row, third column
    with NativeReader(bad) as slide, pytest.raises(SlideError, match="PG-S04"):
        slide.read((512, 256), 0, (256, 256))
    config = TileConfig(mpp=0.5, min_hematoxylin=0, **options)  # type: ignore[arg-type]
    report = pathgen.tile(bad, tmp_path / "strict", config, workers=0)
    assert report.rows[0].reason == "PG-S04"
    assert "damaged tiles" in report.rows[0].message
    whole = tiled(svs, tmp_path / "whole", **config.model_dump())
    lenient = config.model_copy(update={"max_damaged": 0.6})
    report = pathgen.tile(bad, tmp_path / "lenient", lenient, workers=0)
    row = report.rows[0]
    assert row.state == "done"
    assert row.candidates == row.dropped_tissue + row.dropped_damaged + row.patches
    store = pathgen.open_store(report.stores[0])
    lost = {tuple(xy) for xy in whole.coords()} - {tuple(xy) for xy in store.coords()}
    assert len(lost) == row.dropped_damaged > 0
    for x, y in lost:
        assert 512 - 256 < x < 768
        assert 256 - 256 < y < 512


def test_a_mask_is_made_around_a_damaged_tile_and_refused_with_many(
    svs: Path, tmp_path: Path
) -> None:
    bad = zeroed(svs, tmp_path / "bad.svs", tile=1, level=1)
    report = pathgen.tile(bad, tmp_path / "a", TileConfig(mpp=0.5), workers=0)
    assert report.rows[0].reason == "PG-S04"
    config = TileConfig(mpp=0.5, max_damaged=0.6)
    assert pathgen.tile(bad, tmp_path / "b", config, workers=0).rows[0].state == "done"


# --------------------------------------------------------------------------------- on real slides


@pytest.mark.data
def test_stain_scores_are_scikit_images_on_a_thousand_real_patches() -> None:
    folder = DATA / "patches" / "colon5_112"
    if not folder.is_dir():
        pytest.skip("the real patches are not here")
    files = sorted(folder.rglob("*.png")) + sorted(folder.rglob("*.jpg"))
    rng = np.random.default_rng(0)
    chosen = rng.choice(np.array(files), 1000, replace=False)
    images = np.stack([decoded(Path(file).read_bytes()) for file in chosen])
    ours = stain_scores(images, 1)
    theirs = np.maximum(rgb2hed(images) * 6, 0).reshape(len(images), -1, 3)  # to base 10
    for i, stain in enumerate(("hematoxylin", "eosin")):
        np.testing.assert_allclose(ours[f"{stain}_mean"], theirs[..., i].mean(axis=1), rtol=0.01)
        share = (theirs[..., i] > 0.1).mean(axis=1)
        np.testing.assert_allclose(ours[stain], share, atol=0.01)
