"""TIFF slides through tiffslide and fsspec, on disk or behind a URL.

tiffslide says what a slide is. Tiles are decoded one by one as the native reader does: tiffslide's
own arrays show gray where a JPEG is damaged and black where a tile is not there.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from threading import Lock
from typing import Any

import numpy as np
import tiffslide
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.tiling.readers.levels import DAMAGE, LevelReader, mean_downsamples, quiet
from pathgen.tiling.readers.openslide import number, tag_scale
from pathgen.tiling.readers.remote import RemotePath, open_remote
from pathgen.tiling.readers.tiff import damaged
from pathgen.tiling.readers.tiles import Codec, codec_of
from pathgen.tiling.slide import Header, Scale

#: What tiffslide lays out as OpenSlide does. Others lack their overlaps, gaps or regions.
VENDORS = frozenset({"aperio", "generic-tiff"})
#: Decoded tiles kept per open slide.
CACHE_BYTES = 128 * 2**20
_ERRORS: tuple[type[Exception], ...] = (*DAMAGE, tiffslide.TiffFileError)


class TiffSlideReader(LevelReader):
    """SVS and generic tiled TIFF, 8 bits RGB."""

    reader = "tiffslide"
    read_errors = DAMAGE

    def _describe(self) -> Header:
        slide: _Slide = self.handle
        facts, vendor = slide.facts, slide.vendor
        sizes = tuple((int(page.imagewidth), int(page.imagelength)) for page in slide.pages)
        names: set[str] = set()
        if vendor == "aperio":
            names = {str(name).lower() for name in slide.slide.associated_images}
        return Header(
            vendor=vendor, size=sizes[0], level_sizes=sizes, downsamples=mean_downsamples(sizes),
            bounds=(0, 0, *sizes[0]), scale=_scale(facts, vendor),
            objective=number(facts, "tiffslide.objective-power"),
            associated=tuple(sorted(names & {"label", "macro", "thumbnail"})),
        )  # fmt: skip

    def _open(self) -> _Slide:
        with ExitStack() as undo:
            place: Any = str(self.path)
            if isinstance(self.path, RemotePath):
                place = undo.enter_context(open_remote(self.path))
            try:
                with quiet("tifffile"):
                    found = undo.enter_context(tiffslide.TiffSlide(place))
                    facts, tiff = found.properties, found.ts_tifffile
                    vendor = _vendor(tiff, facts)
                    pages = _pages(tiff, vendor)
                    codecs = [codec_of(page) if page.is_tiled else None for page in pages]
            except _ERRORS as error:
                raise SlideError(
                    "slide cannot be opened", code="PG-S02", where=self.name,
                    why=f"tiffslide says: {type(error).__name__}: {error}",
                    hint="check how the file was made or downloaded",
                ) from error  # fmt: skip
            self._refuse(vendor, pages, codecs)
            slide = _Slide(found, vendor, pages, [one for one in codecs if one is not None])
            slide.files = undo.pop_all()
            return slide

    def _refuse(self, vendor: str, pages: Sequence[Any], codecs: Sequence[Codec | None]) -> None:
        """PG-S10 for what would not come out as OpenSlide shows it, PG-S05 for damage."""
        if vendor not in VENDORS or not pages or None in codecs:
            why = "not in tiles of 8 bits RGB that are known here"
            raise SlideError(
                "slide not read by tiffslide", code="PG-S10", where=self.name,
                why=f"it is a TIFF {why if vendor in VENDORS else f'from {vendor}'}",
                hint="download it: other readers may take it then"
                if isinstance(self.path, RemotePath) else "leave out --reader",
            )  # fmt: skip
        if not all(map(_complete, pages)):
            raise damaged(self.path, "places of tiles that do not fit its size")

    def _cut(self, level: int, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        x0, y0, x1, y1 = box
        slide: _Slide = self.handle
        page = slide.pages[level]
        across, down = int(page.tilewidth), int(page.tilelength)
        out = np.full((y1 - y0, x1 - x0, 3), 255, np.uint8)
        for row in range(y0 // down, (y1 - 1) // down + 1):
            for column in range(x0 // across, (x1 - 1) // across + 1):
                pixels = slide.tile(level, row * -(-int(page.imagewidth) // across) + column)
                if pixels is None:
                    continue  # the slide has nothing there
                x, y = column * across, row * down
                a, b, c, d = max(x0, x), max(y0, y), min(x1, x + across), min(y1, y + down)
                out[b - y0 : d - y0, a - x0 : c - x0] = pixels[b - y : d - y, a - x : c - x]
        return out


class _Slide:
    """The open file, and the tiles decoded last."""

    def __init__(
        self, slide: Any, vendor: str, pages: Sequence[Any], codecs: Sequence[Codec]
    ) -> None:
        self.slide, self.vendor, self.pages, self.codecs = slide, vendor, pages, codecs
        self.facts: Mapping[str, Any] = slide.properties
        self.kept: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self.bytes = 0
        self.lock = Lock()
        self.files = ExitStack()

    def tile(self, level: int, index: int) -> NDArray[np.uint8] | None:
        """RGB of a tile; None where it has no bytes. Raises what a codec raises."""
        page = self.pages[level]
        offset, count = int(page.dataoffsets[index]), int(page.databytecounts[index])
        if not count:
            return None
        with self.lock:
            if (level, index) in self.kept:
                self.kept.move_to_end((level, index))
                return self.kept[level, index]
            file = self.slide.ts_tifffile.filehandle
            file.seek(offset)
            data = bytes(file.read(count))
        pixels = self.codecs[level].decode(data, index, 1)
        with self.lock:
            if (level, index) not in self.kept:
                self.kept[level, index] = pixels
                self.bytes += pixels.nbytes
            while self.bytes > CACHE_BYTES:
                self.bytes -= self.kept.popitem(last=False)[1].nbytes
        return pixels

    def close(self) -> None:
        self.files.close()
        self.kept.clear()


def _vendor(tiff: Any, facts: Mapping[str, Any]) -> str:
    """As OpenSlide names it, where tiffslide knows too little."""
    if tiff.is_bif:
        return "ventana"
    if tiff.is_philips:
        return "philips"
    if str(tiff.pages[0].software).startswith("MedScan"):
        return "trestle"
    return str(facts.get("tiffslide.vendor") or "generic-tiff")


def _pages(tiff: Any, vendor: str) -> list[Any]:
    """The directory of each level, finest first."""
    if vendor == "aperio":
        return [level.keyframe for level in tiff.series[0].levels]
    pages = [page for page in map(tiff.pages.__getitem__, range(len(tiff.pages))) if page.is_tiled]
    reduced = [page for page in pages if page is not pages[0] and page.subfiletype & 1]
    return sorted([*pages[:1], *reduced], key=lambda page: -int(page.imagewidth))


def _complete(page: Any) -> bool:
    """Whether there is a place for each tile."""
    try:
        tiles = -(-page.imagewidth // page.tilewidth) * -(-page.imagelength // page.tilelength)
        return bool(tiles == len(page.dataoffsets) == len(page.databytecounts))
    except DAMAGE:  # tags of a wrong type
        return False


def _scale(facts: Mapping[str, Any], vendor: str) -> Scale | None:
    x, y = (number(facts, f"tiffslide.mpp-{axis}") for axis in "xy")
    if x is None or y is None:
        return None
    if vendor == "generic-tiff":
        return Scale(x, y, "tiff")
    # Without its own MPP, tiffslide takes an SVS's resolution tags.
    return Scale(x, y, "vendor") if "aperio.MPP" in facts else tag_scale(x, y)
