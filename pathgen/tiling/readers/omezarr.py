"""OME-Zarr images, through zarr."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.tiling.readers.check import unsupported
from pathgen.tiling.readers.levels import DAMAGE, LevelReader, mean_downsamples
from pathgen.tiling.readers.ngff import Multiscale, read_multiscale, zarr_files
from pathgen.tiling.readers.tiff import check_size
from pathgen.tiling.slide import Header

#: A chunk is decoded whole: larger ones would take the memory of a machine.
MAX_CHUNK_BYTES = 256 * 2**20


class OmeZarrReader(LevelReader):
    """OME-Zarr 0.4 and 0.5, 8 bits RGB; chunks that are not there have the fill value."""

    reader = "omezarr"
    path: Path
    read_errors = (*DAMAGE, zlib.error, lzma.LZMAError)

    def _describe(self) -> Header:
        levels: _Levels = self.handle
        sizes = tuple(levels.size(number) for number in range(len(levels.arrays)))
        length = sum(part.stat().st_size for part in zarr_files(self.path))
        # Chunks of one color may be missing or take next to nothing.
        check_size(self.path, *sizes[0], max(length, 2**20), capped=False)
        return Header(
            vendor="ome-zarr", size=sizes[0], level_sizes=sizes,
            downsamples=mean_downsamples(sizes), bounds=(0, 0, *sizes[0]),
            scale=levels.image.scale,
        )  # fmt: skip

    def _open(self) -> _Levels:
        image = read_multiscale(self.path)
        import zarr

        try:
            arrays = [zarr.open_array(image.folder / name, mode="r") for name in image.levels]
        except FileNotFoundError as error:
            raise SlideError(
                "a part of the slide is missing", code="PG-S11", where=self.path.name,
                why=f"its metadata name the levels {', '.join(image.levels)}; not all are there",
                hint="copy it again",
            ) from error  # fmt: skip
        except self.read_errors as error:
            raise SlideError(
                "OME-Zarr metadata make no sense", code="PG-S05", where=self.path.name,
                why=f"{type(error).__name__}: {error}", hint="get a fresh copy",
            ) from error  # fmt: skip
        levels = _Levels(image, arrays)
        self._refuse(levels)
        return levels

    def _refuse(self, levels: _Levels) -> None:
        """PG-S10 for what is no 8-bit RGB image of one plane, PG-S06 for absurd chunks."""
        for array in levels.arrays:
            if array.ndim != len(levels.image.axes) or 0 in array.shape:
                raise SlideError(
                    "OME-Zarr metadata make no sense", code="PG-S05", where=self.path.name,
                    why=f"a level of shape {array.shape} for axes {levels.image.axes}",
                    hint="get a fresh copy",
                )  # fmt: skip
            sides = dict(zip(levels.image.axes, array.shape, strict=True))
            if array.dtype != np.uint8:
                raise unsupported(self.path, f"an OME-Zarr image of {array.dtype}, not uint8")
            if sides.pop("c", 1) != 3:
                raise unsupported(self.path, "an OME-Zarr image that has not 3 channels (RGB)")
            extra = {name: n for name, n in sides.items() if name not in "xy" and n != 1}
            if extra:
                what = ", ".join(f"{n} along {name}" for name, n in extra.items())
                raise unsupported(self.path, f"an OME-Zarr image of several planes ({what})")
            if np.prod(array.chunks, dtype=float) > MAX_CHUNK_BYTES:
                raise SlideError(
                    "declared size is implausible", code="PG-S06", where=self.path.name,
                    why=f"chunks of {array.chunks}", hint="write it anew with smaller chunks",
                )  # fmt: skip

    def _cut(self, level: int, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = self.handle.cut(level, box)
        return pixels


class _Levels:
    def __init__(self, image: Multiscale, arrays: Sequence[Any]) -> None:
        self.image, self.arrays = image, arrays

    def size(self, level: int) -> tuple[int, int]:
        shape = dict(zip(self.image.axes, self.arrays[level].shape, strict=True))
        return shape["x"], shape["y"]

    def cut(self, level: int, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        x0, y0, x1, y1 = box
        wanted = {"x": slice(x0, x1), "y": slice(y0, y1), "c": slice(None)}
        axes = self.image.axes
        pixels = np.asarray(self.arrays[level][tuple(wanted.get(name, 0) for name in axes)])
        left = [name for name in axes if name in wanted]
        return np.ascontiguousarray(pixels.transpose([left.index(name) for name in "yxc"]))

    def close(self) -> None:
        pass
