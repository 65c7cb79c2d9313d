"""Which directory is which level, and which colors a tile's bytes mean."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from helpers_tiling import tissue_image
from numpy.typing import NDArray
from PIL import Image

from pathgen.tiling.readers import open_with
from pathgen.tiling.readers.native import levels_of
from pathgen.tiling.readers.tilejpeg import TileJpeg
from pathgen.tiling.slide import Header

TILE = 256
SPACING = (
    '<DataObject ObjectType="PixelDataRepresentation"><Attribute Name="DICOM_PIXEL_SPACING" '
    'Group="0x0028" Element="0x0030" PMSVR="IDoubleArray">&quot;{0}&quot; &quot;{0}&quot;'
    '</Attribute><Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_NUMBER" Group="0x1001" '
    'Element="0x8B02" PMSVR="IUInt16">{1}</Attribute></DataObject>'
)
PHILIPS = (
    '<?xml version="1.0" encoding="UTF-8" ?><DataObject ObjectType="DPUfsImport">'
    '<Attribute Name="PIM_DP_SCANNED_IMAGES" Group="0x301D" Element="0x1003" '
    'PMSVR="IDataObjectArray"><Array><DataObject ObjectType="DPScannedImage">'
    '<Attribute Name="PIM_DP_IMAGE_TYPE" Group="0x301D" Element="0x1004" PMSVR="IString">WSI'
    '</Attribute><Attribute Name="PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE" Group="0x1001" '
    'Element="0x8B01" PMSVR="IDataObjectArray"><Array>{}</Array></Attribute></DataObject>'
    "</Array></Attribute></DataObject>"
)


def padded(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """White to the right and below, up to whole tiles."""
    height, width = image.shape[:2]
    more = (-height % TILE, -width % TILE)
    return np.pad(image, ((0, more[0]), (0, more[1]), (0, 0)), constant_values=255)


@pytest.fixture
def philips(tmp_path: Path) -> Path:
    """1,600 x 1,200 pixels of 0.25 um and six levels, three of which fit into one tile."""
    path, image = tmp_path / "p.tiff", tissue_image(1600, 1200, seed=3)
    spacings = "".join(SPACING.format(0.00025 * 2**i, i) for i in range(6))
    with tifffile.TiffWriter(path) as tiff:
        for i in range(6):
            small = Image.fromarray(image).resize((1600 >> i, 1200 >> i), Image.Resampling.BOX)
            tiff.write(
                padded(np.asarray(small)), tile=(TILE, TILE), photometric="rgb",
                compression="deflate", subfiletype=int(i > 0), software="Philips DP v1.0",
                description=PHILIPS.format(spacings) if i == 0 else f"level={i}", metadata=None,
            )  # fmt: skip
    return path


def test_several_levels_of_a_philips_slide_lie_in_one_tile(philips: Path) -> None:
    with open_with(philips, "auto", None) as slide, openslide.OpenSlide(philips) as other:
        assert (slide.vendor, slide.reader) == ("philips", "native")
        assert slide.level_sizes == other.level_dimensions
        assert sum(max(size) <= TILE for size in slide.level_sizes) == 3
        for level, size in enumerate(slide.level_sizes):
            theirs = np.asarray(other.read_region((0, 0), level, size).convert("RGB"))
            np.testing.assert_array_equal(slide.read((0, 0), level, size), theirs)


def test_levels_that_their_order_does_not_tell_are_left_to_others(philips: Path) -> None:
    sizes = tuple((1600 >> i, 1200 >> i) for i in range(6))

    def found(vendor: str, level_sizes: tuple[tuple[int, int], ...]) -> bool:
        steps = tuple(float(sizes[0][0] // size[0]) for size in level_sizes)
        header = Header(vendor, sizes[0], level_sizes, steps, (0, 0, *sizes[0]))
        with tifffile.TiffFile(philips) as tiff:
            return levels_of(tiff, header) is not None

    assert found("philips", sizes)
    assert found("philips", sizes[:2])  # each is one page's alone
    assert not found("philips", sizes[:5])  # one of two pages, and nobody knows which
    assert not found("philips", (*sizes[:5], (300, 20)))
    assert not found("generic-tiff", sizes)  # others pad nothing


# Colors of JPEG tiles

ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
SAYS = {"rgb": ADOBE + b"\0", "ycbcr": ADOBE + b"\1", "jfif": JFIF, "nothing": b""}


def segments(data: bytes) -> list[bytes]:
    """Those before the scan."""
    found, at = [], 2
    while data[at + 1] != 0xDA:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        found.append(data[at : at + length])
        at += length
    return [*found, data[at:]]


@pytest.mark.parametrize("space", ["rgb", "ycbcr"])
@pytest.mark.parametrize("tables_say", SAYS)
@pytest.mark.parametrize("tile_says", SAYS)
def test_the_photometric_tag_says_what_the_colors_are(
    space: str, tables_say: str, tile_says: str
) -> None:
    """Whatever markers the tables and the tile hold."""
    picture = Image.fromarray(tissue_image(64, 64, seed=1))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, subsampling=0, keep_rgb=space == "rgb")
    *head, scan = segments(buffer.getvalue())
    shared = b"".join(part for part in head if part[1] in (0xC4, 0xDB))
    tables = b"\xff\xd8" + SAYS[tables_say] + shared + b"\xff\xd9"
    frame = b"".join(part for part in head if part[1] == 0xC0)
    if space == "rgb":  # component ids 1, 2, 3, as where nothing tells RGB from YCbCr
        ids = {b"R": b"\1", b"G": b"\2", b"B": b"\3"}
        for letter, number in ids.items():
            frame = frame.replace(letter + b"\x11", number + b"\x11")
            scan = scan[:12].replace(letter, number) + scan[12:]
    data = b"\xff\xd8" + SAYS[tile_says] + frame + scan
    file = TileJpeg(space, tables).whole(data)  # type: ignore[arg-type]
    known = np.asarray(picture)
    np.testing.assert_allclose(np.asarray(Image.open(io.BytesIO(file))), known, atol=16)
    np.testing.assert_allclose(simplejpeg.decode_jpeg(file), known, atol=16)


def test_a_tile_that_is_a_file_comes_back_as_it_is() -> None:
    buffer = io.BytesIO()
    Image.fromarray(tissue_image(64, 64)).save(buffer, "JPEG")
    data = buffer.getvalue()
    assert TileJpeg("ycbcr").whole(data) is data
    assert TileJpeg("ycbcr", b"\xff\xd8" + ADOBE + b"\0\xff\xd9").whole(data) is data
