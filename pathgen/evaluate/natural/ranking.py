"""Mean average precision of ranked lists, and what several protocols do to features first."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.floating[Any]]


def average_precision(ranks: Sequence[int] | NDArray[np.integer[Any]], positives: int) -> float:
    """Area under the precision-recall curve by trapezoids, as the Oxford buildings measure it.

    Args:
        ranks: places of the relevant items that were found, from 0, rising.
        positives: how many relevant items there are; those not found count as never found.

    Returns:
        0 to 1. The mean of precision just before and just at each relevant item.
    """
    places = np.asarray(ranks, np.float64)
    found = np.arange(len(places), dtype=np.float64)
    before = np.where(places == 0, 1.0, found / np.maximum(places, 1))
    after = (found + 1) / (places + 1)
    return float((before + after).sum() / 2 / positives)


def places_without(
    order: Sequence[int] | NDArray[np.integer[Any]],
    wanted: Collection[int],
    ignored: Collection[int] = (),
) -> list[int]:
    """Places of `wanted` in `order`, counted as if `ignored` were not in the list at all."""
    kept = [item for item in np.asarray(order).tolist() if item not in ignored]
    return [place for place, item in enumerate(kept) if item in wanted]


class Whitening:
    """Shift by a mean, turn to the principal axes, and scale each by its spread to the -1/2.

    As DINO's copy detection: the mean is that of `vectors`, the axes and spreads those of their
    second moment about zero, not about the mean.

    Args:
        vectors: (n, dim) features of other images than are judged.
    """

    def __init__(self, vectors: Vectors, power: float = 0.5) -> None:
        values = np.asarray(vectors, np.float64)
        self.mean = values.mean(0)
        spread, axes = np.linalg.eigh(values.T @ values / len(values))
        # With fewer vectors than dimensions some spreads are zero, but for rounding.
        spread = np.maximum(spread, 1e-5 * spread.max())
        self.axes = axes / spread**power

    def __call__(self, vectors: Vectors) -> NDArray[np.float64]:
        """(n, dim) -> (n, dim)."""
        whitened: NDArray[np.float64] = (np.asarray(vectors, np.float64) - self.mean) @ self.axes
        return whitened


def ranked(queries: Vectors, database: Vectors) -> NDArray[np.int64]:
    """Numbers of the database by falling cosine, for each query: (m, d), (n, d) -> (m, n)."""
    cosine = _unit(queries) @ _unit(database).T
    return np.argsort(-cosine, axis=1, kind="stable").astype(np.int64)


def _unit(vectors: Vectors) -> NDArray[np.float64]:
    values = np.asarray(vectors, np.float64)
    unit: NDArray[np.float64] = values / np.maximum(
        np.linalg.norm(values, axis=1, keepdims=True), 1e-12
    )
    return unit
