"""Metrics of predicted numbers, such as a tumor fraction or an expression score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike

from pathgen.errors import DataError
from pathgen.evaluate.resampling import Floats, Ints, Measured, number, ratio

METRICS = ("mae", "rmse", "r2", "pearson", "spearman", "bias")
#: Points of the scatter plot.
SHOWN = 500
#: Weights ranked at once; bounds the memory.
CELLS = 1_000_000


@dataclass(frozen=True)
class JudgedNumbers:
    """True and predicted number of N slides."""

    truth: Floats
    predicted: Floats

    kind: ClassVar[str] = "regression"
    classes: ClassVar[tuple[str, ...]] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """`METRICS`."""
        return METRICS

    def __len__(self) -> int:
        return len(self.truth)

    def select(self, rows: Ints) -> Self:
        """The slides in `rows`."""
        return type(self)(self.truth[rows], self.predicted[rows])

    def measure(self, weights: Floats) -> Measured:
        """`METRICS` for (B, N) weights; ``bias`` is the mean of predicted - true."""
        error = self.predicted - self.truth
        total = weights.sum(1)
        squared = ratio(weights @ error**2, total)
        spread = _variance(_near_zero(self.truth), weights)
        return Measured(
            {
                "mae": ratio(weights @ np.abs(error), total),
                "rmse": np.sqrt(squared),
                "r2": 1 - ratio(squared, spread),
                "pearson": _correlation(self.truth, self.predicted, weights),
                "spearman": _rank_correlation(self.truth, self.predicted, weights),
                "bias": ratio(weights @ error, total),
            },
            {},
        )

    def point(self) -> dict[str, Any]:
        """Each metric, and why one is undefined."""
        found = self.measure(np.ones((1, len(self)))).values
        values = {name: number(value[0]) for name, value in found.items()}
        undefined = {name: self._reason() for name in METRICS if values[name] is None}
        return {"n": len(self), **values, "undefined": undefined}

    def truths(self) -> list[object]:
        """Target of each slide."""
        return [*self.truth.tolist()]

    def details(self) -> dict[str, Any]:
        """The points of a scatter plot; at most `SHOWN`, evenly along the order of the rows."""
        rows = np.unique(np.linspace(0, len(self) - 1, min(SHOWN, len(self))).astype(np.int64))
        return {
            "scatter": {
                "truth": self.truth[rows].tolist(), "predicted": self.predicted[rows].tolist()
            }
        }  # fmt: skip

    def baselines(self) -> dict[str, Any]:
        """Always the mean of these slides."""
        mean = float(self.truth.mean())
        constant = type(self)(self.truth, np.full(len(self), mean))
        return {"mean": constant.point() | {"predicts": mean}}

    def _reason(self) -> str:
        if np.ptp(self.truth) == 0:
            return "all slides have the same target"
        return "the prediction is one and the same number throughout"


def judged_numbers(truth: ArrayLike, predicted: ArrayLike) -> JudgedNumbers:
    """Checked answers, (N,) each. Raises DataError (PG-N06)."""
    values = [np.asarray(v, np.float64) for v in (truth, predicted)]
    if not values[0].size:
        raise DataError("no predictions to judge")
    if values[0].ndim != 1 or values[0].shape != values[1].shape:
        raise DataError("predictions do not fit", why=f"{values[1].shape} for {values[0].shape}")
    for name, found in zip(("targets", "predictions"), values, strict=True):
        if not np.isfinite(found).all():
            rows = np.flatnonzero(~np.isfinite(found))
            raise DataError(f"{name} are not finite", why=f"{len(rows)} rows, first {rows[0]}")
    return JudgedNumbers(*values)


def _correlation(a: Floats, b: Floats, weights: Floats) -> Floats:
    """(B,) weighted Pearson correlation of two (N,); nan where one does not vary."""
    a, b = _near_zero(a), _near_zero(b)
    total = weights.sum(1)
    means = [ratio(weights @ v, total) for v in (a, b)]
    both = ratio(weights @ (a * b), total) - means[0] * means[1]
    return ratio(both, np.sqrt(_variance(a, weights) * _variance(b, weights)))


def _rank_correlation(a: Floats, b: Floats, weights: Floats) -> Floats:
    """(B,) Spearman's: Pearson's of the mean ranks that the weighted rows have."""
    result = np.empty(len(weights))
    at_once = max(1, CELLS // len(a))
    for first in range(0, len(weights), at_once):
        part = weights[first : first + at_once]
        ranks = [_ranks(v, part) for v in (a, b)]
        total = part.sum(1)[:, None]
        centered = [r - ratio((part * r).sum(1, keepdims=True), total) for r in ranks]
        both = (part * centered[0] * centered[1]).sum(1)
        spreads = [(part * c**2).sum(1) for c in centered]
        result[first : first + at_once] = ratio(both, np.sqrt(spreads[0] * spreads[1]))
    return result


def _ranks(values: Floats, weights: Floats) -> Floats:
    """(B, N) mean rank of each row when row i stands ``weights[b, i]`` times; ties share theirs."""
    _, place = np.unique(values, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    tied = np.add.reduceat(weights[:, order], starts, axis=1)  # (B, distinct)
    ranks: Floats = (np.cumsum(tied, axis=1) - tied + (tied + 1) / 2)[:, place]
    return ranks


def _near_zero(values: Floats) -> Floats:
    """Less the median: the squares of large numbers would lose the digits that differ."""
    return values - np.median(values)


def _variance(values: Floats, weights: Floats) -> Floats:
    """(B,) weighted variance of (N,) values near zero; exactly 0 where it is a rounding error."""
    total = weights.sum(1)
    square = ratio(weights @ values**2, total)
    variance = square - ratio(weights @ values, total) ** 2
    return np.where(variance > 1e-12 * square, variance, 0.0)
