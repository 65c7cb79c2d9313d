"""Masks as shapes: grown, closed, and taken apart into connected pieces.

A piece is found by its runs, the stretches of set pixels in a row, so that no pixel needs a label.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Self

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]


def dilated(mask: Mask, reach: int) -> Mask:
    """Grown by a disk of radius `reach` + 0.5 pixels; nothing grows in from outside."""
    grown = np.zeros_like(mask)
    wide, half = mask.copy(), 0  # grown by `half` pixels to the left and right
    for down in range(min(reach, len(mask) - 1), -1, -1):
        chord = isqrt(reach * (reach + 1) - down * down)
        while half < chord:
            half += 1
            wide[:, :-half] |= mask[:, half:]
            wide[:, half:] |= mask[:, :-half]
        grown[down:] |= wide[: len(wide) - down]
        if down:
            grown[:-down] |= wide[down:]
    return grown


def closed(mask: Mask, reach: int) -> Mask:
    """With the gaps bridged that a disk of radius `reach` + 0.5 pixels does not fit into."""
    if not reach:
        return mask
    outside = dilated(np.pad(mask, reach), reach)
    np.logical_not(outside, out=outside)
    return np.logical_not(dilated(outside, reach)[reach:-reach, reach:-reach])


def large_pieces(mask: Mask, mpp: float, least_mm2: float) -> Mask:
    """The connected pieces of at least that area; pixels that touch at a corner are connected."""
    runs = Runs.of(mask)
    return runs.drawn(runs.areas() * (mpp / 1000) ** 2 >= least_mm2)


def filled(mask: Mask, mpp: float, most_mm2: float) -> Mask:
    """With the holes up to that area filled; what is open to the edge is no hole."""
    if not most_mm2:
        return mask
    holes = Runs.of(np.pad(~mask, 1, constant_values=True), corners=False)
    small = holes.areas() * (mpp / 1000) ** 2 <= most_mm2
    small &= holes.piece != 0  # the edge, where the first run is
    return mask | holes.drawn(small)[1:-1, 1:-1]


@dataclass(frozen=True)
class Runs:
    """The runs of a mask in reading order. Positions count through its rows, each of which has a
    pixel more at both ends."""

    shape: tuple[int, int]
    starts: Indices
    ends: Indices
    piece: Indices
    """the first run of each run's connected piece"""

    @classmethod
    def of(cls, mask: Mask, corners: bool = True) -> Self:
        """With `corners`, pixels that touch only there are connected."""
        flat = np.pad(mask, ((0, 0), (1, 1))).ravel()
        changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        starts, ends = changes[::2], changes[1::2]
        row = mask.shape[1] + 2
        # Both are sorted: those of the next row that touch a run are a range.
        sides = ("left", "right") if corners else ("right", "left")
        first = np.searchsorted(ends, starts + row, sides[0])  # type: ignore[call-overload]
        last = np.searchsorted(starts, ends + row, sides[1])  # type: ignore[call-overload]
        touching = np.maximum(last - first, 0)
        above = np.repeat(np.arange(len(starts)), touching)
        before = np.cumsum(touching) - touching
        below = np.arange(len(above)) + np.repeat(first - before, touching)
        height, width = mask.shape
        return cls((height, width), starts, ends, _joined(len(starts), above, below))

    def areas(self) -> NDArray[np.float64]:
        """Of each run, the pixels of its piece."""
        lengths = self.ends - self.starts
        areas = np.bincount(self.piece, lengths.astype(np.float64), minlength=len(lengths))
        return np.asarray(areas[self.piece], np.float64)

    def drawn(self, chosen: Mask) -> Mask:
        """The mask of the runs that are `chosen`."""
        height, width = self.shape
        steps = np.zeros(height * (width + 2), np.int8)
        steps[self.starts[chosen]] = 1
        steps[self.ends[chosen]] = -1
        np.cumsum(steps, dtype=np.int8, out=steps)
        return np.ascontiguousarray(steps.view(np.bool_).reshape(height, width + 2)[:, 1:-1])


def _joined(count: int, some: Indices, others: Indices) -> Indices:
    """The least of all that each of 0..count-1 is joined to, by the pairs some[i], others[i]."""
    least = np.arange(count)
    while True:
        some, others = least[some], least[others]
        apart = some != others
        if not apart.any():
            return least
        some, others = some[apart], others[apart]
        np.minimum.at(least, np.maximum(some, others), np.minimum(some, others))
        while not np.array_equal(further := least[least], least):
            least = further
