"""ROC and precision-recall curves as few points, for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.evaluate.resampling import Floats, Ints

#: Points of a curve.
SHOWN = 200


def curves(truth: Ints, scores: Floats, classes: Sequence[str]) -> dict[str, Any]:
    """Both curves of each class against the rest; none of a class that is missing or alone.

    ``roc`` has x the false and y the true positive rate, from (0, 0) to (1, 1). ``pr`` has x
    recall and y precision, from the highest threshold to recall 1.
    """
    roc, pr = [], []
    for i, label in enumerate(classes):
        positive = truth == i
        if positive.all() or not positive.any():
            continue
        hits, misses = _counts(positive, scores[:, i])
        true, false = hits / hits[-1], misses / misses[-1]
        roc.append({"class": label} | _few(false, true))
        found = hits + misses > 0
        precision = hits[found] / (hits + misses)[found]
        pr.append({"class": label} | _few(true[found], precision))
    return {"roc": roc, "pr": pr}


def _counts(positive: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """Rows of the class and of the rest at or above each threshold, from none to all."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    hits = np.concatenate([[0], np.cumsum(positive[order])[ends]])
    misses = np.concatenate([[0], np.cumsum(~positive[order])[ends]])
    return hits.astype(np.float64), misses.astype(np.float64)


def _few(x: Floats, y: Floats) -> dict[str, list[float]]:
    """At most `SHOWN` of the points, evenly along the curve, with both ends."""
    if len(x) > SHOWN:
        along = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
        wanted = np.linspace(0, along[-1], SHOWN)
        rows = np.unique(np.searchsorted(along, wanted).clip(0, len(x) - 1))
        rows = np.unique(np.concatenate([[0], rows, [len(x) - 1]]))[-SHOWN:]
        rows[0] = 0
        x, y = x[rows], y[rows]
    return {"x": [round(float(v), 5) for v in x], "y": [round(float(v), 5) for v in y]}
