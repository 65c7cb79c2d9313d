"""Where the patches lie and how they are read. All level arithmetic of the tiler is here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathgen.errors import SlideError
from pathgen.stores.patches import PatchSpec
from pathgen.tiling.overview import (
    NATIVE_TOLERANCE,
    best_level,
    best_shrink,
    read_area,
    true_downsample,
)
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.tissue import TissueMask

#: Enlarging by up to this, relative, is no loss: scanners said to have 0.5 have 0.4915 to 0.5034.
UPSAMPLE_TOLERANCE = 0.03
#: A block of neighboring patches that is read at once has at most this many a side,
BLOCK_PATCHES = 8
#: and at most this many pixels of its level a side: 64 MB while it is decoded.
BLOCK_SIDE = 4096
Edge = Literal["drop", "pad", "shift"]
Align = Literal["bounds", "native"]


@dataclass(frozen=True)
class ReadPlan:
    """How one patch is read: from which level, and whether it is resampled.

    A *native* patch is `size` pixels as they are decoded, at 1 / `shrink` of a level. Any other is
    cut from them at a fraction of a pixel and averaged down to exactly the asked scale.
    """

    size: int
    level: int
    shrink: int
    """by what the level is decoded smaller than it is"""
    native: bool
    downsample: tuple[float, float]
    """level-0 pixels per decoded pixel, x and y"""
    side: tuple[float, float]
    """level-0 pixels a patch is wide and high"""
    mpp: float
    """microns per pixel that the patches have"""
    mpp_error: float
    """relative: mpp / asked - 1"""

    @classmethod
    def for_spec(
        cls, slide: SlideReader, spec: PatchSpec, *, allow_upsample: bool = False,
        tolerance: float = NATIVE_TOLERANCE,
    ) -> Self:  # fmt: skip
        """The coarsest level that is still as fine as `spec.mpp`.

        Raises:
            SlideError: PG-S08 when the slide is coarser than `spec.mpp` by more than 3 % and
                `allow_upsample` is false; PG-S07, PG-S08 without a usable pixel size.
        """
        target = spec.mpp if spec.mpp is not None else slide.mpp
        if slide.mpp > target * (1 + UPSAMPLE_TOLERANCE) and not allow_upsample:
            raise SlideError(
                "patches would be upsampled", code="PG-S08", where=slide.name,
                why=f"the slide has {slide.mpp:g} um per pixel and {target:g} is asked for",
                hint=f"use --mpp {math.ceil(slide.mpp * 100) / 100:g} or coarser, leave the slide "
                "out, or allow it with --set allow_upsample=true",
            )  # fmt: skip
        wanted = tuple(target / mpp for mpp in slide.mpp_xy)
        # `best_level` and `best_shrink` allow for some tolerance of their own.
        loose = min(wanted) * (1 + tolerance) / (1 + NATIVE_TOLERANCE)
        level = best_level(slide, (loose, loose))
        shrink = _shrink(slide, level, min(wanted), tolerance)
        step = slide.downsamples[level] * shrink
        if spec.mpp is None or all(abs(step / scale - 1) <= tolerance for scale in wanted):
            mpp = slide.mpp * step
            side = (spec.size * step, spec.size * step)
            return cls(spec.size, level, shrink, True, (step, step), side, mpp, mpp / target - 1)
        side = (spec.size * wanted[0], spec.size * wanted[1])
        kx, ky = true_downsample(slide, level)
        downsample = kx * shrink, ky * shrink
        return cls(spec.size, level, shrink, False, downsample, side, target, 0.0)

    def read(self, slide: SlideReader, coords: NDArray[np.int64]) -> NDArray[np.uint8]:
        """RGB (n, size, size, 3) of patches at level-0 `coords` (n, 2).

        Decoded in one piece, but tile by tile where the reader keeps tiles.
        """
        if slide.tiles(self.level) is None or len(coords) <= 1:
            return self._read_block(slide, coords)
        return np.concatenate([self._read_block(slide, coords[i : i + 1])
                               for i in range(len(coords))])  # fmt: skip

    def whole_tiles(self, slide: SlideReader, coords: NDArray[np.int64]) -> NDArray[np.int64]:
        """The tile of the slide that each patch is as it stands, (n,); -1 for those that are none.

        A tile without bytes and one that the edge of the slide cuts are none.
        """
        tiled = slide.tiles(self.level)
        none = np.full(len(coords), -1, np.int64)
        if tiled is None or not self.native or self.shrink != 1:
            return none
        if tiled.tile != (self.size, self.size):
            return none
        corners = np.rint(coords / self.downsample).astype(np.int64)
        whole = ~(corners % self.size).any(axis=1) & (corners >= 0).all(axis=1)
        whole &= (corners + self.size <= tiled.size).all(axis=1)
        indices = np.where(whole, corners @ np.array([1, tiled.across]) // self.size, 0)
        return np.where(whole & (tiled.counts[indices] > 0), indices, -1)

    def _read_block(self, slide: SlideReader, coords: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self.native:
            return self._read_native(slide, coords)
        images = np.empty((len(coords), self.size, self.size, 3), np.uint8)
        low, high = coords.min(axis=0), coords.max(axis=0) + self.side
        reach = math.ceil(max(s / d for s, d in zip(self.side, self.downsample, strict=True))
                          / self.size) + 1  # fmt: skip
        box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        area, inner = read_area(slide, self.level, box, margin=reach, shrink=self.shrink)
        width, height = (s / d for s, d in zip(self.side, self.downsample, strict=True))
        starts = (coords - low) / self.downsample + inner[:2]
        picture = Image.fromarray(area)
        for image, (x, y) in zip(images, starts, strict=True):
            part = (x, y, min(x + width, area.shape[1]), min(y + height, area.shape[0]))
            image[:] = np.asarray(
                picture.resize((self.size, self.size), Image.Resampling.HAMMING, box=part)
            )
        return _white_beyond(images, coords, self, slide.size)

    def _read_native(self, slide: SlideReader, coords: NDArray[np.int64]) -> NDArray[np.uint8]:
        size = self.size
        corners = np.rint(coords / self.downsample).astype(int)
        if slide.tiles(self.level) is not None:
            boxes = [(x, y, x + size, y + size) for x, y in corners.tolist()]
            images = [slide.read_level(self.level, box, self.shrink) for box in boxes]
            return images[0][None] if len(images) == 1 else np.stack(images)
        if np.abs(corners * self.downsample - coords).max() > 1e-6:
            # OpenSlide blends neighbors at a fraction of a level's pixel: a part of a larger read
            # would differ from a read of its own.
            alone = [slide.read((x, y), self.level, (size, size)) for x, y in coords.tolist()]
            return np.stack(alone)
        x0, y0 = corners.min(axis=0)
        x1, y1 = corners.max(axis=0) + size
        area = slide.read_level(self.level, (int(x0), int(y0), int(x1), int(y1)))
        corners -= (x0, y0)
        return np.stack([area[y : y + size, x : x + size] for x, y in corners.tolist()])


def _shrink(slide: SlideReader, level: int, wanted: float, tolerance: float) -> int:
    """By what `level` is decoded smaller on the way to `wanted` level-0 pixels per pixel.

    All the way only where the grid then lies on whole pixels: a patch between them would have to
    be interpolated, and averaging from twice the size is better.
    """
    step = slide.downsamples[level]
    loose = wanted * (1 + tolerance) / (1 + NATIVE_TOLERANCE)
    shrink = best_shrink(slide, level, loose / step)
    all_the_way = abs(step * shrink / wanted - 1) <= tolerance
    apart = max(abs(v - round(v / (step * shrink)) * step * shrink) for v in slide.bounds[:2])
    return shrink // 2 if shrink > 1 and all_the_way and apart > 0.5 else shrink


@dataclass(frozen=True)
class TileGrid:
    """One row per patch, in reading order: row by row from the top left of the bounds.

    Whole patches inside the scanned bounds are in the grid. Of a rest at the right or lower edge
    that is smaller than a patch, `edge` says what becomes: it is left out (``drop``), a patch
    reaches beyond (``pad``), or one more patch ends with the bounds (``shift``).
    """

    coords: NDArray[np.int64]  # (n, 2) level-0 x, y of the top left corner
    cells: NDArray[np.int32]  # (n, 2) row, column

    @classmethod
    def over(
        cls, slide: SlideReader, spec: PatchSpec, plan: ReadPlan, edge: Edge = "drop",
        align: Align = "bounds",
    ) -> Self:  # fmt: skip
        """Every cell of the grid over the scanned bounds of a slide.

        With `align` native it starts at the first tile of the slide that begins inside of them.
        """
        x0, y0, width, height = slide.bounds
        if align == "native":
            right, lower = _to_whole_tiles(slide, plan)
            x0, y0, width, height = x0 + right, y0 + lower, width - right, height - lower
        share = (spec.size - spec.overlap) / spec.size
        starts = []
        for length, side in ((width, plan.side[0]), (height, plan.side[1])):
            count = math.floor((length - side) / (side * share) + 1e-6) + 1
            start = np.rint(np.arange(max(count, 0)) * (side * share)).astype(np.int64)
            if edge != "drop":
                start = _to_the_edge(start, length, side, side * share, plan, edge)
            starts.append(start)
        rows, columns = np.indices((len(starts[1]), len(starts[0])), np.int32).reshape(2, -1)
        coords = np.stack([starts[0][columns] + x0, starts[1][rows] + y0], axis=1)
        return cls(coords, np.stack([rows, columns], axis=1).astype(np.int32))

    def __len__(self) -> int:
        return len(self.coords)

    def tissue(self, mask: TissueMask, plan: ReadPlan) -> NDArray[np.float32]:
        """Share of tissue in each patch, (n,)."""
        return mask.fraction(self.coords, plan.side)

    def keep(self, where: NDArray[Any]) -> TileGrid:
        """The rows that `where`, a mask or row numbers, selects."""
        return TileGrid(self.coords[where], self.cells[where])

    def strips(self, plan: ReadPlan) -> Iterator[list[NDArray[np.int64]]]:
        """Row numbers in strips of grid rows; each strip in pieces that are read at once."""
        if not len(self):
            return
        across = max(s / d for s, d in zip(self._reach(plan), plan.downsample, strict=True))
        block = int(np.clip(BLOCK_SIDE // across, 1, BLOCK_PATCHES))
        strip = self.cells[:, 0] // block
        for number in np.unique(strip):
            rows = np.flatnonzero(strip == number)
            columns = self.cells[rows, 1] // block
            pieces: list[NDArray[np.int64]] = []
            for column in np.unique(columns):
                pieces += self._pieces(rows[columns == column])
            yield pieces

    def _reach(self, plan: ReadPlan) -> tuple[float, float]:
        """Level-0 pixels from patch to patch, or across one, whichever is more."""
        cells = self.cells[:, ::-1]
        apart = np.ptp(self.coords, axis=0) / np.maximum(np.ptp(cells, axis=0), 1)
        return max(plan.side[0], float(apart[0])), max(plan.side[1], float(apart[1]))

    def _pieces(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """A well filled block whole; of a sparse one each run of neighbors in a grid row."""
        cells = self.cells[rows]
        extent = cells.max(axis=0) - cells.min(axis=0) + 1
        if len(rows) * 2 >= extent.prod():
            return [rows]
        breaks = (np.diff(cells[:, 0]) != 0) | (np.diff(cells[:, 1]) != 1)
        return np.split(rows, np.flatnonzero(breaks) + 1)


def _to_whole_tiles(slide: SlideReader, plan: ReadPlan) -> tuple[int, int]:
    """Level-0 pixels from the corner of the bounds to the first tile that begins inside of them."""
    tiled = slide.tiles(plan.level)
    if tiled is None:
        return 0, 0
    steps = [side * slide.downsamples[plan.level] for side in tiled.tile]
    ahead = [math.ceil(v / s - 1e-6) * s - v for v, s in zip(slide.bounds[:2], steps, strict=True)]
    return round(ahead[0]), round(ahead[1])


def _to_the_edge(
    starts: NDArray[np.int64], length: float, side: float, step: float, plan: ReadPlan, edge: Edge
) -> NDArray[np.int64]:
    """Starts along one axis with one more patch for the rest, if there is a rest to be covered."""
    end = starts[-1] + side if len(starts) else 0.0
    more = round(len(starts) * step)
    if length - end < side / plan.size or more >= length:  # less than a pixel, or within a gap
        return starts
    if edge == "shift":
        if length < side:
            return starts
        more = math.floor(length - side + 1e-6)
        scale = plan.downsample[0]
        if plan.native and scale == int(scale):  # on whole pixels of the level, to be read as is
            more -= more % int(scale)
    return np.append(starts, more)


def _white_beyond(
    images: NDArray[np.uint8], coords: NDArray[np.int64], plan: ReadPlan, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Patches of which the pixels past the far edges of the slide are white.

    Positions are rounded, so a patch that ends with the slide may seem to reach a pixel too far.
    """
    inside = np.array(size) - coords  # level-0 pixels of each patch that there are, x and y
    seen = np.ceil(inside * plan.size / plan.side - 1e-6).astype(int)
    for row in np.flatnonzero((inside < np.array(plan.side) - 1).any(axis=1)):
        across, down = np.maximum(seen[row], 0)
        images[row, :, across:] = 255
        images[row, down:] = 255
    return images


def spread(plan: ReadPlan) -> float:
    """Mean side of a patch in level-0 pixels."""
    return (plan.side[0] + plan.side[1]) / 2
