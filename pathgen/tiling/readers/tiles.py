"""The tiles of one TIFF directory: where they lie, and how their bytes become pixels.

A tile may be decoded at half, a quarter or an eighth of its size. Of a JPEG tile only the low
frequencies are then turned into pixels, which costs less; any other is averaged after decoding.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pathgen.tiling.readers.tilejpeg import DamagedTile, Space, TileJpeg

#: Reductions that every tile can be decoded at.
SHRINKS = (1, 2, 4, 8)
#: TIFF compressions by their tag: JPEG; JPEG 2000 as Aperio writes it (YCbCr, RGB) and in general.
JPEG, APERIO_YCC, APERIO_RGB, JPEG2000 = 7, 33003, 33005, 34712
#: Bytes between two tiles that are read along rather than asked for apart.
GAP = 16 * 1024
#: Most bytes asked for at once,
STRETCH = 8 * 2**20
#: and held before they are decoded, but for a single tile that has more.
PORTION = 32 * 2**20


class Codec(Protocol):
    """Bytes of a tile to pixels, RGB uint8 (height / shrink, width / shrink, 3)."""

    def decode(self, data: bytes, index: int, shrink: int) -> NDArray[np.uint8]:
        """Raises DamagedTile, also for what other decoders would paint gray."""
        ...


@dataclass(frozen=True)
class JpegCodec:
    """JPEG through libjpeg-turbo; warnings count as damage."""

    size: tuple[int, int]
    jpeg: TileJpeg

    def decode(self, data: bytes, index: int, shrink: int) -> NDArray[np.uint8]:
        return self.pixels(self.jpeg.whole(data), shrink)

    def pixels(self, file: bytes, shrink: int) -> NDArray[np.uint8]:
        """Of a tile that `jpeg.whole` has made a file. Raises DamagedTile."""
        import simplejpeg

        width, height = (side // shrink for side in self.size)
        try:
            pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
                file, "RGB", min_height=height, min_width=width
            )
        except ValueError as error:
            raise DamagedTile(str(error)) from error
        if pixels.shape != (height, width, 3):
            found = f"{pixels.shape[1]} x {pixels.shape[0]}"
            raise DamagedTile(f"it holds {found} pixels instead of {width} x {height}")
        return pixels


@dataclass(frozen=True)
class Jpeg2000Codec:
    """JPEG 2000 through OpenJPEG."""

    size: tuple[int, int]
    ycc: bool
    """whether the components are YCbCr without saying so, as Aperio's 33003"""

    def decode(self, data: bytes, index: int, shrink: int) -> NDArray[np.uint8]:
        import imagecodecs

        try:
            pixels = np.asarray(imagecodecs.jpeg2k_decode(data))
        except (imagecodecs.Jpeg2kError, ValueError, RuntimeError) as error:
            raise DamagedTile(str(error)) from error
        if pixels.shape != (self.size[1], self.size[0], 3) or pixels.dtype != np.uint8:
            raise DamagedTile(f"it holds {pixels.dtype} {pixels.shape}, not {self.size} RGB")
        return averaged(_rgb_of_ycc(pixels) if self.ycc else pixels, shrink)


@dataclass(frozen=True)
class PageCodec:
    """What tifffile decodes: no compression, LZW, Deflate and others, predictors included."""

    size: tuple[int, int]
    page: Any

    def decode(self, data: bytes, index: int, shrink: int) -> NDArray[np.uint8]:
        try:
            pixels = self.page.decode(data, index)[0]
        except Exception as error:  # each of its codecs has an exception of its own
            raise DamagedTile(f"{type(error).__name__}: {error}") from error
        if pixels is None or pixels.dtype != np.uint8 or pixels.size != np.prod(self.size) * 3:
            raise DamagedTile("it does not hold a whole tile of RGB")
        return averaged(np.asarray(pixels).reshape(self.size[1], self.size[0], 3), shrink)


@dataclass(frozen=True)
class TiledLevel:
    """One level of a slide as tiles. `size` and `tile` are (width, height) in its pixels."""

    size: tuple[int, int]
    tile: tuple[int, int]
    across: int
    """tiles in a row"""
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    codec: Codec

    @property
    def missing(self) -> bool:
        """Whether some tile has no bytes."""
        return bool((self.counts == 0).any())

    def fetch(self, file: int, indices: Sequence[int]) -> list[bytes]:
        """The bytes of tiles, in the order asked for; empty where the slide has none.

        Neighbors in the file are read together: on a network file system each read is a journey.
        """
        found: dict[int, bytes] = {}
        for stretch in self._stretches(sorted(set(indices), key=lambda i: self.offsets[i])):
            start = int(self.offsets[stretch[0]])
            stop = int(self.offsets[stretch[-1]] + self.counts[stretch[-1]])
            block = _read(file, start, stop - start)
            for index in stretch:
                at = int(self.offsets[index]) - start
                found[index] = block[at : at + int(self.counts[index])]
        return [found[index] for index in indices]

    def portions(self, indices: list[int]) -> Iterator[list[int]]:
        """`indices` in parts whose bytes are fetched together: of a level they fill the memory."""
        ends = np.cumsum(self.counts[indices])
        while indices:
            fit = max(1, int(np.searchsorted(ends, PORTION, side="right")))
            yield indices[:fit]
            indices, ends = indices[fit:], ends[fit:] - ends[fit - 1]

    def _stretches(self, indices: Sequence[int]) -> list[list[int]]:
        """`indices`, sorted by offset, in groups that one read brings."""
        groups: list[list[int]] = []
        start = stop = -1
        for index in indices:
            offset = int(self.offsets[index])
            end = offset + int(self.counts[index])
            if groups and stop <= offset <= stop + GAP and end - start <= STRETCH:
                groups[-1].append(index)
            else:
                groups.append([index])
                start = offset
            stop = end
        return groups


def codec_of(page: Any) -> Codec | None:
    """The codec of a tiled tifffile page; None where OpenSlide has to read it.

    Left to others: more than 8 bits, planes apart, other samples than RGB, CMYK, lossless JPEG.
    """
    size = (int(page.tilewidth), int(page.tilelength))
    bits = page.bitspersample
    if bits != 8 or page.samplesperpixel != 3 or page.planarconfig != 1 or page.sampleformat != 1:
        return None
    compression, space = int(page.compression), _SPACES.get(int(page.photometric))
    if space is None or any(side % max(SHRINKS) for side in size):
        return None
    if compression == JPEG:
        return JpegCodec(size, TileJpeg(space, page.jpegtables))
    if compression in (APERIO_YCC, APERIO_RGB, JPEG2000):
        return Jpeg2000Codec(size, compression == APERIO_YCC)
    return PageCodec(size, page) if space == "rgb" and compression in _BY_TIFFFILE else None


_SPACES: dict[int, Space] = {2: "rgb", 6: "ycbcr"}
#: None, LZW, Deflate (two numbers), PackBits, Zstandard.
_BY_TIFFFILE = frozenset({1, 5, 8, 32946, 32773, 50000})


def averaged(pixels: NDArray[np.uint8], shrink: int) -> NDArray[np.uint8]:
    """Means of `shrink` x `shrink` pixels."""
    if shrink == 1:
        return pixels
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).reduce(shrink))


def _rgb_of_ycc(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    from PIL import Image

    return np.asarray(Image.fromarray(pixels, "YCbCr").convert("RGB"))


def _pread(file: int, length: int, offset: int) -> bytes:
    return os.pread(file, length, offset)


_seeking = threading.Lock()


def _seek_and_read(file: int, length: int, offset: int) -> bytes:
    with _seeking:
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, length)


_read_at: Callable[[int, int, int], bytes] = _pread if hasattr(os, "pread") else _seek_and_read


def _read(file: int, start: int, length: int) -> bytes:
    """Exactly `length` bytes, or DamagedTile: a signal or a network may shorten a read."""
    parts: list[bytes] = []
    while length:
        part = _read_at(file, length, start)
        if not part:
            raise DamagedTile("the file ends before it does")
        parts.append(part)
        start += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
