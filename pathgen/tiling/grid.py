"""Where the patches lie and how they are read. All level arithmetic of the tiler is here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathgen.errors import SlideError
from pathgen.stores.patches import PatchSpec
from pathgen.tiling.overview import (
    NATIVE_TOLERANCE,
    best_level,
    read_area,
    read_pixels,
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


@dataclass(frozen=True)
class ReadPlan:
    """How one patch is read: from which level, and whether it is resampled.

    A *native* patch is `size` pixels of a level as they are. Any other is cut from `level` at a
    fraction of a pixel and averaged down to exactly the asked scale.
    """

    size: int
    level: int
    native: bool
    downsample: tuple[float, float]
    """level-0 pixels per pixel of `level`, x and y"""
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
        level = best_level(slide, (min(wanted) * (1 + tolerance), min(wanted) * (1 + tolerance)))
        step = slide.downsamples[level]
        if spec.mpp is None or all(abs(step / scale - 1) <= tolerance for scale in wanted):
            mpp = slide.mpp * step
            side = (spec.size * step, spec.size * step)
            return cls(spec.size, level, True, (step, step), side, mpp, mpp / target - 1)
        side = (spec.size * wanted[0], spec.size * wanted[1])
        return cls(spec.size, level, False, true_downsample(slide, level), side, target, 0.0)

    def read(self, slide: SlideReader, coords: NDArray[np.int64]) -> NDArray[np.uint8]:
        """RGB (n, size, size, 3) of patches at level-0 `coords` (n, 2), decoded in one piece."""
        if self.native:
            return self._read_native(slide, coords)
        images = np.empty((len(coords), self.size, self.size, 3), np.uint8)
        low, high = coords.min(axis=0), coords.max(axis=0) + self.side
        reach = math.ceil(max(s / d for s, d in zip(self.side, self.downsample, strict=True))
                          / self.size) + 1  # fmt: skip
        box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        area, inner = read_area(slide, self.level, box, margin=reach)
        width, height = (s / d for s, d in zip(self.side, self.downsample, strict=True))
        starts = (coords - low) / self.downsample + inner[:2]
        picture = Image.fromarray(area)
        for image, (x, y) in zip(images, starts, strict=True):
            part = (x, y, min(x + width, area.shape[1]), min(y + height, area.shape[0]))
            image[:] = np.asarray(
                picture.resize((self.size, self.size), Image.Resampling.HAMMING, box=part)
            )
        return images

    def _read_native(self, slide: SlideReader, coords: NDArray[np.int64]) -> NDArray[np.uint8]:
        size = self.size
        if (coords % self.downsample[0]).any():
            # OpenSlide blends neighbors at a fraction of a level's pixel: a part of a larger read
            # would differ from a read of its own.
            alone = [slide.read((x, y), self.level, (size, size)) for x, y in coords.tolist()]
            return np.stack(alone)
        corners = (coords // int(self.downsample[0])).astype(int)
        x0, y0 = corners.min(axis=0)
        x1, y1 = corners.max(axis=0) + size
        area = read_pixels(slide, self.level, (int(x0), int(y0), int(x1), int(y1)))
        corners -= (x0, y0)
        return np.stack([area[y : y + size, x : x + size] for x, y in corners.tolist()])


@dataclass(frozen=True)
class TileGrid:
    """One row per patch, in reading order: row by row from the top left of the bounds.

    Only whole patches inside the scanned bounds are in the grid; a rest at the right or lower
    edge that is smaller than a patch is left out.
    """

    coords: NDArray[np.int64]  # (n, 2) level-0 x, y of the top left corner
    cells: NDArray[np.int32]  # (n, 2) row, column

    @classmethod
    def over(cls, slide: SlideReader, spec: PatchSpec, plan: ReadPlan) -> Self:
        """Every cell of the grid over the scanned bounds of a slide."""
        x0, y0, width, height = slide.bounds
        share = (spec.size - spec.overlap) / spec.size
        starts = []
        for length, side in ((width, plan.side[0]), (height, plan.side[1])):
            count = math.floor((length - side) / (side * share) + 1e-6) + 1
            starts.append(np.rint(np.arange(max(count, 0)) * (side * share)).astype(np.int64))
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
        across = max(s / d for s, d in zip(plan.side, plan.downsample, strict=True))
        block = int(np.clip(BLOCK_SIDE // across, 1, BLOCK_PATCHES))
        strip = self.cells[:, 0] // block
        for number in np.unique(strip):
            rows = np.flatnonzero(strip == number)
            columns = self.cells[rows, 1] // block
            pieces: list[NDArray[np.int64]] = []
            for column in np.unique(columns):
                pieces += self._pieces(rows[columns == column])
            yield pieces

    def _pieces(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """A well filled block whole; of a sparse one each run of neighbors in a grid row."""
        cells = self.cells[rows]
        extent = cells.max(axis=0) - cells.min(axis=0) + 1
        if len(rows) * 2 >= extent.prod():
            return [rows]
        breaks = (np.diff(cells[:, 0]) != 0) | (np.diff(cells[:, 1]) != 1)
        return np.split(rows, np.flatnonzero(breaks) + 1)


def spread(plan: ReadPlan) -> float:
    """Mean side of a patch in level-0 pixels."""
    return (plan.side[0] + plan.side[1]) / 2
