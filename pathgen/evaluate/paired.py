"""Is one method better than another? Both are judged on the same rows, so rows are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import DataError
from pathgen.evaluate.resampling import RESAMPLES, resampled

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


def mcnemar(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> dict[str, Any]:
    """Exact test that two runs are equally often right (McNemar 1947), two-sided.

    Args:
        first, second: (n,) whether each slide was right; slides are independent.

    Returns:
        p, and how many slides only one of the two got right.
    """
    one, two = int((first & ~second).sum()), int((second & ~first).sum())
    differ, fewer = one + two, min(one, two)
    # Whole numbers: a sum of 5,000 binomials has no rounding error.
    term, tail = 1, 0
    for k in range(fewer + 1):
        tail += term
        term = term * (differ - k) // (k + 1)
    p = min(1.0, 2 * tail / 2**differ) if differ else 1.0
    return {"p": p, "only_first_right": one, "only_second_right": two}


def sign_flips(
    differences: NDArray[np.float64],
    groups: Sequence[str],
    *,
    flips: int = 10_000,
    seed: int = 0,
) -> dict[str, Any]:
    """Permutation test that the mean difference of paired scores is 0, two-sided.

    If two runs were equal, which is called the first would not matter, for any patient (Good
    2005): the signs of whole groups are flipped at random.

    Args:
        differences: (n,) first - second of each slide.
        groups: (n,) patient of each.

    Returns:
        p, at least 1 / (flips + 1), and flips.
    """
    owner = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    sums = np.bincount(owner, differences)
    sums = sums[sums != 0]
    seen, rng, reached = abs(sums.sum()), np.random.default_rng(seed), 0
    at_once = max(1, 4_000_000 // max(1, len(sums)))
    for first in range(0, flips, at_once):
        size = min(at_once, flips - first)
        signs = 2.0 * rng.integers(0, 2, (size, len(sums)), dtype=np.int8) - 1
        # A sum that only rounding keeps from the one that was seen counts as it.
        reached += int((np.abs(signs @ sums) >= seen * (1 - 1e-12)).sum())
    return {"p": (reached + 1) / (flips + 1), "flips": flips}
