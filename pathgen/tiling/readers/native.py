"""Tiled TIFF slides without a library between the file and the decoder.

OpenSlide, or the OME header, says what a slide is: sizes, levels, scale, bounds. The pixels come
straight from the tiles: read by position, decoded by libjpeg-turbo or OpenJPEG, at a fraction of
their size where that is all that is needed. `native_beside` says where that gives the same.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.tiling.readers.base import BaseReader
from pathgen.tiling.readers.check import unsupported
from pathgen.tiling.readers.levels import DAMAGE
from pathgen.tiling.readers.tilejpeg import DamagedTile
from pathgen.tiling.readers.tiles import SHRINKS, TiledLevel, codec_of
from pathgen.tiling.slide import Header, Scale

#: Decoded tiles kept per open slide: two rows of tiles of a slide 150,000 pixels wide.
CACHE_BYTES = 256 * 2**20
#: Vendors of OpenSlide whose levels are plain grids of tiles. Others overlap or shift tiles.
PLAIN_GRIDS = frozenset({"aperio", "generic-tiff", "philips"})
#: Gray levels by which two decoders of the same tile may differ.
SAME = 2


class NativeReader(BaseReader):
    """SVS, generic tiled TIFF, Philips TIFF and OME-TIFF, 8 bits RGB."""

    reader = "native"
    path: Path
    read_errors: ClassVar[tuple[type[Exception], ...]] = (OSError, DamagedTile)

    def __init__(
        self, path: Path, override: Scale | None = None, header: Header | None = None
    ) -> None:
        self._known = header
        super().__init__(path, override)
        _ = self.handle  # the tiles must be there, or this is no slide for this reader

    def _describe(self) -> Header:
        return self._known or described(self.path)

    def _open(self) -> _File:
        return _File.of(self.path, self.header)

    def _read(
        self, position: tuple[float, float], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        step = self.downsamples[level]
        x, y = (round(v / step) for v in position)
        return self._region(level, (x, y, x + size[0], y + size[1]), 1)

    def shrinks(self, level: int) -> tuple[int, ...]:
        return SHRINKS

    def read_level(
        self, level: int, box: tuple[int, int, int, int], shrink: int = 1
    ) -> NDArray[np.uint8]:
        with self._decoding(f"level {level}, pixels {box} at 1/{shrink}"):
            return self._region(level, box, shrink)

    def look(
        self, level: int, box: tuple[int, int, int, int], shrink: int = 1
    ) -> NDArray[np.uint8]:
        with self._decoding(f"level {level}, pixels {box} at 1/{shrink}"):
            return self._region(level, box, shrink, spare=True)

    def damage(self, level: int) -> float:
        damaged: set[tuple[int, int]] = self.handle.damaged
        return sum(at == level for at, _ in damaged) / max(1, len(self.tiles(level).counts))

    def tiles(self, level: int) -> TiledLevel:
        levels: tuple[TiledLevel, ...] = self.handle.levels
        return levels[level]

    def tile_bytes(self, level: int, indices: Sequence[int]) -> list[bytes]:
        with self._decoding(f"tiles of level {level}"):
            return self.tiles(level).fetch(self.handle.file, indices)

    def _region(
        self, level: int, box: tuple[int, int, int, int], shrink: int, spare: bool = False
    ) -> NDArray[np.uint8]:
        """The pixels x0, y0, x1, y1 of `level` at 1 / `shrink`; white outside of the slide, and
        with `spare` where it is damaged. Raises DamagedTile."""
        tiled = self.tiles(level)
        across, down = (side // shrink for side in tiled.tile)
        width, height = (-(-side // shrink) for side in tiled.size)
        x0, y0, x1, y1 = box
        out = np.full((y1 - y0, x1 - x0, 3), 255, np.uint8)
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        if left >= right or top >= bottom:
            return out
        columns = range(left // across, (right - 1) // across + 1)
        rows = range(top // down, (bottom - 1) // down + 1)
        indices = [row * tiled.across + column for row in rows for column in columns]
        for index, pixels in self.handle.decoded(level, indices, shrink, spare):
            row, column = divmod(index, tiled.across)
            x, y = column * across, row * down
            a, b = max(left, x), max(top, y)
            c, d = min(right, x + across), min(bottom, y + down)
            out[b - y0 : d - y0, a - x0 : c - x0] = pixels[b - y : d - y, a - x : c - x]
        return out

    def _recover(self) -> None:
        """One damaged tile says nothing of the others."""


@dataclass
class _File:
    """The open file, its levels, and the tiles decoded last."""

    file: int
    levels: tuple[TiledLevel, ...]
    damaged: set[tuple[int, int]] = field(default_factory=set)
    """level and index of tiles that were spared"""
    cache: OrderedDict[tuple[int, int, int], NDArray[np.uint8]] = field(default_factory=OrderedDict)
    held: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    """of the cache: tiles are decoded by several threads"""

    @classmethod
    def of(cls, path: Path, header: Header) -> _File:
        import tifffile

        try:
            with tifffile.TiffFile(path) as tiff:
                levels = levels_of(tiff, header)
        except DAMAGE as error:
            raise SlideError(
                "slide cannot be opened", code="PG-S02", where=path.name, why=str(error),
                hint="check how the file was made or downloaded",
            ) from error  # fmt: skip
        if levels is None:
            what = "a TIFF laid out in another way than the native reader knows"
            raise unsupported(path, f"{what}; --reader openslide may read it")
        return cls(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)), levels)

    def decoded(
        self, level: int, indices: Sequence[int], shrink: int, spare: bool
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(index, pixels) of the tiles that have bytes, in any order.

        Raises DamagedTile, but with `spare` leaves such tiles out and notes them in `damaged`.
        """
        tiled = self.levels[level]
        wanted = []
        for index in indices:
            kept = self._kept((level, index, shrink))
            if kept is not None:
                yield index, kept
            elif tiled.counts[index]:
                wanted.append(index)
        for some in tiled.portions(wanted):
            for index, data in zip(some, tiled.fetch(self.file, some), strict=True):
                try:
                    pixels = tiled.codec.decode(data, index, shrink)
                except DamagedTile:
                    if not spare:
                        raise
                    self.damaged.add((level, index))
                    continue
                self._keep((level, index, shrink), pixels)
                yield index, pixels

    def _kept(self, key: tuple[int, int, int]) -> NDArray[np.uint8] | None:
        with self.lock:
            if key in self.cache:
                self.cache.move_to_end(key)
            return self.cache.get(key)

    def _keep(self, key: tuple[int, int, int], pixels: NDArray[np.uint8]) -> None:
        with self.lock:
            if key in self.cache:  # two threads may have wanted it at once
                return
            self.cache[key] = pixels
            self.held += pixels.nbytes
            while self.held > CACHE_BYTES:
                self.held -= self.cache.popitem(last=False)[1].nbytes

    def close(self) -> None:
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
        self.cache.clear()

    def __del__(self) -> None:
        self.close()


def levels_of(tiff: Any, header: Header) -> tuple[TiledLevel, ...] | None:
    """The directory of each level of `header`; None where one cannot be told or read."""
    levels = []
    pages = _pages_of([page for page in _directories(tiff) if page.is_tiled], header)
    for (width, height), page in zip(header.level_sizes, pages, strict=False):
        codec = codec_of(page)
        if codec is None:
            return None
        offsets = np.asarray(page.dataoffsets, np.int64)
        counts = np.asarray(page.databytecounts, np.int64)
        across, down = (
            -(-page.imagewidth // page.tilewidth),
            -(-page.imagelength // page.tilelength),
        )
        if not len(offsets) == len(counts) == across * down:
            return None
        tile = (page.tilewidth, page.tilelength)
        levels.append(TiledLevel((width, height), tile, across, offsets, counts, codec))
    return tuple(levels) or None


def _pages_of(pages: list[Any], header: Header) -> list[Any]:
    """The page of each level; empty where that cannot be told.

    Philips pads its levels, by less than a tile: small ones all have one size, and their order
    tells them apart where there is no other tiled page. Elsewhere one page alone has the size.
    """
    padded = header.vendor == "philips"
    if padded and len(pages) == len(header.level_sizes):
        pairs = zip(pages, header.level_sizes, strict=True)
        return pages if all(_holds(page, size, padded) for page, size in pairs) else []
    fits = [[p for p in pages if _holds(p, size, padded)] for size in header.level_sizes]
    return [found[0] for found in fits] if all(len(found) == 1 for found in fits) else []


def _holds(page: Any, size: tuple[int, int], padded: bool) -> bool:
    """Whether a page has the size, and if `padded` what fills its last tiles up."""
    more = page.imagewidth - size[0], page.imagelength - size[1]
    slack = (page.tilewidth, page.tilelength) if padded else (1, 1)
    return all(0 <= side < limit for side, limit in zip(more, slack, strict=True))


def _directories(tiff: Any) -> list[Any]:
    """Every directory, sub-directories of the first included, as full pages."""
    pages = []
    for index in range(len(tiff.pages)):
        page = tiff.pages[index]
        pages.append(page)
        if getattr(page, "subifds", None):
            pages += list(page.pages)
    return pages


def described(path: Path) -> Header:
    """What OpenSlide says of a slide; of an OME-TIFF, what its header says."""
    import openslide

    from pathgen.tiling.readers.ometiff import ome_header
    from pathgen.tiling.readers.openslide import OpenSlideReader

    header = ome_header(path)
    if header is None and openslide.OpenSlide.detect_format(str(path)):
        with OpenSlideReader(path) as slide:
            header = slide.header
    if header is None:
        raise unsupported(path, "a TIFF of no tiled pyramid that is known here")
    return header


def native_beside(slide: BaseReader) -> NativeReader | None:
    """The native reader of what OpenSlide has opened as `slide`, if it gives the same pixels.

    That is: a plain grid of tiles in each level, none missing where OpenSlide would fill in from
    another level, and tiles of level 0 that both decode alike.
    """
    if slide.vendor not in PLAIN_GRIDS or not isinstance(slide.path, Path):
        return None
    try:
        native = NativeReader(slide.path, slide.override, slide.header)
    except SlideError as error:
        if error.code in ("PG-S10", "PG-S02"):
            return None
        raise
    filled_in = slide.vendor == "aperio" and any(level.missing for level in native.handle.levels)
    if filled_in or not _agree(native, slide):
        native.close()
        return None
    return native


def _agree(native: NativeReader, slide: BaseReader) -> bool:
    """Whether a tile in the middle is the same; another one where either cannot decode it."""
    level = native.tiles(0)
    full = np.flatnonzero(level.counts)
    for share in (0.5, 0.25, 0.75):
        if not len(full):
            return False
        row, column = divmod(int(full[int(share * len(full))]), level.across)
        position = column * level.tile[0], row * level.tile[1]
        try:
            ours = native.read(position, 0, level.tile)
            theirs = slide.read(position, 0, level.tile)
        except SlideError:
            continue
        return bool(np.abs(ours.astype(np.int16) - theirs).max() <= SAME)
    return False
