"""Polygons cut by lines: areas that are exact across, and summed over lines that lie close.

Nothing here needs valid polygons. A ring is filled by the even-odd rule, so one that crosses
itself leaves out what it winds around twice; a hole counts only within its own polygon; polygons
that overlap count once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
#: Lines that cut a patch; their distance is 1/64 of its side.
LINES = 64
#: Lines cut at once.
BATCH = 4096


@dataclass(frozen=True)
class Polygon:
    """Rings of level-0 x, y (n, 2); the last point need not repeat the first."""

    exterior: Floats
    holes: tuple[Floats, ...] = ()


@dataclass(frozen=True)
class Spans:
    """Where lines lie inside: disjoint, sorted by line, then by start."""

    line: Ints
    start: Floats
    stop: Floats

    def minus(self, other: Spans) -> Spans:
        """What of these is not in `other`."""
        return _merged(
            np.concatenate([self.line, other.line]),
            np.concatenate([self.start, other.start]),
            np.concatenate([self.stop, other.stop]),
            np.repeat([False, True], [len(self.line), len(other.line)]),
        )


class Outlines:
    """The union of polygons."""

    def __init__(self, polygons: Sequence[Polygon]) -> None:
        rings = [ring for polygon in polygons for ring in (polygon.exterior, *polygon.holes)]
        counts = [1 + len(polygon.holes) for polygon in polygons]
        self.owner = np.repeat(np.arange(len(polygons)), counts)  # ring -> polygon
        self.hole = np.ones(len(rings), bool)
        self.hole[np.cumsum([0, *counts], dtype=np.int64)[:-1]] = False
        starts = [np.asarray(ring, np.float64).reshape(-1, 2) for ring in rings]
        stops = [np.roll(ring, -1, axis=0) for ring in starts]
        lengths = [len(ring) for ring in starts]
        none = np.empty((0, 2))
        self.start, self.stop = np.concatenate([none, *starts]), np.concatenate([none, *stops])
        self.ring = np.repeat(np.arange(len(rings)), lengths)

    @property
    def points(self) -> Floats:
        """All corners, (n, 2)."""
        return self.start

    def cut(self, heights: Floats) -> Spans:
        """The parts of lines at rising `heights` that lie inside."""
        low = np.minimum(self.start[:, 1], self.stop[:, 1])
        high = np.maximum(self.start[:, 1], self.stop[:, 1])
        # Half open, so that a line through a corner meets one of its two edges.
        first, last = np.searchsorted(heights, low), np.searchsorted(heights, high)
        edges = np.flatnonzero(last > first)
        counts = last[edges] - first[edges]
        edge = np.repeat(edges, counts)
        past = np.arange(len(edge)) - np.repeat(counts.cumsum() - counts, counts)
        line = first[edge] + past
        (x0, y0), (x1, y1) = self.start[edge].T, self.stop[edge].T
        x = x0 + (heights[line] - y0) / (y1 - y0) * (x1 - x0)
        ring = self.ring[edge]
        order = np.lexsort((x, ring, line))
        line, ring, x = line[order], ring[order], x[order]
        # A closed ring meets each line an even number of times: in, out, in, out.
        line, ring, start, stop = line[::2], ring[::2], x[::2], x[1::2]
        owner = line * max(len(self.owner), 1) + self.owner[ring]
        within = _merged(owner, start, stop, self.hole[ring])
        union = within.line // max(len(self.owner), 1)
        return _merged(union, within.start, within.stop, np.zeros(len(union), bool))


def _merged(key: Ints, start: Floats, stop: Floats, minus: NDArray[np.bool_]) -> Spans:
    """Per `key`, the union of the spans without the union of those marked `minus`."""
    step = np.repeat([1, -1], len(key))
    keys, at, less = np.tile(key, 2), np.concatenate([start, stop]), np.tile(minus, 2)
    order = np.lexsort((at, keys))
    keys, at, step, less = keys[order], at[order], step[order], less[order]
    inside = (np.cumsum(np.where(less, 0, step)) > 0) & (np.cumsum(np.where(less, step, 0)) == 0)
    before = np.concatenate([[False], inside[:-1]])
    rise, fall = np.flatnonzero(inside & ~before), np.flatnonzero(before & ~inside)
    wide = at[fall] > at[rise]
    return Spans(keys[rise][wide], at[rise][wide], at[fall][wide])


def shares(
    outlines: Outlines,
    coords: NDArray[np.integer],
    side: tuple[float, float],
    without: Outlines | None = None,
) -> NDArray[np.float32]:
    """Share of each rectangle at level-0 `coords` (n, 2), `side` level-0 pixels, inside: (n,) 0..1.

    `without` is cut out. Each rectangle is cut by `LINES` lines: exact along x, a midpoint sum
    along y.
    """
    found = np.zeros(len(coords))
    points = outlines.points
    if not len(points) or not len(coords):
        return found.astype(np.float32)
    heights, row = np.unique(coords[:, 1], return_inverse=True)
    near = (heights + side[1] > points[:, 1].min()) & (heights < points[:, 1].max())
    left = min(float(coords[:, 0].min()), float(points[:, 0].min()))
    width = max(float(coords[:, 0].max()) + side[0], float(points[:, 0].max())) - left + 1
    offsets = (np.arange(LINES) + 0.5) / LINES * side[1]
    order = np.argsort(row, kind="stable")
    sorted_row = row[order]
    for rows in _batches(np.flatnonzero(near), max(1, BATCH // LINES)):
        lines = (heights[rows, None] + offsets).ravel()
        spans, rank = _cut(outlines, lines, without)
        if not len(spans.line):
            continue
        # All lines end to end, so that one interpolation serves them all.
        start, stop = (spans.line * width + (at - left) for at in (spans.start, spans.stop))
        knots = np.stack([start, stop], axis=1).ravel()
        covered = np.repeat(np.cumsum(stop - start), 2)
        covered[::2] -= stop - start
        rank = rank.reshape(len(rows), LINES)
        for number, one in zip(rows, rank, strict=True):
            low, high = np.searchsorted(sorted_row, [number, number + 1])
            cells = order[low:high]
            begin = one * width + (coords[cells, 0, None] - left)  # (cells, lines)
            inside = np.interp(begin + side[0], knots, covered) - np.interp(begin, knots, covered)
            found[cells] = inside.mean(axis=1) / side[0]
    return np.clip(found, 0, 1).astype(np.float32)


def pixels(
    outlines: Outlines,
    shape: tuple[int, int],
    origin: tuple[float, float],
    scale: tuple[float, float],
    without: Outlines | None = None,
) -> NDArray[np.bool_]:
    """Which pixels of a raster (height, width) have their center inside.

    `origin` is the level-0 position of its first pixel's corner, `scale` level-0 pixels a pixel.
    """
    height, width = shape
    change = np.zeros((height, width + 1), np.int8)
    heights = np.asarray(origin[1] + (np.arange(height) + 0.5) * scale[1], np.float64)
    for rows in _batches(np.arange(height), BATCH):
        spans, _ = _cut(outlines, heights[rows], without)
        for at, step in ((spans.start, 1), (spans.stop, -1)):
            column = np.ceil((at - origin[0]) / scale[0] - 0.5)
            np.add.at(change, (rows[spans.line], np.clip(column, 0, width).astype(int)), step)
    return np.cumsum(change[:, :-1], axis=1, dtype=np.int8) > 0


def _cut(outlines: Outlines, lines: Floats, without: Outlines | None) -> tuple[Spans, Ints]:
    """The spans of lines in any order, and each line's number in the spans."""
    rising, rank = np.unique(lines, return_inverse=True)
    spans = outlines.cut(rising)
    if without is not None:
        spans = spans.minus(without.cut(rising))
    return spans, rank


def _batches(rows: Ints, size: int) -> Iterator[Ints]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
