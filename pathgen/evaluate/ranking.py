"""How well scores rank one class above the rest: areas under the ROC and precision-recall curve."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathgen.evaluate.resampling import Floats, ratio

#: Weights sorted at once; bounds the memory.
CELLS = 1_000_000


class Areas(NamedTuple):
    """(B,) of each; nan where the weights leave the class, or the rest, without a row."""

    roc: Floats
    """Probability that a row of the class scores above one of the rest; ties count half."""
    precision: Floats
    """Average precision: the sum over thresholds of the gain in recall times the precision."""


def weighted_areas(positive: NDArray[np.bool_], scores: Floats, weights: Floats) -> Areas:
    """Areas under both curves of one class, for (B, N) row weights.

    Args:
        positive: (N,) which rows are of the class.
        scores: (N,) the higher, the more it looks like the class; equal scores are one threshold.
        weights: (B, N), not negative.
    """
    order = np.argsort(-scores, kind="stable")
    falling, positive = scores[order], positive[order]
    ends = np.flatnonzero(np.diff(falling, append=-np.inf))  # last row of each threshold
    starts = np.concatenate([[-1], ends[:-1]])  # last row before it
    upto = np.concatenate([[0], np.cumsum(positive)])
    # A threshold that adds no row of the class adds nothing to either area.
    adds = upto[ends + 1] > upto[starts + 1]
    ends, starts = ends[adds], starts[adds]
    roc, precision = np.full(len(weights), np.nan), np.full(len(weights), np.nan)
    at_once = max(1, CELLS // max(1, len(scores)))
    for first in range(0, len(weights), at_once):
        part = slice(first, first + at_once)
        rows = weights[part][:, order]
        everyone = _sums(rows)  # (b, N + 1) weight of the first k rows
        hits = _sums(rows[:, positive])  # (b, P + 1) of the first k rows of the class
        above, after = hits[:, upto[starts + 1]], hits[:, upto[ends + 1]]  # (b, thresholds)
        gained = after - above
        total = hits[:, -1:]
        others = everyone[:, -1:] - total
        below = others - (everyone[:, starts + 1] - above + everyone[:, ends + 1] - after) / 2
        both = np.where(others > 0, total, 0.0)[:, 0]
        roc[part] = ratio((gained * below).sum(1), both * others[:, 0])
        shares = after / np.maximum(everyone[:, ends + 1], 1e-300)
        precision[part] = ratio((gained * shares).sum(1), both)
    return Areas(roc, precision)


def _sums(rows: Floats) -> Floats:
    """(b, N + 1): sums of the first 0, 1, ... columns."""
    sums = np.zeros((len(rows), rows.shape[1] + 1))
    np.cumsum(rows, axis=1, out=sums[:, 1:])
    return sums
