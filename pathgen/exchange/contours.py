"""The outline of the tissue as polygons: exactly the edges of the mask's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathgen.exchange.entries import Entry
from pathgen.tiling.maskattr import read_mask
from pathgen.tiling.tissue import TissueMask

Ring = list[list[float]]


class Piece(NamedTuple):
    """A connected piece: closed rings of level-0 (x, y), the outer one first."""

    exterior: Ring
    holes: list[Ring]


def contours_of(entry: Entry) -> list[Piece] | None:
    """The tissue of a slide, from the mask in its patch store; None where there is none."""
    attribute = entry.patches.attrs.get("tissue_mask") if entry.patches is not None else None
    return None if attribute is None else pieces(read_mask(attribute))


def pieces(mask: TissueMask) -> list[Piece]:
    """Polygons that cover exactly the pixels of `mask`, each 4-connected piece one polygon."""
    from scipy.ndimage import label

    numbers, count = label(np.pad(mask.pixels, 1))
    found: list[list[NDArray[np.int64]]] = [[] for _ in range(count)]
    for ring, number in _rings(numbers):
        found[number - 1].append(ring)
    result = []
    for rings in found:
        # Outer rings turn one way and holes the other; each piece has one outer ring.
        rings.sort(key=_area, reverse=True)
        exterior, *holes = (_level0(ring, mask) for ring in rings)
        result.append(Piece(exterior, holes))
    return result


def trident_geojson(outline: Sequence[Piece]) -> dict[str, Any]:
    """A FeatureCollection as TRIDENT writes it: level-0 pixels, a `tissue_id` each."""
    return {
        "type": "FeatureCollection",
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}},
        "features": [
            {
                "type": "Feature", "properties": {"tissue_id": number},
                "geometry": {"type": "Polygon", "coordinates": [piece.exterior, *piece.holes]},
            }
            for number, piece in enumerate(outline)
        ],
    }  # fmt: skip


Edges = dict[tuple[int, int, int], list[tuple[int, int]]]


def _rings(numbers: NDArray[np.int32]) -> list[tuple[NDArray[np.int64], int]]:
    """Closed rings of pixel corners (n, 2) around each number, tissue on the right-hand side."""
    edges: Edges = {}
    for dy, dx, begin, end in (
        (-1, 0, (0, 0), (1, 0)), (0, 1, (1, 0), (1, 1)), (1, 0, (1, 1), (0, 1)),
        (0, -1, (0, 1), (0, 0)),
    ):  # fmt: skip
        beside = np.roll(numbers, (-dy, -dx), (0, 1))
        ys, xs = np.nonzero((numbers > 0) & (beside != numbers))
        for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
            start = (int(numbers[y, x]), x + begin[0], y + begin[1])
            edges.setdefault(start, []).append((x + end[0], y + end[1]))
    rings = []
    while edges:
        number, x, y = next(iter(edges))
        ring, heading = [(x, y)], (0, 0)
        while True:
            here = ring[-1]
            there = _next(edges, (number, *here), heading)
            if there == ring[0]:
                break
            heading = (there[0] - here[0], there[1] - here[1])
            ring.append(there)
        rings.append((_corners(np.array(ring, np.int64)), number))
    return rings


def _next(edges: Edges, corner: tuple[int, int, int], heading: tuple[int, int]) -> tuple[int, int]:
    """Take an edge from a corner, and strike it off.

    Where two pixels of a piece touch by a corner, one of the gaps beside it is a hole: turning
    left keeps its ring apart from the outer one, so that no ring touches itself.
    """
    ends = edges[corner]
    # Image axes: y grows downwards, and a left turn from (dx, dy) is (dy, -dx).
    left = (corner[1] + heading[1], corner[2] - heading[0])
    chosen = left if left in ends else ends[0]
    ends.remove(chosen)
    if not ends:
        del edges[corner]
    return chosen


def _corners(ring: NDArray[np.int64]) -> NDArray[np.int64]:
    """Without the points along straight sides; in pixels of the mask before it was padded."""
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    turns = (before != after).any(axis=1)
    return np.asarray(ring[turns] - 1)


def _area(ring: NDArray[np.int64]) -> float:
    """Signed, positive for outer rings."""
    x, y = ring.T.astype(np.float64)
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def _level0(ring: NDArray[np.int64], mask: TissueMask) -> Ring:
    points = (np.asarray(mask.origin) + ring * np.asarray(mask.scale)).tolist()
    return [*points, points[0]]
