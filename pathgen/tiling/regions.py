"""Regions of classes on a slide, from outlines or from a raster of values.

Both answer the same two questions in level-0 pixels: how much of each patch a class covers, and
which pixels of a tissue mask lie inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pathgen.tiling import outlines
from pathgen.tiling.outlines import Outlines
from pathgen.tiling.tissue import TissueMask

Pair = tuple[float, float]


class Regions(ABC):
    """Classes on a slide; `names` are sorted, and may include classes without any area."""

    names: tuple[str, ...]
    note: str
    """what of the file was left out, for the ledger; empty for nothing"""

    @abstractmethod
    def _share(self, name: str, coords: NDArray[np.integer], side: Pair) -> NDArray[np.float32]:
        """Share of each rectangle in a class of the file, (n,)."""

    @abstractmethod
    def _inside(
        self, names: Sequence[str], shape: tuple[int, int], origin: Pair, scale: Pair
    ) -> NDArray[np.bool_]:
        """Pixels whose center lies in one of `names`."""

    def shares(self, coords: NDArray[np.integer], side: Pair) -> NDArray[np.float32]:
        """Share of each class in rectangles at level-0 `coords` (n, 2), `side` level-0 pixels.

        Returns:
            (n, k) float32, 0..1, in the order of `names`. Classes may overlap.
        """
        columns = [self._share(name, coords, side) for name in self.names]
        return np.stack(columns, axis=1) if columns else np.zeros((len(coords), 0), np.float32)

    def like(self, mask: TissueMask, names: Sequence[str] = ()) -> NDArray[np.bool_]:
        """The pixels of a tissue mask's raster that lie in one of `names`; none means all."""
        chosen = [name for name in self.names if not names or name in names]
        height, width = mask.pixels.shape
        return self._inside(chosen, (height, width), mask.origin, mask.scale)


class OutlineRegions(Regions):
    """Polygons in level-0 pixels of the canvas."""

    def __init__(
        self, classes: Mapping[str, Outlines], without: Outlines | None, names: Sequence[str],
        note: str = "",
    ) -> None:  # fmt: skip
        self.classes, self.without, self.note = dict(classes), without, note
        self.names = tuple(names)

    def _share(self, name: str, coords: NDArray[np.integer], side: Pair) -> NDArray[np.float32]:
        if name not in self.classes:
            return np.zeros(len(coords), np.float32)
        return outlines.shares(self.classes[name], coords, side, self.without)

    def _inside(
        self, names: Sequence[str], shape: tuple[int, int], origin: Pair, scale: Pair
    ) -> NDArray[np.bool_]:
        found = np.zeros(shape, bool)
        for name in names:
            if name in self.classes:
                one = outlines.pixels(self.classes[name], shape, origin, scale, self.without)
                found |= one
        return found


class RasterRegions(Regions):
    """A raster of values; its pixel (i, j) starts at ``origin + (j, i) * scale``."""

    def __init__(
        self, raster: NDArray[np.integer], origin: Pair, scale: Pair,
        values: Mapping[str, Sequence[int]], names: Sequence[str], note: str = "",
    ) -> None:  # fmt: skip
        self.raster, self.origin, self.scale, self.note = raster, origin, scale, note
        self.values = {name: np.asarray(list(found)) for name, found in values.items()}
        self.names = tuple(names)

    def _share(self, name: str, coords: NDArray[np.integer], side: Pair) -> NDArray[np.float32]:
        found = np.zeros(len(coords), np.float32)
        if name not in self.values:
            return found
        for y in np.unique(coords[:, 1]):  # a row of the grid at a time: little memory
            rows = np.flatnonzero(coords[:, 1] == y)
            first = max(int((y - self.origin[1]) // self.scale[1]), 0)
            last = int(-(-(y + side[1] - self.origin[1]) // self.scale[1]))
            part = np.isin(self.raster[first : max(last, 0)], self.values[name])
            if not part.any():
                continue
            start = coords[rows] - (self.origin[0], self.origin[1] + first * self.scale[1])
            band = TissueMask(part, 0.0, (0, 0), self.scale)
            found[rows] = band.fraction(start, side)
        return found

    def _inside(
        self, names: Sequence[str], shape: tuple[int, int], origin: Pair, scale: Pair
    ) -> NDArray[np.bool_]:
        centers = []
        for axis, count in enumerate((shape[1], shape[0])):
            at = origin[axis] + (np.arange(count) + 0.5) * scale[axis]
            centers.append(np.floor((at - self.origin[axis]) / self.scale[axis]).astype(int))
        known = [self.values[name] for name in names if name in self.values]
        wanted = np.concatenate([np.empty(0, int), *known])
        height, width = self.raster.shape
        x, y = (np.clip(c, 0, n - 1) for c, n in zip(centers, (width, height), strict=True))
        found = np.isin(self.raster[np.ix_(y, x)], wanted)
        outside = (centers[0] < 0) | (centers[0] >= width)
        found[:, outside] = False
        found[(centers[1] < 0) | (centers[1] >= height)] = False
        return np.asarray(found, np.bool_)
