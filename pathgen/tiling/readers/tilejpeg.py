"""JPEG tiles of a TIFF as JPEG files of their own.

A TIFF may keep the tables of its tiles once for all of them, and its photometric tag says what the
colors are; a JPEG file has to say both itself. The compressed pixels stay untouched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

Space = Literal["rgb", "ycbcr", "gray"]

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_APP0, _APP14, _SOS = 0xE0, 0xEE, 0xDA
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive
_TRANSFORM = {"rgb": 0, "ycbcr": 1}


class DamagedTile(ValueError):
    """A tile whose bytes cannot be turned into its pixels."""


@dataclass(frozen=True)
class TileJpeg:
    """How the tiles of one TIFF directory become JPEG files.

    `tables` is the directory's JPEGTables tag (347), or None; `space` what its photometric tag
    says, which is also what OpenSlide goes by.
    """

    space: Space
    tables: bytes | None = None

    def whole(self, data: bytes) -> bytes:
        """The tile as a JPEG file that any decoder shows in the right colors.

        The bytes of a tile that is one already come back as they are.

        Raises:
            DamagedTile: the stream has no header.
        """
        if data[:2] != _SOI:
            raise DamagedTile("it does not start as a JPEG")
        said = _said(_head(data))
        if said == self.space or self.space == "gray":
            return _SOI + self._shared + data[2:] if self._shared else data
        return _SOI + self._shared + self._adobe + _plain(data) + data[_start_of_scan(data) :]

    @cached_property
    def _shared(self) -> bytes:
        """The tables without the stream around them, and without what they say of colors.

        Decoders would take it for the tile's; of two the last counts, and JFIF over Adobe.
        """
        tables = self.tables or b""
        return _plain(_SOI + tables.removeprefix(_SOI).removesuffix(_EOI))

    @cached_property
    def _adobe(self) -> bytes:
        """The APP14 segment by which decoders know the color transform."""
        return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([_TRANSFORM[self.space]])


def _head(data: bytes) -> bytes:
    """Up to and with the frame header, where it is easily found; else all of it."""
    at = data.find(b"\xff\xc0\x00\x11\x08", 2, 2048)  # baseline, three components, 8 bits
    return data if at < 0 else data[: at + 19]


@lru_cache(maxsize=256)  # the tiles of a slide begin alike
def _said(data: bytes) -> Space:
    """What a decoder takes the colors for, by the rules of libjpeg."""
    jfif = False
    adobe: int | None = None
    for marker, part in _segments(data):
        if marker == _APP0 and part[4:9] == b"JFIF\0":
            jfif = True
        elif marker == _APP14 and part[4:9] == b"Adobe" and len(part) >= 16:
            adobe = part[15]
        elif marker in _FRAMES:
            if len(part) < 10:
                raise DamagedTile("its frame header is cut off")
            count = part[9]
            ids = part[10 : 10 + 3 * count : 3]
            if count == 1:
                return "gray"
            if jfif:
                return "ycbcr"
            if adobe is not None:
                return "rgb" if adobe == 0 else "ycbcr"
            return "rgb" if ids == b"RGB" else "ycbcr"
    raise DamagedTile("it has no frame header")


def _plain(data: bytes) -> bytes:
    """The segments before the scan but those that say what the colors are."""
    return b"".join(part for marker, part in _segments(data) if marker not in (_APP0, _APP14))


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(marker, segment with its marker) between the start of the image and that of the scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != _SOS:
        length = 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], data[at : at + length]
        at += length


def _start_of_scan(data: bytes) -> int:
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == _SOS:
            return at
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise DamagedTile("its header does not lead to pixels")
