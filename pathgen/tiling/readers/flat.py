"""Plain images without a pyramid, through Pillow: PNG, JPEG, TIFF."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pathgen.errors import SlideError
from pathgen.tiling.readers.check import unsupported
from pathgen.tiling.readers.levels import LevelReader
from pathgen.tiling.readers.ometiff import ome_scale
from pathgen.tiling.readers.openslide import tag_scale
from pathgen.tiling.readers.tiff import check_size, read_directories
from pathgen.tiling.slide import Header, Scale

#: What Pillow raises on damaged files.
PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError,
    struct.error, UnidentifiedImageError, Image.DecompressionBombError,
)  # fmt: skip

#: TIFF compressions that Pillow knows: none, fax, LZW, JPEG, Deflate, PackBits, LZMA, Zstandard.
_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34925, 50000})
_NAMED = {33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC",
          50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"}  # fmt: skip
_EIGHT_BIT = {"RGB", "RGBA", "L", "LA", "P", "PA", "CMYK", "YCbCr", "1"}


class FlatReader(LevelReader):
    """A plain 8-bit image as a slide of one level, decoded once and kept."""

    reader = "flat"
    path: Path
    read_errors = PILLOW_ERRORS

    def _describe(self) -> Header:
        with self.path.open("rb") as file:
            tiff = file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
        number = read_directories(self.path)[0].compression if tiff else 1
        if number not in _COMPRESSIONS:
            name = _NAMED.get(number, f"method {number}")
            raise unsupported(self.path, f"a TIFF without a pyramid, compressed by {name}")
        with self._image() as image:
            width, height = image.size
            check_size(self.path, width, height, self.path.stat().st_size)
            if image.mode not in _EIGHT_BIT:
                raise unsupported(self.path, f"an image of mode {image.mode}, not 8 bits a channel")
            return Header(
                vendor=f"plain-{(image.format or 'image').lower()}", size=(width, height),
                level_sizes=((width, height),), downsamples=(1.0,), bounds=(0, 0, width, height),
                scale=_scale(image),
            )  # fmt: skip

    @contextmanager
    def _image(self) -> Iterator[Image.Image]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd tags
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            try:
                image = Image.open(self.path, formats=("PNG", "JPEG", "TIFF"))
            except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
                raise unsupported(
                    self.path, "an image too large to be read without a pyramid"
                ) from error
            except PILLOW_ERRORS as error:
                raise SlideError(
                    "slide cannot be opened", code="PG-S02", where=self.path.name, why=str(error),
                    hint="check how the file was made or downloaded",
                ) from error  # fmt: skip
            with image:
                yield image

    def _open(self) -> _Pixels:
        with self._image() as image:
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                clear = image.convert("RGBA")
                white = Image.new("RGBA", clear.size, "white")
                return _Pixels(np.asarray(Image.alpha_composite(white, clear).convert("RGB")))
            return _Pixels(np.asarray(image.convert("RGB")))

    def _cut(self, level: int, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        x0, y0, x1, y1 = box
        pixels: NDArray[np.uint8] = self.handle.array
        return pixels[y0:y1, x0:x1]


class _Pixels:
    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array

    def close(self) -> None:
        pass


def _scale(image: Image.Image) -> Scale | None:
    tags: Any = getattr(image, "tag_v2", None)
    if tags is None:
        return None
    found = ome_scale(str(tags.get(270) or ""))
    if found:
        return found
    per_unit = {2: 25_400.0, 3: 10_000.0}.get(tags.get(296, 2))
    across, down = (float(tags.get(tag) or 0) for tag in (282, 283))
    if not (per_unit and across > 0 and down > 0):
        return None
    return tag_scale(per_unit / across, per_unit / down)
