"""Damaged headers: an error or some pixels, but no crash, no hang, and no flood of memory."""

from __future__ import annotations

import os
import resource
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers_readers import TiffKind, write_dicom, write_ome_tiff, write_ome_zarr, write_tiff_slide
from helpers_tiling import tissue_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathgen.errors import PathgenError
from pathgen.tiling import open_slide

EXAMPLES = int(os.environ.get("PATHGEN_FUZZ_EXAMPLES", "15"))
GIB = 2**30


def tiff_spots(path: Path) -> list[int]:
    """The TIFF's head and its first directories."""
    content = path.read_bytes()
    first = struct.unpack("<I", content[4:8])[0]
    return [*range(16), *range(first, min(first + 400, len(content)))]


def head_spots(path: Path) -> list[int]:
    return list(range(min(1500, path.stat().st_size)))


def small() -> np.ndarray:
    return tissue_image(300, 200)


def image_of(path: Path) -> Path:
    Image.fromarray(small()).save(path)
    return path


Kind = tuple[Callable[[Path], Path], str, Callable[[Path], list[int]]]
#: Reader -> a slide for it, the file of it that is damaged ("": itself), and where.
KINDS: dict[str, Kind] = {
    "openslide": (
        lambda path: write_tiff_slide(path / "x.svs", small(), TiffKind(levels=(1,))), "",
        tiff_spots,
    ),
    "native": (
        lambda path: write_tiff_slide(path / "x.svs", small(), TiffKind("jpeg-rgb", levels=(1, 2))),
        "", tiff_spots,
    ),
    "native ome": (lambda path: write_ome_tiff(path / "x", small(), 2), "", tiff_spots),
    "tiffslide": (
        lambda path: write_tiff_slide(path / "x.tif", small(), TiffKind("lzw", "generic")), "",
        tiff_spots,
    ),
    "flat": (lambda path: image_of(path / "x.tif"), "", tiff_spots),
    "flat png": (lambda path: image_of(path / "x.png"), "", head_spots),
    "flat jpeg": (lambda path: image_of(path / "x.jpg"), "", head_spots),
    "dicom": (lambda path: write_dicom(path / "x", small(), (1,)), "0.dcm", head_spots),
    "openslide dicom": (lambda path: write_dicom(path / "x", small(), (1,)), "0.dcm", head_spots),
    "omezarr": (
        lambda path: write_ome_zarr(path / "x.ome.zarr", small()), "zarr.json", head_spots,
    ),
    "omezarr 0.4": (
        lambda path: write_ome_zarr(path / "x.ome.zarr", small(), version="0.4"), "0/.zarray",
        head_spots,
    ),
    "omezarr level": (
        lambda path: write_ome_zarr(path / "x.ome.zarr", small()), "0/zarr.json", head_spots,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_damaged_header_does_worse_than_an_error(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write, part, spots = KINDS[kind]
    slide = write(tmp_path_factory.mktemp("fuzz"))
    file = slide / part if part else slide
    whole, places = file.read_bytes(), spots(file)
    reader = kind.partition(" ")[0]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @settings(max_examples=EXAMPLES)
    @given(chance=st.data())
    def damaged(chance: st.DataObject) -> None:
        content = bytearray(whole)
        for at in chance.draw(st.lists(st.sampled_from(places), min_size=1, max_size=16)):
            content[at] = chance.draw(st.integers(0, 255))
        file.write_bytes(content)
        start = time.monotonic()
        for name in (reader, "auto"):
            with suppress(PathgenError), open_slide(slide, name) as found:  # and nothing else
                found.read((0, 0), 0, (300, 200))
        assert time.monotonic() - start < 5

    damaged()
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert after - before < GIB
