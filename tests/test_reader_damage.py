"""The same damage has the same code from every reader."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_readers import (
    CODECS,
    TILE,
    TiffKind,
    picture,
    tile_bytes,
    write_dicom,
    write_ome_zarr,
    write_tiff_slide,
)

from pathgen.errors import PathgenError
from pathgen.tiling import open_slide
from pathgen.tiling.readers import READERS


def code_of(path: Path, reader: str) -> str:
    try:
        with open_slide(path, reader) as slide:
            slide.read((0, 0), 0, slide.size)
    except PathgenError as error:
        return error.code
    return "ok"


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_slide_has_one_code(reader: str, tmp_path: Path) -> None:
    whole = write_tiff_slide(tmp_path / "whole.svs", picture(), TiffKind()).read_bytes()
    cases = {
        "missing.svs": (None, "PG-N01"), "empty.svs": (b"", "PG-S01"),
        "text.svs": (b"no slide\n" * 40, "PG-S02"), "archive.svs": (b"PK\3\4" + whole, "PG-S02"),
        "half.svs": (whole[: len(whole) // 2], "PG-S03"), "most.svs": (whole[:-100], "PG-S03"),
        "loop.svs": (b"II*\0\0\0\0\0" + bytes(99), "PG-S05"),
    }  # fmt: skip
    for name, (content, code) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        assert code_of(tmp_path / name, reader) == code, name


#: Where a reader is laxer than the others. libtiff takes a Deflate stream that ends early. A JPEG
#: 2000 stream has no checksums: any decoder shows what it makes of it.
LAX = {("deflate", "openslide")}


@pytest.mark.parametrize("reader", ["openslide", "native", "tiffslide"])
@pytest.mark.parametrize("codec", [c for c in CODECS if c not in ("none", "jp2k-34712")])
def test_a_damaged_tile_has_one_code(codec: str, reader: str, tmp_path: Path) -> None:
    """Its head lost; and, where the format can tell, its second half lost. Not gray: an error."""
    path = write_tiff_slide(tmp_path / "x.svs", picture(), TiffKind(codec))
    whole = path.read_bytes()
    start, length = tile_bytes(path)
    head = whole[:start] + bytes(40) + whole[start + 40 :]
    half = length // 2
    tail = whole[: start + half] + bytes(length - half) + whole[start + length :]
    path.write_bytes(head)
    assert code_of(path, reader) == "PG-S04"
    with open_slide(path, reader) as slide:  # the others are well
        assert slide.read((TILE, 0), 0, (TILE, TILE)).std() > 5
    path.write_bytes(tail)
    if "jp2k" not in codec and (codec, reader) not in LAX:
        assert code_of(path, reader) == "PG-S04"


@pytest.mark.parametrize("reader", ["openslide", "dicom"])
def test_damaged_dicom_has_one_code(reader: str, tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "x", picture(), (1,)) / "0.dcm"
    whole = path.read_bytes()
    middle = len(whole) // 2
    at = whole.index(b"\xe0\x7f\x10\x00OB") + 12  # the table of frames
    table = whole[: at + 12] + bytes(4) + whole[at + 16 :]  # the second where the first is
    for content, code in (
        (whole[:700], "PG-S03"), (whole[:middle], "PG-S03"), (whole[:-900], "PG-S03"),
        (b"", "PG-S01"), (table, "PG-S05"),
        (whole[: middle - 4000] + bytes(8000) + whole[middle + 4000 :], "PG-S04"),
    ):  # fmt: skip
        path.write_bytes(content)
        assert code_of(path, reader) == code


@pytest.mark.parametrize(("version", "chunk"), [("0.4", "0/0/3/3"), ("0.5", "0/c/0/3/3")])
def test_damaged_chunk(version: str, chunk: str, tmp_path: Path) -> None:
    folder = write_ome_zarr(tmp_path / "x.ome.zarr", picture(), version=version)
    whole = (folder / chunk).read_bytes()
    for content in (b"", bytes(len(whole)), whole[: len(whole) // 2]):
        (folder / chunk).write_bytes(content)
        assert code_of(folder, "omezarr") == "PG-S04"
    with open_slide(folder) as slide:  # the others are well
        assert slide.read((0, 0), 0, (100, 100)).std() > 1
