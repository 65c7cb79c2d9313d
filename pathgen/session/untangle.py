"""A polygon whose rings cross as polygons whose rings do not, covering the same area.

The area is that of `pathgen.tiling.outlines`: a ring is filled by the even-odd rule, and holes are
taken away from the exterior. Each crossing becomes a corner of both lines, so that edges meet at
corners alone; of these edges those between inside and outside are kept, and the boundary of each
face is walked along.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from pathgen.tiling.outlines import Polygon

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Corners are rounded to this share of a level-0 pixel, so that crossings meet themselves again.
GRAIN = 1 / 1024
#: Pairs of edges that are tried at once.
BATCH = 2**20


def tidied(ring: Floats) -> Floats:
    """Corners (n, 2) on the grain, without repeats in a row; the last is not the first again."""
    points = np.round(np.asarray(ring, np.float64).reshape(-1, 2) / GRAIN) * GRAIN
    if not len(points):
        return points
    return np.asarray(points[(points != np.roll(points, 1, axis=0)).any(axis=1)])


def simple(rings: Sequence[Floats]) -> bool:
    """Whether no two edges of tidied rings meet but at the corner between neighbors."""
    start, stop, owner = _edges(rings)
    sizes = np.bincount(owner, minlength=len(rings))
    first = np.cumsum(sizes) - sizes
    at = np.arange(len(start))
    following = np.where(at + 1 == (first + sizes)[owner], first[owner], at + 1)
    return not _meetings(start, stop, following)


def untangled(rings: Sequence[Floats]) -> list[Polygon]:
    """Polygons with simple rings that cover what tidied ones do: the exterior less the holes."""
    start, stop, owner = _edges(rings)
    faces = _faces(*_boundary(*_with_crossings(start, stop, owner), len(rings)))
    loops = [loop for walk in faces for loop in _loops(walk)]
    outer = sorted((loop for loop in loops if area(loop) > 0), key=area)
    holes: list[list[Floats]] = [[] for _ in outer]
    for loop in loops:
        if area(loop) < 0:
            point, size = _inner_point(loop), -area(loop)
            around = (i for i, one in enumerate(outer) if area(one) > size and _holds(one, point))
            holes[next(around)].append(loop)
    return [Polygon(one, tuple(found)) for one, found in zip(outer, holes, strict=True)]


def area(ring: Floats) -> float:
    """Signed, in square pixels."""
    x, y = (ring - ring[0]).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _edges(rings: Sequence[Floats]) -> tuple[Floats, Floats, Ints]:
    """Start and stop (m, 2) of all edges, and the ring (m,) that each is of."""
    stops = [np.roll(ring, -1, axis=0) for ring in rings]
    owner = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    return np.concatenate(list(rings)), np.concatenate(stops), owner


def _meetings(
    start: Floats, stop: Floats, following: Ints | None = None
) -> dict[int, list[Floats]]:
    """Edge -> points, inside of it or at its ends, where others meet it.

    With the number of the edge that follows each, the corner that these share is no meeting.
    """
    low, high = np.minimum(start, stop), np.maximum(start, stop)
    order = np.argsort(low[:, 0], kind="stable")
    # In order of their left ends, those that begin before another ends are a range.
    last = np.searchsorted(low[order, 0], high[order, 0], "right")
    found: dict[int, list[Floats]] = {}
    count = len(start)
    step = max(1, BATCH // max(int((last - np.arange(count)).max(initial=1)), 1))
    for first in range(0, count, step):
        rows = np.arange(first, min(first + step, count))
        sizes = last[rows] - rows - 1
        one = np.repeat(rows, sizes)
        past = np.arange(len(one)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        a, b = order[one], order[one + 1 + past]
        near = (low[a, 1] <= high[b, 1]) & (low[b, 1] <= high[a, 1])
        a, b = a[near], b[near]
        side = np.zeros(len(a), np.bool_)
        if following is not None:
            side = (following[a] == b) | (following[b] == a)
        for i, j, at in _met(start, stop, a, b, side):
            found.setdefault(i, []).append(at)
            found.setdefault(j, []).append(at)
    return found


def _met(
    start: Floats, stop: Floats, a: Ints, b: Ints, neighbors: NDArray[np.bool_]
) -> Iterator[tuple[int, int, Floats]]:
    """Of pairs of edges those that meet, and where, on the grain."""
    p, r = start[a], stop[a] - start[a]
    q, s = start[b], stop[b] - start[b]
    across = _cross(r, s)
    slanted = across != 0
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(slanted, _cross(q - p, s) / across, np.nan)
        u = np.where(slanted, _cross(q - p, r) / across, np.nan)
    meet = (t >= 0) & (t <= 1) & (u >= 0) & (u <= 1)
    for k in np.flatnonzero(meet & ~neighbors):
        yield int(a[k]), int(b[k]), np.round((p[k] + t[k] * r[k]) / GRAIN) * GRAIN
    # Along one line: where the ends of one lie on the other.
    for k in np.flatnonzero(~slanted & (_cross(q - p, r) == 0)):
        for end, base, way in (
            (q[k], p[k], r[k]), (q[k] + s[k], p[k], r[k]), (p[k], q[k], s[k]),
            (p[k] + r[k], q[k], s[k]),
        ):  # fmt: skip
            share = ((end - base) @ way) / (way @ way)
            if 0 < share < 1 if neighbors[k] else 0 <= share <= 1:
                yield int(a[k]), int(b[k]), end


def _cross(one: Floats, other: Floats) -> Floats:
    return np.asarray(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0])


def _with_crossings(start: Floats, stop: Floats, owner: Ints) -> tuple[Floats, Floats, Ints]:
    """The edges cut at every meeting, until there are no new ones."""
    while True:  # rounding a crossing can move an edge across another corner
        met = _meetings(start, stop)
        pieces, owners = [], []
        for edge, (corner, end) in enumerate(zip(start, stop, strict=True)):
            points = np.unique(np.array(met.get(edge, [corner])), axis=0)
            inner = points[~((points == corner).all(1) | (points == end).all(1))]
            inner = inner[np.argsort((inner - corner) @ (end - corner), kind="stable")]
            path = np.concatenate([corner[None], inner, end[None]])
            pieces.append(np.hstack([path[:-1], path[1:]]))
            owners.append(np.full(len(path) - 1, owner[edge]))
        edges = np.concatenate(pieces)
        if len(edges) == len(start):
            return start, stop, owner
        start, stop, owner = edges[:, :2], edges[:, 2:], np.concatenate(owners)


def _boundary(start: Floats, stop: Floats, owner: Ints, rings: int) -> tuple[Floats, Floats]:
    """Start and stop (m, 2) of the edges between inside and outside, the inside on their left.

    Left as where y grows upwards.
    """
    turned = (start[:, 0] > stop[:, 0]) | ((start[:, 0] == stop[:, 0]) & (start[:, 1] > stop[:, 1]))
    ends = np.where(turned[:, None], np.hstack([stop, start]), np.hstack([start, stop]))
    edges, number = np.unique(ends, axis=0, return_inverse=True)
    odd = np.zeros((len(edges), rings), np.int64)  # how often each ring takes each edge
    np.add.at(odd, (number.ravel(), owner), 1)
    start, stop = edges[:, :2], edges[:, 2:]
    keep, flip = np.zeros(len(edges), np.bool_), np.zeros(len(edges), np.bool_)
    for i, (x, y) in enumerate((start + stop) / 2):
        level = start[i, 1] == stop[i, 1]
        one, other = (start[:, ::-1], stop[:, ::-1]) if level else (start, stop)
        near, far = (y, x) if level else (x, y)
        hit = (one[:, 1] <= far) != (other[:, 1] <= far)
        hit[i] = False
        before = odd[hit][_at(one[hit], other[hit], far) < near].sum(axis=0)
        # On its west and east; of a level one below and above.
        low, high = _is_inside(before), _is_inside(before + odd[i])
        keep[i] = low != high
        # Upwards the left is in the west; to the east it is above.
        flip[i] = low if level else low != (stop[i, 1] > start[i, 1])
    start, stop, flip = start[keep], stop[keep], flip[keep, None]
    return np.where(flip, stop, start), np.where(flip, start, stop)


def _is_inside(times: Ints) -> bool:
    """By how often a line from outside has met the exterior and each of the holes."""
    return bool(times[0] % 2 and not (times[1:] % 2).any())


def _faces(start: Floats, stop: Floats) -> Iterator[list[tuple[float, float]]]:
    """Closed walks along the edges, each with its face on the left all the way."""
    leaving: dict[tuple[float, float], list[int]] = {}
    for i, (x, y) in enumerate(start.tolist()):
        leaving.setdefault((x, y), []).append(i)
    way = stop - start
    angle, back = np.arctan2(way[:, 1], way[:, 0]), np.arctan2(-way[:, 1], -way[:, 0])
    left = dict.fromkeys(range(len(start)))
    while left:
        edge = first = next(iter(left))
        walk = []
        while True:
            del left[edge]
            walk.append((float(start[edge, 0]), float(start[edge, 1])))
            options = leaving[float(stop[edge, 0]), float(stop[edge, 1])]
            # The first one clockwise from where the walk came from.
            turns = [(back[edge] - angle[i]) % (2 * np.pi) or 2 * np.pi for i in options]
            edge = options[int(np.argmin(turns))]
            if edge == first:
                break
        yield walk


def _loops(walk: Sequence[tuple[float, float]]) -> Iterator[Floats]:
    """A closed walk cut wherever it comes back to a corner: loops that visit none twice."""
    path: list[tuple[float, float]] = []
    place: dict[tuple[float, float], int] = {}
    for corner in [*walk, walk[0]]:
        if corner in place:
            loop = path[place[corner] :]
            for gone in loop[1:]:
                del place[gone]
            del path[place[corner] + 1 :]
            yield np.array(loop)
        else:
            place[corner] = len(path)
            path.append(corner)


def _inner_point(loop: Floats) -> Floats:
    """A point inside, off every corner's height: the middle of the widest span of a line."""
    heights = np.unique(loop[:, 1])
    gap = int(np.argmax(np.diff(heights)))
    y = float(heights[gap] + heights[gap + 1]) / 2
    spans = np.sort(_crossed(loop, y)).reshape(-1, 2)
    widest = spans[np.argmax(spans[:, 1] - spans[:, 0])]
    return np.array([widest.mean(), y])


def _holds(loop: Floats, point: Floats) -> bool:
    return bool((_crossed(loop, float(point[1])) < point[0]).sum() % 2)


def _crossed(loop: Floats, y: float) -> Floats:
    """Where a line at height y crosses the edges of a ring, half open."""
    start, stop = loop, np.roll(loop, -1, axis=0)
    hit = (start[:, 1] <= y) != (stop[:, 1] <= y)
    return _at(start[hit], stop[hit], y)


def _at(start: Floats, stop: Floats, y: float) -> Floats:
    (x0, y0), (x1, y1) = start.T, stop.T
    return np.asarray(x0 + (y - y0) / (y1 - y0) * (x1 - x0), np.float64)
