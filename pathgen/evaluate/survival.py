"""Metrics of predicted risks against times to an event, some of them censored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pathgen.errors import DataError
from pathgen.evaluate.resampling import Floats, Ints, Measured, number, ratio

METRICS = ("c_index",)
#: Steps of a survival curve that are kept.
SHOWN = 200
#: 97.5 % point of the normal distribution.
Z = 1.959963984540054
#: Pairs compared at once; bounds the memory.
PAIRS = 8_000_000


@dataclass(frozen=True)
class JudgedRisks:
    """Time, event and predicted risk of N slides."""

    time: Floats
    event: NDArray[np.bool_]
    """true where the event was seen at `time`, false where nothing more is known (censored)"""
    risk: Floats
    """the higher, the earlier the event is expected"""

    kind: ClassVar[str] = "survival"
    classes: ClassVar[tuple[str, ...]] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """`METRICS`."""
        return METRICS

    def __len__(self) -> int:
        return len(self.time)

    def select(self, rows: Ints) -> Self:
        """The slides in `rows`."""
        return type(self)(self.time[rows], self.event[rows], self.risk[rows])

    def measure(self, weights: Floats) -> Measured:
        """Harrell's concordance for (B, N) weights; see `concordance`."""
        return Measured({"c_index": concordance(self.time, self.event, self.risk, weights)}, {})

    def point(self) -> dict[str, Any]:
        """The concordance, and why it is undefined."""
        value = number(self.measure(np.ones((1, len(self)))).values["c_index"][0])
        undefined = {} if value is not None else {"c_index": self._reason()}
        return {
            "n": len(self), "events": int(self.event.sum()), "c_index": value,
            "undefined": undefined,
        }  # fmt: skip

    def of_patients(self, groups: Sequence[str]) -> Self:
        """A patient's slides with one truth, in all repeats, as one entry at their mean risk.

        Curves and their test take entries for independent: a death counts once, however many
        slides or repeats tell of it.
        """
        keys = list(zip(groups, self.time.tolist(), self.event.tolist(), strict=True))
        place = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        owner = np.array([place[key] for key in keys])
        risk = np.bincount(owner, self.risk) / np.bincount(owner)
        _, time, event = zip(*place, strict=True)
        return type(self)(np.array(time), np.array(event, np.bool_), risk)

    def truths(self) -> list[object]:
        """Time and event of each slide."""
        return list(zip(self.time.tolist(), self.event.tolist(), strict=True))

    def details(self) -> dict[str, Any]:
        """Survival of the halves with lower and higher risk, and the log-rank test of them."""
        median = float(np.median(self.risk))
        high = self.risk > median
        groups = (("risk at most the median", ~high), ("risk above the median", high))
        found = logrank(self.time, self.event, high)
        return {
            "logrank": None if found is None else {
                "chi2": found[0], "p": found[1], "split": f"risk above the median, {median:.6g}",
            },
            "kaplan_meier": [
                {"group": title} | kaplan_meier(self.time[rows], self.event[rows])
                for title, rows in groups
                if rows.any()
            ],
        }  # fmt: skip

    def baselines(self) -> dict[str, Any]:
        """The same risk for everyone."""
        constant = type(self)(self.time, self.event, np.zeros(len(self)))
        return {"none": constant.point()}

    def _reason(self) -> str:
        if not self.event.any():
            return "there is no event"
        return "no slide was seen for longer than one with an event"


def judged_risks(time: ArrayLike, event: ArrayLike, risk: ArrayLike) -> JudgedRisks:
    """Checked answers, (N,) each. Raises DataError (PG-N06)."""
    times, risks = (np.asarray(v, np.float64) for v in (time, risk))
    events = np.asarray(event)
    if not times.size:
        raise DataError("no predictions to judge")
    if times.ndim != 1 or not times.shape == risks.shape == events.shape:
        raise DataError(
            "risks do not fit", why=f"times {times.shape}, events {events.shape}, {risks.shape}"
        )
    for name, found in (("times", times), ("risks", risks)):
        if not np.isfinite(found).all():
            rows = np.flatnonzero(~np.isfinite(found))
            raise DataError(f"{name} are not finite", why=f"{len(rows)} rows, first {rows[0]}")
    if times.min() < 0:
        raise DataError("a time is negative", why=f"row {int(times.argmin())}: {times.min():g}")
    if not np.isin(events, (0, 1)).all():
        raise DataError("events are 0 or 1", why=f"found {np.unique(events)[:5].tolist()}")
    return JudgedRisks(times, events.astype(np.bool_), risks)


def concordance(time: Floats, event: NDArray[np.bool_], risk: Floats, weights: Floats) -> Floats:
    """(B,) Harrell's C-index (1982) for (B, N) counts; nan without a comparable pair.

    A pair is comparable where the earlier of two different times is an event, or where of two
    equal times one is an event and the other censored, which outlives it. It counts 1 where the
    risk of the earlier is higher, and one half where the risks are equal.
    """
    over, under = np.zeros(len(weights)), np.zeros(len(weights))
    dead = np.flatnonzero(event)
    counts = weights.astype(np.float32)  # sums of counts and halves are exact below 2^23
    at_once = max(1, PAIRS // max(1, len(time)))
    for first in range(0, len(dead), at_once):
        rows = dead[first : first + at_once]
        outlives = (time > time[rows, None]) | ((time == time[rows, None]) & ~event)  # (b, N)
        higher = (risk[rows, None] > risk) + 0.5 * (risk[rows, None] == risk)
        own = weights[:, rows]
        over += (own * (counts @ (outlives * higher).astype(np.float32).T)).sum(1)
        under += (own * (counts @ outlives.astype(np.float32).T)).sum(1)
    return ratio(over, under)


def logrank(
    time: Floats, event: NDArray[np.bool_], second: NDArray[np.bool_]
) -> tuple[float, float] | None:
    """Chi-squared and p of the log-rank test (Mantel 1966) of two groups; None: undefined.

    Args:
        second: (N,) true in one group.
    """
    moments = np.unique(time[event])
    if not len(moments) or second.all() or not second.any():
        return None
    at_risk, deaths = _table(time, event, moments)
    at_risk_2, deaths_2 = _table(time[second], event[second], moments)
    excess = (deaths_2 - deaths * at_risk_2 / at_risk).sum()
    share = at_risk_2 / at_risk
    variance = deaths * share * (1 - share) * (at_risk - deaths) / np.maximum(at_risk - 1, 1)
    if variance.sum() <= 0:
        return None
    chi2 = float(excess**2 / variance.sum())
    return chi2, math.erfc(math.sqrt(chi2 / 2))


def kaplan_meier(time: Floats, event: NDArray[np.bool_]) -> dict[str, Any]:
    """Steps of the survival curve (Kaplan & Meier 1958), from 1 at time 0, with 95 % limits.

    The limits are Greenwood's on the log(-log) scale; where the curve is at 1 or 0 they are it.
    """
    moments = np.unique(time[event])
    at_risk, deaths = _table(time, event, moments)
    survival = np.cumprod(1 - deaths / np.maximum(at_risk, 1))
    left = at_risk - deaths
    greenwood = np.cumsum(np.where(left > 0, deaths / np.maximum(at_risk * left, 1), 0))
    low, high = survival.copy(), survival.copy()
    inside = (survival > 0) & (survival < 1)
    middle = np.log(-np.log(survival[inside]))
    width = Z * np.sqrt(greenwood[inside]) / np.abs(np.log(survival[inside]))
    low[inside], high[inside] = (np.exp(-np.exp(middle + s * width)) for s in (1, -1))
    end = float(time.max())
    # The curve goes on flat to the last time anyone was seen.
    last = [survival[-1] if len(moments) else 1.0]
    kept = np.unique(np.linspace(0, len(moments) - 1, min(SHOWN, len(moments))).astype(np.int64))
    limits = [values[-1] if len(moments) else 1.0 for values in (low, high)]
    return {
        "n": len(time),
        "events": int(event.sum()),
        "time": _round([0.0, *moments[kept], end]),
        "survival": _round([1.0, *survival[kept], *last]),
        "low": _round([1.0, *low[kept], limits[0]]),
        "high": _round([1.0, *high[kept], limits[1]]),
    }


def _table(time: Floats, event: NDArray[np.bool_], moments: Floats) -> tuple[Floats, Floats]:
    """At each moment: how many are still seen just before, and how many events there are."""
    ordered = np.sort(time)
    at_risk = len(time) - np.searchsorted(ordered, moments, side="left")
    seen = np.sort(time[event])
    deaths = np.searchsorted(seen, moments, "right") - np.searchsorted(seen, moments, "left")
    return at_risk.astype(np.float64), deaths.astype(np.float64)


def _round(values: Sequence[float]) -> list[float]:
    return [round(float(v), 6) for v in values]
