"""All readers agree: with OpenSlide where it reads a slide, else with the image that was drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from helpers_readers import (
    CODECS,
    DICOM_CODECS,
    SAME,
    SIZE,
    Image,
    TiffKind,
    far,
    picture,
    shrunk,
    write_dicom,
    write_ome_tiff,
    write_ome_zarr,
    write_tiff_slide,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pil

from pathgen.errors import SlideError
from pathgen.tiling import open_slide

#: Kinds of TIFF slides that OpenSlide reads.
TIFFS = {
    **{f"aperio {codec}": TiffKind(codec, "aperio") for codec in CODECS if codec != "jp2k-34712"},
    **{f"generic {codec}": TiffKind(codec, "generic") for codec in CODECS if "jp2k" not in codec},
    "three levels": TiffKind(levels=(1, 2.7, 8.1)),
    "one level": TiffKind(levels=(1,)),
    "tile of 256": TiffKind(tile=256),
    "BigTIFF": TiffKind(options={"bigtiff": True}),
    "big-endian BigTIFF": TiffKind(options={"bigtiff": True, "byteorder": ">"}),
    "missing tiles": TiffKind(vendor="generic", missing=(1, 7, 29)),
    "missing tiles, none": TiffKind("none", "generic", missing=(1, 7)),
    "predictor": TiffKind("lzw", "generic", options={"predictor": 2}),
}
#: ... and those that it refuses, with the readers that take them.
OTHERS = {
    "big-endian": (TiffKind(options={"byteorder": ">"}), ["tiffslide"]),
    "generic JPEG 2000": (TiffKind("jp2k-34712", "generic"), ["tiffslide"]),
    "strips": (TiffKind("lzw", "generic", levels=(1,), tile=None), ["flat"]),
}
#: Other containers -> the readers that take them.
WRITERS: dict[str, tuple[Callable[[Path, Image], Path], list[str]]] = {
    "OME-Zarr 0.4": (lambda path, image: write_ome_zarr(path, image, version="0.4"), ["omezarr"]),
    "OME-Zarr 0.5": (lambda path, image: write_ome_zarr(path, image), ["omezarr"]),
    "OME-Zarr tczyx": (lambda path, image: write_ome_zarr(path, image, axes="tczyx"), ["omezarr"]),
    "OME-Zarr yxc": (lambda path, image: write_ome_zarr(path, image, axes="yxc"), ["omezarr"]),
    "OME-TIFF": (write_ome_tiff, ["native"]),
    **{
        f"DICOM {syntax}": (
            lambda path, image, syntax=syntax: write_dicom(path, image, syntax=syntax),
            ["dicom"] if syntax.endswith(".80") else ["openslide", "dicom"],
        )
        for syntax in DICOM_CODECS
    },
}
TIFF_READERS = ["openslide", "native", "tiffslide", "auto"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


@pytest.fixture(scope="module")
def slide_of(folder: Path) -> Callable[[str], Path]:
    """The slide of a kind, written once."""
    image = picture()

    def make(kind: str) -> Path:
        path = folder / kind.replace(" ", "-").replace(",", "")
        if path.exists():
            return path
        if kind in WRITERS:
            return WRITERS[kind][0](path, image)
        return write_tiff_slide(path, image, TIFFS[kind] if kind in TIFFS else OTHERS[kind][0])

    return make


@pytest.fixture(scope="module")
def expected(slide_of: Callable[[str], Path]) -> Iterator[Callable[[str], list[Image]]]:
    """Each level as OpenSlide shows it, on white."""
    known: dict[str, list[Image]] = {}

    def levels(kind: str) -> list[Image]:
        if kind not in known:
            known[kind] = openslide_levels(slide_of(kind))
        return known[kind]

    yield levels
    known.clear()


def openslide_levels(path: Path) -> list[Image]:
    entry = path / "0.dcm" if path.is_dir() else path
    with openslide.OpenSlide(entry) as slide:
        return [on_white(slide.read_region((0, 0), level, size))
                for level, size in enumerate(slide.level_dimensions)]  # fmt: skip


def on_white(image: Pil.Image) -> Image:
    white = Pil.new("RGBA", image.size, "white")
    return np.asarray(Pil.alpha_composite(white, image).convert("RGB"))


def padded(level: Image, x: int, y: int, width: int, height: int) -> Image:
    """A part of a level, white outside of it."""
    out = np.full((height, width, 3), 255, np.uint8)
    x0, y0 = max(x, 0), max(y, 0)
    part = level[y0 : max(y + height, 0), x0 : max(x + width, 0)]
    out[y0 - y : y0 - y + part.shape[0], x0 - x : x0 - x + part.shape[1]] = part
    return out


@pytest.mark.parametrize("reader", TIFF_READERS)
@pytest.mark.parametrize("kind", TIFFS)
def test_readers_agree_with_openslide(
    kind: str, reader: str, slide_of: Any, expected: Callable[[str], list[Image]]
) -> None:
    path = slide_of(kind)
    with open_slide(path, reader) as slide, openslide.OpenSlide(path) as other:
        assert slide.size == SIZE == other.dimensions
        assert slide.level_sizes == other.level_dimensions
        assert slide.downsamples == pytest.approx(other.level_downsamples)
        assert slide.bounds == (0, 0, *SIZE)
        assert slide.mpp == pytest.approx(0.5)
        assert slide.mpp_source == ("vendor" if slide.vendor == "aperio" else "tiff")
        assert slide.objective == (20 if slide.vendor == "aperio" else None)
        assert slide.vendor == other.properties["openslide.vendor"]
        assert set(slide.associated) == set(other.associated_images)
        for level, pixels in enumerate(expected(kind)):
            assert far(slide.read((0, 0), level, slide.level_sizes[level]), pixels) <= SAME


@pytest.mark.parametrize("reader", ["native", "tiffslide"])
@pytest.mark.parametrize("kind", ["aperio jpeg-ycbcr-420", "generic lzw", "missing tiles"])
@settings(max_examples=25)
@given(chance=st.data())
def test_any_part_is_openslides(
    kind: str, reader: str, slide_of: Any, expected: Callable[[str], list[Image]],
    chance: st.DataObject,
) -> None:  # fmt: skip
    """Across tiles, across the edge, and beside the slide."""
    levels = expected(kind)
    level = chance.draw(st.integers(0, len(levels) - 1))
    width, height = chance.draw(st.tuples(st.integers(1, 400), st.integers(1, 400)))
    x, y = chance.draw(st.tuples(st.integers(-420, 1000), st.integers(-420, 800)))
    with open_slide(slide_of(kind), reader) as slide:
        step = slide.downsamples[level]
        part = slide.read((x * step, y * step), level, (width, height))
        assert part.shape == (height, width, 3)
        assert far(part, padded(levels[level], x, y, width, height)) <= SAME


@pytest.mark.parametrize("kind", [*OTHERS, *WRITERS])
def test_what_openslide_does_not_read_is_the_image_that_was_written(
    kind: str, slide_of: Any
) -> None:
    """Level 0 within what the codec loses; the first of the readers is also the automatic one."""
    path, image = slide_of(kind), picture()
    readers = (OTHERS[kind] if kind in OTHERS else WRITERS[kind])[1]
    first = None
    for reader in [*readers, "auto"]:
        with open_slide(path, reader) as slide:
            assert slide.size == SIZE
            assert slide.mpp == pytest.approx(0.5)
            pixels = slide.read((0, 0), 0, SIZE)
            assert np.abs(pixels.astype(int) - image).mean() < 2.5
            first = pixels if first is None else first
            assert far(pixels, first) <= SAME
            last = len(slide.level_sizes) - 1
            width, height = slide.level_sizes[last]
            small = shrunk(image, SIZE[0] / width)[:height, :width]
            level = slide.read((0, 0), last, (width, height))[: len(small), : small.shape[1]]
            assert np.abs(level.astype(int) - small).mean() < 12
            assert (slide.read((5000, 5000), 0, (8, 8)) == 255).all()
            name = getattr(slide, "reader", "")
        assert name == (readers[0] if reader == "auto" else reader)


def test_openslide_refuses_the_others(slide_of: Any) -> None:
    """If this fails, OpenSlide reads more now: move the kind to TIFFS."""
    for kind in OTHERS:
        with pytest.raises(SlideError, match=r"PG-S(02|10)"):
            open_slide(slide_of(kind), "openslide")


@pytest.mark.parametrize("reader", ["native", "tiffslide"])
def test_aperio_tiles_that_are_missing(folder: Path, reader: str) -> None:
    """OpenSlide paints over them on coarser levels too; the others show what the file has. So
    such a slide is OpenSlide's."""
    image = picture()
    path = write_tiff_slide(folder / f"holes-{reader}.svs", image, TiffKind(missing=(1,)))
    levels = openslide_levels(path)
    with open_slide(path, reader) as slide:
        assert far(slide.read((0, 0), 0, SIZE), levels[0]) <= SAME
        small = slide.read((0, 0), 1, slide.level_sizes[1])
        assert np.abs(small.astype(int) - shrunk(image, 4.3)).mean() < 5
    with open_slide(path) as chosen:
        assert getattr(chosen, "reader", "") == "openslide"


READ_BY = [
    *[("aperio jpeg-ycbcr-420", name) for name in ("openslide", "native", "tiffslide")],
    *[("DICOM 1.2.840.10008.1.2.4.50", name) for name in ("openslide", "dicom")],
    ("OME-Zarr 0.5", "omezarr"), ("strips", "flat"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "reader"), READ_BY)
def test_threads_and_closed_handles(kind: str, reader: str, slide_of: Any) -> None:
    rng = np.random.default_rng(0)
    places = rng.integers(0, (600, 400), (40, 2)).tolist()
    with open_slide(slide_of(kind), reader) as slide:
        alone = [slide.read((x, y), 0, (150, 150)) for x, y in places]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda at: slide.read((at[0], at[1]), 0, (150, 150)), places))
        assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert np.array_equal(slide.read(places[0], 0, (150, 150)), alone[0])  # opens again
    slide.close()
    slide.close()
