"""The directories of a TIFF, read with limits, before any decoder sees the file.

Decoders trust a TIFF's directory: a truncated file then looks "unsupported", and a forged one
can ask for any amount of memory. This walk reads tags only and never allocates more than the
file's own size.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pathgen.errors import SlideError
from pathgen.tiling.readers.remote import SlidePath

MAX_DIRECTORIES = 4096
MAX_TAGS = 4096
MAX_SIDE = 2**20
MAX_PIXELS = 40_000_000_000
MAX_PIXELS_PER_BYTE = 20_000
MAX_TILE_PIXELS = 2**26

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4,
          16: 8, 17: 8, 18: 8}  # fmt: skip
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}


@dataclass(frozen=True)
class Directory:
    """What one image file directory declares."""

    width: int
    height: int
    bits: int
    samples: int
    tiled: bool
    last_byte: int
    """one past the last byte of pixel data it points at"""
    resolution: tuple[float, float] | None = None
    """pixels per centimeter, x and y; None where the file gives no unit"""
    children: tuple[int, ...] = field(default=(), repr=False)
    compression: int = 1
    """value of the Compression tag; 1 = none"""


def read_directories(path: Path) -> list[Directory]:
    """Every directory of the TIFF, sub-directories included, checked against the file's size.

    Raises:
        SlideError: PG-S03 truncated, PG-S05 damaged directory, PG-S06 implausible size.
    """
    with path.open("rb") as handle:
        return walk_directories(handle, path, path.stat().st_size)


def walk_directories(handle: BinaryIO | RawIOBase, path: SlidePath, length: int) -> list[Directory]:
    """As `read_directories`, of an open file of `length` bytes."""
    directories = _Walk(handle, path, length).all()
    for page in directories:
        if page.last_byte > length:
            raise truncated(path, length, page.last_byte)
        check_size(path, page.width, page.height, length)
    return directories


def truncated(path: SlidePath, length: int, needed: int) -> SlideError:
    """PG-S03: how much of the file is there."""
    return SlideError(
        "slide truncated", code="PG-S03", where=path.name,
        why=f"it declares data up to byte {needed:,} but has {length:,} ({length / needed:.0%}); "
        "usually an interrupted copy",
        hint="copy it again",
    )  # fmt: skip


def beyond_offsets(path: Path) -> bool:
    """Whether a file is too long for the 32-bit offsets of its directories.

    An NDPI above 4 GiB keeps the high halves of its offsets where no TIFF reader looks; OpenSlide
    knows them.
    """
    if path.stat().st_size < 2**32:
        return False
    with path.open("rb") as handle:
        return handle.read(4) == b"II*\0" or path.suffix.lower() == ".ndpi"


def check_size(
    path: SlidePath, width: int, height: int, length: int, *, capped: bool = True
) -> None:
    """PG-S06 when the declared pixels cannot be in `length` bytes; `capped`: nor in any slide."""
    most = MAX_PIXELS_PER_BYTE * max(length, 1)
    if capped:
        most = min(MAX_PIXELS, most)
    if max(width, height) > MAX_SIDE or width * height > most:
        raise SlideError(
            "declared size is implausible", code="PG-S06", where=path.name,
            why=f"{width:,} x {height:,} pixels in {length:,} bytes",
            hint="the file is damaged or forged; get a fresh copy",
        )  # fmt: skip


def damaged(path: SlidePath, why: str) -> SlideError:
    """PG-S05: the directory makes no sense."""
    return SlideError(
        "TIFF directory is damaged", code="PG-S05", where=path.name, why=why,
        hint="get a fresh copy of the file",
    )  # fmt: skip


class _Walk:
    def __init__(self, handle: BinaryIO | RawIOBase, path: SlidePath, length: int) -> None:
        self.handle, self.path, self.length = handle, path, length
        head = self._bytes(0, 8)
        self.order = "<" if head[:2] == b"II" else ">"
        version = struct.unpack(f"{self.order}H", head[2:4])[0]
        self.big = version == 43
        if self.big:
            self.first = struct.unpack(f"{self.order}Q", self._bytes(8, 8))[0]
        else:
            self.first = struct.unpack(f"{self.order}I", head[4:8])[0]

    def all(self) -> list[Directory]:
        found: list[Directory] = []
        seen: set[int] = set()
        waiting = [self.first]
        if not self.first:
            raise damaged(self.path, "it has no directory")
        while waiting:
            offset = waiting.pop(0)
            if not offset:
                continue
            if offset in seen:
                raise damaged(self.path, "its directories form a loop")
            if len(seen) >= MAX_DIRECTORIES:
                raise damaged(self.path, f"more than {MAX_DIRECTORIES} directories")
            seen.add(offset)
            page, following = self._directory(offset)
            found.append(page)
            waiting += [*page.children, following]
        return found

    def _directory(self, offset: int) -> tuple[Directory, int]:
        count_size, entry_size, pointer = (8, 20, "Q") if self.big else (2, 12, "I")
        kind = "Q" if self.big else "H"
        count = struct.unpack(f"{self.order}{kind}", self._bytes(offset, count_size))[0]
        if not 0 < count <= MAX_TAGS:
            raise damaged(self.path, f"a directory with {count} tags")
        size = struct.calcsize(pointer)
        block = self._bytes(offset + count_size, count * entry_size + size)
        tags: dict[int, tuple[int, int, bytes]] = {}
        for i in range(count):
            entry = block[i * entry_size : (i + 1) * entry_size]
            tag, type_, n = struct.unpack(f"{self.order}HH{pointer}", entry[: 4 + size])
            tags[tag] = (type_, n, entry[4 + size :])
        following = struct.unpack(f"{self.order}{pointer}", block[-size:])[0]
        return self._page(tags), following

    def _page(self, tags: dict[int, tuple[int, int, bytes]]) -> Directory:
        width, height = self._one(tags, 256, 0), self._one(tags, 257, 0)
        samples = self._one(tags, 277, 1)
        if not width or not height or not 0 < samples <= 64:
            raise damaged(self.path, f"an image of {width} x {height} with {samples} samples")
        tiled = 324 in tags
        offsets = self._many(tags, 324 if tiled else 273)
        counts = self._many(tags, 325 if tiled else 279)
        if tiled:
            self._check_tiles(tags, width, height, len(offsets))
        last = 0
        n = min(len(offsets), len(counts))
        if n:
            ends = offsets[:n].astype(np.uint64) + counts[:n].astype(np.uint64)
            last = int(ends[counts[:n] > 0].max(initial=0))  # length 0: a missing tile, allowed
        return Directory(
            width, height, self._one(tags, 258, 1), samples, tiled, last,
            self._resolution(tags), tuple(int(v) for v in self._many(tags, 330)[:MAX_TAGS]),
            self._one(tags, 259, 1),
        )  # fmt: skip

    def _check_tiles(
        self, tags: dict[int, tuple[int, int, bytes]], width: int, height: int, found: int
    ) -> None:
        """A decoder makes room for a whole tile before it reads one; OpenSlide dies of it."""
        across, down = self._one(tags, 322, 0), self._one(tags, 323, 0)
        if not across or not down:
            raise damaged(self.path, f"tiles of {across} x {down}")
        if across * down > MAX_TILE_PIXELS:
            raise SlideError(
                "declared size is implausible", code="PG-S06", where=self.path.name,
                why=f"tiles of {across:,} x {down:,} pixels",
                hint="the file is damaged or forged; get a fresh copy",
            )  # fmt: skip
        check_size(self.path, width, height, self.length)
        needed = -(-width // across) * -(-height // down)
        if found < needed:
            raise damaged(self.path, f"places of {found:,} tiles where there are {needed:,}")

    def _resolution(self, tags: dict[int, tuple[int, int, bytes]]) -> tuple[float, float] | None:
        per_unit = {2: 2.54, 3: 1.0}.get(self._one(tags, 296, 2))
        values = []
        for tag in (282, 283):
            if per_unit is None or tag not in tags:
                return None
            raw = self._raw(tags[tag])
            if len(raw) != 8:
                return None
            over, under = struct.unpack(f"{self.order}II", raw)
            values.append(over / under / per_unit if under else 0.0)
        return values[0], values[1]

    def _one(self, tags: dict[int, tuple[int, int, bytes]], tag: int, default: int) -> int:
        values = self._many(tags, tag)
        return int(values[0]) if len(values) else default

    def _many(self, tags: dict[int, tuple[int, int, bytes]], tag: int) -> np.ndarray:
        if tag not in tags or tags[tag][0] not in _INTEGERS:
            return np.zeros(0, np.uint64)
        return np.frombuffer(self._raw(tags[tag]), self.order + _INTEGERS[tags[tag][0]])

    def _raw(self, entry: tuple[int, int, bytes]) -> bytes:
        type_, n, inline = entry
        size = _SIZES.get(type_, 1) * n
        if size <= len(inline):
            return inline[:size]
        offset = struct.unpack(f"{self.order}{'Q' if self.big else 'I'}", inline)[0]
        return self._bytes(offset, size)

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset + size > self.length:
            raise truncated(self.path, self.length, offset + size)
        self.handle.seek(offset)
        return self.handle.read(size) or b""
