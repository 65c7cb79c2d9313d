"""Is one method better than another? Both are judged on the same rows, so rows are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import DataError
from pathgen.evaluate.metrics import RESAMPLES, resampled

Scores = NDArray[np.floating[Any]] | NDArray[np.bool_]


def paired_interval(
    first: Scores,
    second: Scores,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean of first - second with a percentile bootstrap interval over rows, or groups of rows.

    A draw takes the same rows for both methods and in all runs (Efron & Tibshirani 1993, chapter
    8), so what makes a row hard for both cancels. Runs, which differ by their seed, are pooled
    by the mean over them: the interval says what other test rows would give to these runs. How
    runs differ among themselves is `sd_over_runs`.

    Args:
        first, second: (runs, n) or (n,): what each row scored, 1 for right and 0 for wrong, say.
            Run r of both shares what is random about it.
        groups: (n,) what is drawn as a whole, such as the slide; default each row on its own.

    Returns:
        difference, interval [low, high], sd_over_runs (None with one run), runs, rows, groups (how
        many are drawn), resamples, level.

    Raises:
        DataError: PG-N06, the shapes differ or there is no row.
    """
    a, b = (np.atleast_2d(np.asarray(values, np.float64)) for values in (first, second))
    if a.shape != b.shape or not a.size or (groups is not None and len(groups) != a.shape[1]):
        count = "none" if groups is None else len(groups)
        raise DataError(
            "these scores are not of the same rows", code="PG-N06",
            why=f"{a.shape} and {b.shape}, groups {count}",
        )  # fmt: skip
    by_run = (a - b).mean(1)
    difference = (a - b).mean(0)  # (n,)
    weights = resampled(len(difference), groups, resamples, seed)  # (B, n)
    draws = (weights @ difference) / weights.sum(1)
    tails = [(1 - level) / 2, (1 + level) / 2]
    return {
        "difference": float(difference.mean()),
        "interval": [float(v) for v in np.quantile(draws, tails)],
        "sd_over_runs": float(by_run.std(ddof=1)) if len(by_run) > 1 else None,
        "runs": len(a),
        "rows": a.shape[1],
        "groups": a.shape[1] if groups is None else len(set(groups)),
        "resamples": resamples,
        "level": level,
    }
