"""The outline of a mask as polygons: exactly the edges of its pixels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathgen.tiling.tissue import TissueMask

Ring = list[list[float]]
Ints = NDArray[np.int64]

#: A step along each heading, as (dx, dy); tissue lies on the right, and y grows downwards.
STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])


class Piece(NamedTuple):
    """A connected piece: closed rings of level-0 (x, y), the outer one first."""

    exterior: Ring
    holes: list[Ring]


def pieces(mask: TissueMask) -> list[Piece]:
    """Polygons that cover exactly the pixels of `mask`, each 4-connected piece one polygon.

    They are valid: no ring crosses or touches itself. Exteriors turn clockwise as seen on the
    slide, holes the other way; points along straight sides are left out.
    """
    from scipy.ndimage import label

    numbers, count = label(np.pad(mask.pixels, 1))
    found: list[list[tuple[float, Ints]]] = [[] for _ in range(count)]
    for ring, number in _rings(numbers):
        found[number - 1].append((_area(ring), ring))
    result = []
    for rings in found:
        # Outer rings turn one way and holes the other; each piece has one outer ring.
        rings.sort(key=lambda one: -one[0])
        exterior, *holes = (_level0(ring, mask) for _, ring in rings)
        result.append(Piece(exterior, holes))
    return result


def _rings(numbers: NDArray[np.int32]) -> Iterator[tuple[Ints, int]]:
    """Closed rings of pixel corners (n, 2) around each number, in pixels before the padding."""
    corner, heading, owner, following = _edges(numbers)
    turns = heading != heading[following]
    ends = np.stack(np.divmod(corner, numbers.shape[1])[::-1], 1) + STEPS[heading] - 1
    order, starts = _cycles(following.tolist())
    for first, last in pairwise(starts):
        ring = order[first:last]
        yield ends[ring[turns[ring]]], int(owner[ring[0]])


def _edges(numbers: NDArray[np.int32]) -> tuple[Ints, Ints, Ints, Ints]:
    """The sides between a numbered pixel and another, and how they follow each other.

    Returns:
        Of each, (n,): the corner it starts at as a flat index, its heading 0..3, the number on
        its right, and the edge that follows.
    """
    width = numbers.shape[1]
    around = numbers[1:, 1:], numbers[1:, :-1], numbers[:-1, :-1], numbers[:-1, 1:]
    found, owners = [], []
    for heading in range(4):
        # Of the pixels around a corner, `heading` is on the right of that edge, the one before on
        # its left.
        right, left = around[heading], around[heading - 1]
        ys, xs = np.nonzero((right > 0) & (left != right))
        found.append((ys + 1) * width + xs + 1)
        owners.append(right[ys, xs])
    first = np.cumsum([0, *map(len, found)])
    heading_ = np.repeat(np.arange(4), np.diff(first))
    corner, owner = np.concatenate(found), np.concatenate(owners).astype(np.int64)
    end: Ints = corner + STEPS[heading_, 0] + width * STEPS[heading_, 1]

    def edge_from(at: Ints, heading: int) -> Ints:
        """The edge with that start, -1 for none."""
        place = np.searchsorted(found[heading], at)
        there = np.append(found[heading], -1)[place] == at
        return np.where(there, place + first[heading], -1)

    right, ahead, left = (
        np.concatenate([
            edge_from(end[first[h] : first[h + 1]], (h + turn) % 4) for h in range(4)
        ])
        for turn in (1, 0, 3)
    )  # fmt: skip
    following = np.maximum(np.maximum(right, ahead), left)
    # Where two pixels touch by this corner alone there are two ways. Of two pieces each keeps to
    # its own pixel. Within a piece one of the gaps is a hole: a turn to the left keeps its ring
    # apart from the outer one, so that no ring touches itself.
    both = np.flatnonzero((right >= 0) & (left >= 0))
    same = owner[left[both]] == owner[both]
    following[both] = np.where(same, left[both], right[both])
    return corner, heading_, owner, following


def _cycles(following: list[int]) -> tuple[Ints, list[int]]:
    """All edges, ring after ring, and where each ring starts; the last number is the end."""
    seen = bytearray(len(following))
    order: list[int] = []
    starts = [0]
    for first in range(len(following)):
        if seen[first]:
            continue
        edge = first
        while not seen[edge]:
            seen[edge] = 1
            order.append(edge)
            edge = following[edge]
        starts.append(len(order))
    return np.array(order, np.int64), starts


def _area(ring: Ints) -> float:
    """Signed, positive for outer rings."""
    x, y = ring.T.astype(np.float64)
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _level0(ring: Ints, mask: TissueMask) -> Ring:
    points = (np.asarray(mask.origin) + ring * np.asarray(mask.scale)).tolist()
    return [*points, points[0]]
