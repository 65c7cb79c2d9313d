"""The frame table of a DICOM file, checked before libdicom follows it, which dies of a bad one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pathgen.errors import SlideError

MIB = 2**20
#: Headers are smaller than this.
_MOST = 256 * MIB
#: Tag and type of PixelData in explicit little-endian files; its length follows.
_PIXELS = (b"\xe0\x7f\x10\x00OB\x00\x00", b"\xe0\x7f\x10\x00OW\x00\x00")
_HEAD = 12
_ENCAPSULATED = b"\xff\xff\xff\xff"
_ITEM = b"\xfe\xff\x00\xe0"


def check_frames(path: Path) -> None:
    """Whether the offset table of encapsulated frames points at frames.

    Raises:
        SlideError: PG-S03 the file ends before them, PG-S05 it does not.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = _pixels_at(file.read, size)
        if start is None:
            return  # not encapsulated, or told by the reader
        file.seek(start)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if len(head) < 8 or start + 8 + length > size:
            raise _truncated(path, start + 8 + length, size)
        if head[:4] != _ITEM or length % 4:
            raise _damaged(path, "it is none")
        offsets = np.frombuffer(file.read(length), "<u4").astype(np.int64)
        first = start + 8 + length
        if not len(offsets):
            offsets = np.zeros(1, np.int64)
        if offsets[0] or (np.diff(offsets) <= 0).any():
            raise _damaged(path, "its places are out of order")
        for offset in (offsets[0], offsets[-1]):
            file.seek(first + int(offset))
            item = file.read(8)
            stop = first + int(offset) + 8 + int.from_bytes(item[4:], "little")
            if len(item) < 8 or (item[:4] == _ITEM and stop > size):
                raise _truncated(path, max(stop, first + int(offset) + 8), size)
            if item[:4] != _ITEM:
                raise _damaged(path, "there is no frame where it says")


def _truncated(path: Path, needed: int, size: int) -> SlideError:
    return SlideError(
        "slide truncated", code="PG-S03", where=path.name,
        why=f"it declares frames up to byte {needed:,} but has {size:,} ({size / needed:.0%})",
        hint="copy it again",
    )  # fmt: skip


def _pixels_at(read: Callable[[int], bytes], size: int) -> int | None:
    """Where the first item of encapsulated PixelData starts."""
    at, tail = 0, b""
    while at < min(size, _MOST):
        block = read(MIB)
        whole = tail + block
        found = [
            place for sign in _PIXELS if 0 <= (place := whole.find(sign)) <= len(whole) - _HEAD
        ]
        if found:
            stop = min(found) + _HEAD
            return at - len(tail) + stop if whole[stop - 4 : stop] == _ENCAPSULATED else None
        if not block:
            return None
        at += len(block)
        tail = whole[-_HEAD:]
    return None


def _damaged(path: Path, why: str) -> SlideError:
    return SlideError(
        "DICOM frame table is damaged", code="PG-S05", where=path.name, why=why,
        hint="get a fresh copy of the file",
    )  # fmt: skip
