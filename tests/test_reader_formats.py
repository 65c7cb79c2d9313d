"""Formats and their oddities: read right, or refused by name; and where the pixel size is from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from helpers_readers import picture, shrunk, write_dicom, write_ome_tiff, write_ome_zarr
from helpers_tiling import tissue_image, write_svs, write_tiff
from PIL import Image

from pathgen.cli.options import Reader
from pathgen.errors import PathgenError, SlideError
from pathgen.tiling import TileConfig, find_slides, open_slide, slide_info, tile
from pathgen.tiling.readers import ORDER, READERS
from pathgen.tiling.readers.check import slide_identity


def code_of(path: Path, reader: str = "auto") -> str:
    with pytest.raises(PathgenError) as caught, open_slide(path, reader) as slide:
        slide.read((0, 0), 0, (64, 64))
    return caught.value.code


# OME-Zarr


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"axes": "zcyx"}, "ok"),
        ({"image": picture().astype(np.uint16)}, "PG-S10"),
        ({"image": picture()[..., :2]}, "PG-S10"),
        ({"unit": None}, "PG-S07"),
        ({"unit": "parsec"}, "PG-S07"),
        ({"unit": "nanometer", "mpp": 500.0}, "ok"),
        ({"unit": "millimeter", "mpp": 0.0005}, "ok"),
    ],
)
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_ome_zarr(tmp_path: Path, version: str, change: dict[str, object], code: str) -> None:
    options = {"image": picture(), "version": version, **change}
    folder = write_ome_zarr(tmp_path / "x.ome.zarr", **options)  # type: ignore[arg-type]
    if code == "ok":
        with open_slide(folder) as slide:
            assert slide.mpp == pytest.approx(0.5)
            assert slide.mpp_source == "ome"
            assert np.array_equal(slide.read((0, 0), 0, slide.size), picture())
    elif code == "PG-S07":
        with open_slide(folder) as slide, pytest.raises(SlideError, match="PG-S07"):
            _ = slide.mpp
    else:
        assert code_of(folder) == code


def test_ome_zarr_chunks_that_are_not_there_have_the_fill_value(tmp_path: Path) -> None:
    folder = write_ome_zarr(tmp_path / "x.ome.zarr", picture(), skip=["0/c/0/1/2"])
    with open_slide(folder) as slide:
        pixels = slide.read((0, 0), 0, slide.size)
    assert (pixels[100:200, 200:300] == 0).all()
    assert np.array_equal(pixels[200:], picture()[200:])


def test_ome_zarr_by_bioformats2raw(tmp_path: Path) -> None:
    """The image is in a group of its own, the first of several."""
    outer = tmp_path / "x.zarr"
    write_ome_zarr(outer / "0", picture(), version="0.4", axes="tczyx")
    write_ome_zarr(outer / "1", picture(100, 100), version="0.4", axes="tczyx")
    (outer / ".zgroup").write_text('{"zarr_format": 2}')
    (outer / ".zattrs").write_text('{"bioformats2raw.layout": 3}')
    slides, _ = find_slides(tmp_path)
    assert [(slide.path, slide.name) for slide in slides] == [(outer, "x")]
    with open_slide(outer) as slide:
        assert np.array_equal(slide.read((0, 0), 1, slide.level_sizes[1]), shrunk(picture(), 2.3))


def test_damaged_ome_zarr_metadata(tmp_path: Path) -> None:
    folder = write_ome_zarr(tmp_path / "x.ome.zarr", picture(200, 200))
    facts = json.loads((folder / "zarr.json").read_text())

    def refused(change: dict[str, object]) -> str:
        image = {**facts["attributes"]["ome"]["multiscales"][0], **change}
        (folder / "zarr.json").write_text(
            json.dumps({**facts, "attributes": {"ome": {"multiscales": [image]}}})
        )
        return code_of(folder)

    assert refused({"datasets": [{"path": "../../secret"}]}) == "PG-S05"
    assert refused({"datasets": [{"path": "/etc"}]}) == "PG-S05"
    assert refused({"datasets": []}) == "PG-S05"
    assert refused({"axes": [{"name": "q"}]}) == "PG-S05"
    assert refused({"axes": [{"name": "y"}, {"name": "x"}]}) == "PG-S05"
    assert refused({"datasets": [{"path": "7"}]}) == "PG-S11"
    level = json.loads((folder / "0/zarr.json").read_text())
    level["chunk_grid"]["configuration"]["chunk_shape"] = [3, 2**20, 2**20]
    (folder / "0/zarr.json").write_text(json.dumps(level))
    assert refused({}) == "PG-S06"
    (folder / "0/zarr.json").write_text('{"zarr_format": 3, "node_type": "array"}')
    assert refused({}) == "PG-S05"
    (folder / "zarr.json").write_text("{")
    assert code_of(folder) == "PG-S02"


def test_identity_of_ome_zarr_sees_changes(tmp_path: Path) -> None:
    folder = write_ome_zarr(tmp_path / "x.ome.zarr", picture())
    copy = tmp_path / "copy.ome.zarr"
    shutil.copytree(folder, copy)
    first = slide_identity(folder)
    assert slide_identity(copy) == first
    (copy / "0/c/0/2/2").write_bytes((copy / "0/c/0/2/2").read_bytes() + b"x")
    assert slide_identity(copy) != first
    shutil.rmtree(copy)
    shutil.copytree(folder, copy)
    (copy / "1/c/0/0/0").unlink()
    assert slide_identity(copy) != first


@pytest.mark.parametrize("kind", ["dicom", "omezarr"])
def test_folders_that_are_slides_are_tiled(tmp_path: Path, kind: str) -> None:
    image = tissue_image(700, 520)
    folder = tmp_path / "in"
    if kind == "dicom":
        write_dicom(folder / "one", image)
    else:
        write_ome_zarr(folder / "one.ome.zarr", image)
    config = TileConfig(patch_size=64, reader=kind)  # type: ignore[arg-type]
    report = tile(folder, tmp_path / "out", config, workers=0)
    assert [(row.slide, row.reason) for row in report.rows] == [("one", "ok")]
    assert report.rows[0].mpp_source == {"dicom": "dicom", "omezarr": "ome"}[kind]
    assert tile(folder, tmp_path / "out", config, workers=0).kept == 1


# DICOM


@pytest.mark.parametrize("reader", ["openslide", "dicom"])
def test_dicom_series(tmp_path: Path, reader: str) -> None:
    """Any file of it stands for the series; its other images are named, and other series are not
    mixed in."""
    folder = write_dicom(tmp_path / "one", picture(), (1, 4), flavors=("LABEL", "THUMBNAIL"))
    other = write_dicom(tmp_path / "other", picture(300, 200), (1,))
    shutil.copy(other / "0.dcm", folder / "9.dcm")
    for path in (folder / "0.dcm", folder / "1.dcm", folder / "2.dcm"):
        with open_slide(path, reader) as slide:
            assert slide.level_sizes == ((701, 523), (175, 130))
            assert slide.associated == ("label", "thumbnail")
            assert (slide.mpp, slide.mpp_source, slide.objective) == (0.5, "dicom", 20)
    assert "CANARY" not in repr(slide_info(folder / "0.dcm", reader))
    with open_slide(folder / "9.dcm", reader) as slide:
        assert slide.size == (300, 200)
    assert [s.name for s in find_slides(folder)[0]] == ["one/0", "one/9"]


@pytest.mark.parametrize("reader", ["openslide", "dicom"])
def test_dicom_that_is_refused(tmp_path: Path, reader: str) -> None:
    deep = write_dicom(tmp_path / "deep", picture(), (1,), bits=16)
    assert code_of(deep, reader) == "PG-S10"
    label = write_dicom(tmp_path / "label", picture(), (1,), flavors=("LABEL",))
    (label / "0.dcm").unlink()
    assert code_of(label, reader) == "PG-S11"


def test_jpeg_ls_goes_to_wsidicom(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "x", picture(), syntax="1.2.840.10008.1.2.4.80")
    assert code_of(folder, "openslide") == "PG-S10"
    with open_slide(folder) as slide:
        assert np.array_equal(slide.read((0, 0), 0, slide.size), picture())


# Plain images


def flat(path: Path) -> np.ndarray:
    with open_slide(path, mpp=0.5) as slide:
        assert (getattr(slide, "reader", ""), len(slide.level_sizes)) == ("flat", 1)
        return slide.read((0, 0), 0, slide.size).astype(int)


def test_plain_tiffs_that_are_read(tmp_path: Path) -> None:
    image = picture(301, 203)
    path = tmp_path / "x.tif"
    planes = np.moveaxis(image, -1, 0)
    for pixels, options in [
        (image, {"rowsperstrip": 203}), (image, {"rowsperstrip": 3}), (image, {"bigtiff": True}),
        (image, {"byteorder": ">"}), (planes, {"planarconfig": "separate"}),
        (image, {"compression": "zstd"}), (image, {"compression": "lzw", "predictor": True}),
    ]:  # fmt: skip
        tifffile.imwrite(path, pixels, photometric="rgb", **options)
        assert np.array_equal(flat(path), image), options
    Image.fromarray(image).convert("CMYK").save(path)
    assert np.abs(flat(path) - image).max() <= 1
    Image.fromarray(image).save(path, compression="jpeg", quality=95)  # YCbCr, shared tables
    assert np.abs(flat(path) - image).mean() < 3
    gray = np.asarray(Image.fromarray(image).convert("L"))
    Image.fromarray(gray).save(path)
    assert np.array_equal(flat(path), np.repeat(gray[..., None], 3, axis=2))
    tifffile.imwrite(path, 255 - gray, photometric="miniswhite")
    assert np.array_equal(flat(path)[..., 0], gray)
    palette = Image.fromarray(image).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(path)
    assert np.array_equal(flat(path), np.asarray(palette.convert("RGB")))
    clear = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
    clear[:50, :, 3] = 0
    Image.fromarray(clear).save(path)
    assert (flat(path)[:50] == 255).all()
    assert np.array_equal(flat(path)[50:], image[50:])


@pytest.mark.parametrize(
    ("options", "name"),
    [({"compression": "webp"}, "WebP"), ({"compression": "jpegxl"}, "JPEG XL"),
     ({"compression": "lerc"}, "LERC")],
)  # fmt: skip
def test_plain_tiffs_that_are_refused_by_name(
    tmp_path: Path, options: dict[str, object], name: str
) -> None:
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, picture(200, 200), photometric="rgb", **options)  # type: ignore[arg-type]
    with pytest.raises(SlideError, match=rf"PG-S10.*{name}"):
        open_slide(path)


def test_deep_and_huge_images_are_refused_by_name(tmp_path: Path) -> None:
    deep = picture(100, 100).astype(np.uint16) * 257
    (tmp_path / "deep.png").write_bytes(imagecodecs.png_encode(deep))
    assert code_of(tmp_path / "deep.png") == "PG-S10"
    tifffile.imwrite(tmp_path / "float.tif", deep.astype(np.float32), photometric="rgb")
    assert code_of(tmp_path / "float.tif") == "PG-S10"
    huge = np.zeros((9500, 9500), np.uint8)
    huge[::2] = np.random.default_rng(0).integers(0, 255, 9500, np.uint8)
    tifffile.imwrite(tmp_path / "huge.tif", huge, compression="deflate", rowsperstrip=9500)
    assert code_of(tmp_path / "huge.tif") == "PG-S10"


# Which reader, and where the pixel size is from


def test_the_names_of_readers_are_the_same_everywhere() -> None:
    option = TileConfig.model_fields["reader"].annotation.__args__  # type: ignore[union-attr]
    command = Reader.__origin__.__args__[0].__args__
    assert set(option) == set(command) == {"auto", *READERS}
    assert {name for row in ORDER.values() for name in row} == set(READERS)


def test_a_reader_that_does_not_fit_says_so(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "x.svs", tissue_image(300, 200), levels=(1,))
    for reader in ("dicom", "omezarr"):
        with pytest.raises(SlideError, match=rf"PG-S10.*{reader}.*leave out --reader|PG-S10"):
            open_slide(path, reader)
    folder = write_ome_zarr(tmp_path / "x.ome.zarr", picture(100, 100))
    for reader in set(READERS) - {"omezarr"}:
        assert code_of(folder, reader) == "PG-S10"


@pytest.mark.parametrize("source", ["vendor", "dicom", "ome-zarr", "ome-tiff", "tiff", "csv",
                                    "option", "none"])  # fmt: skip
def test_sources_of_the_pixel_size(tmp_path: Path, source: str) -> None:
    """One slide a source; what the vendor, DICOM or OME says comes before resolution tags."""
    image, folder = tissue_image(400, 300), tmp_path / "in"
    folder.mkdir()
    options: dict[str, float] = {}
    given: Path = folder
    if source == "vendor":
        write_svs(folder / "x.svs", image, mpp=0.5)
    elif source == "dicom":
        write_dicom(folder / "x", image, (1,))
    elif source == "ome-zarr":
        write_ome_zarr(folder / "x.ome.zarr", image)
    elif source == "ome-tiff":
        write_ome_tiff(folder / "x", image)
    elif source == "tiff":
        write_tiff(folder / "x.tif", image, per_cm=(20_000, 20_000))
    elif source == "csv":
        write_svs(folder / "x.svs", image, mpp=0.25)
        given = tmp_path / "list.csv"
        given.write_text("slide,mpp\nin/x.svs,0.5\n")
    else:
        write_tiff(folder / "x.tif", image)
        options = {"slide_mpp": 0.5} if source == "option" else {}
    row = tile(given, tmp_path / "out", TileConfig(patch_size=64, **options), workers=0).rows[0]
    if source == "none":
        assert (row.state, row.reason) == ("failed", "PG-S07")
    else:
        assert row.mpp == pytest.approx(0.5)
        assert row.mpp_source == source.removesuffix("-tiff").removesuffix("-zarr")


def test_ome_size_comes_before_resolution_tags(tmp_path: Path) -> None:
    xml = ('<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
           '<Image><Pixels PhysicalSizeX="250" PhysicalSizeXUnit="nm" PhysicalSizeY="250" '
           'PhysicalSizeYUnit="nm"/></Image></OME>')  # fmt: skip
    for tile_side in (None, 128):
        path = write_tiff(
            tmp_path / "x.tif", tissue_image(300, 200), per_cm=(20_000, 20_000), tile=tile_side,
            description=xml,
        )  # fmt: skip
        with open_slide(path) as slide:
            assert slide.mpp == 0.25
            assert slide.mpp_source == "ome"
