"""Readers whose levels are arrays of pixels that can be cut."""

from __future__ import annotations

import logging
import struct
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from pathgen.tiling.readers.base import BaseReader

#: What libraries raise on damaged files, besides exceptions of their own.
DAMAGE: tuple[type[Exception], ...] = (
    OSError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError,
    EOFError, RuntimeError, MemoryError, struct.error,
)  # fmt: skip


class LevelReader(BaseReader):
    """A slide of which a part of a level can be asked for; around it is white."""

    @abstractmethod
    def _cut(self, level: int, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        """RGB of the pixels x0, y0, x1, y1 of `level`, all of them inside of it."""

    def _read(
        self, position: tuple[float, float], level: int, size: tuple[int, int]
    ) -> NDArray[np.uint8]:
        step = self.downsamples[level]
        x, y = (round(v / step) for v in position)
        width, height = self.level_sizes[level]
        out = np.full((size[1], size[0], 3), 255, np.uint8)
        x0, y0, x1, y1 = max(x, 0), max(y, 0), min(x + size[0], width), min(y + size[1], height)
        if x1 > x0 and y1 > y0:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._cut(level, (x0, y0, x1, y1))
        return out


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without a library's warnings on odd headers: what matters of them is said by an error."""
    found = [logging.getLogger(name) for name in loggers]
    before = [logger.level for logger in found]
    try:
        for logger in found:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(found, before, strict=True):
            logger.setLevel(level)


def mean_downsamples(sizes: tuple[tuple[int, int], ...]) -> tuple[float, ...]:
    """Level-0 pixels per pixel of each level, the mean of x and y, as OpenSlide counts."""
    across, down = sizes[0]
    return tuple((across / width + down / height) / 2 for width, height in sizes)
