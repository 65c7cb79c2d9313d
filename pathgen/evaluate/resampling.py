"""Bootstrap intervals: patients are drawn with replacement, and every metric counts the draws."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pathgen.progress import Progress, Silent

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RESAMPLES = 1000
LEVEL = 0.95
#: An interval over fewer defined resamples than this share would describe another question.
LEAST_DEFINED = 0.95
#: Weights held at once; bounds the memory of a large cohort.
CELLS = 4_000_000


class Measured(NamedTuple):
    """Metrics of N slides under B weightings of them; nan where one is undefined."""

    values: dict[str, Floats]  # (B,) each
    by_class: dict[str, Floats]  # (B, classes) each; empty where there are no classes


class Judged(Protocol):
    """What is true of N slides and what was said of them: classes, numbers or risks."""

    @property
    def kind(self) -> str:
        """``classes``, ``regression`` or ``survival``."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names; empty where there are none."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, in the order people read them."""

    def __len__(self) -> int: ...

    def select(self, rows: Ints) -> Self:
        """The slides in `rows`."""

    def measure(self, weights: Floats) -> Measured:
        """Every metric when slide i counts ``weights[b, i]`` times, for (B, N) weights."""

    def point(self) -> dict[str, Any]:
        """Every metric once, JSON-ready, with ``undefined`` saying why one is None."""

    def truths(self) -> list[object]:
        """What is true of each slide."""

    def details(self) -> dict[str, Any]:
        """What a page shows besides: curves and the like."""

    def baselines(self) -> dict[str, Any]:
        """What an answer that needs no slide would reach."""


def resampled(n: int, groups: Sequence[str] | None, resamples: int, seed: int) -> Floats:
    """(B, N) how often each row is drawn when groups are drawn with replacement."""
    return np.concatenate(list(draws(n, groups, resamples, seed)))


def draws(n: int, groups: Sequence[str] | None, resamples: int, seed: int) -> Iterator[Floats]:
    """The rows of `resampled`, some at a time."""
    owner = np.arange(n)
    if groups is not None:
        owner = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    count = int(owner.max()) + 1
    rng = np.random.default_rng(seed)
    at_once = max(1, CELLS // n)
    for first in range(0, resamples, at_once):
        size = min(at_once, resamples - first)
        drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        yield times[:, owner].astype(np.float64)


def measure_repeats(judged: Judged, repeats: Ints | None, weights: Floats) -> Measured:
    """The mean over repeats of each repeat's metrics; nan where one of them is undefined."""
    if repeats is None:
        return judged.measure(weights)
    parts = []
    for repeat in np.unique(repeats):
        rows = np.flatnonzero(repeats == repeat)
        parts.append(judged.select(rows).measure(weights[:, rows]))
    return Measured(
        {name: np.mean([part.values[name] for part in parts], axis=0) for name in parts[0].values},
        {
            name: np.mean([part.by_class[name] for part in parts], axis=0)
            for name in parts[0].by_class
        },
    )


def intervals(
    judged: Judged,
    groups: Sequence[str] | None = None,
    repeats: Ints | None = None,
    *,
    classes: Sequence[str] = (),
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    progress: Progress | None = None,
    title: str = "bootstrap",
) -> dict[str, Any]:
    """Percentile intervals (Efron 1979) of every metric, by resampling whole groups.

    Args:
        groups: (N,) patient of each row; default: each row is its own.
        repeats: (N,) which repeat (seed) a row is of: a draw takes a patient in all of them.
        classes: names, where there are metrics of each class.

    Returns:
        metric -> [low, high], or None where it is undefined in more than 5 % of the resamples;
        ``undefined`` says which. ``per_class`` holds the same of each class.
    """
    parts = []
    with (progress or Silent()).task(title, resamples) as task:
        for weights in draws(len(judged), groups, resamples, seed):
            parts.append(measure_repeats(judged, repeats, weights))
            task.advance(len(weights))
    found: dict[str, Any] = {"undefined": {}}
    for name in judged.metrics:
        values = np.concatenate([part.values[name] for part in parts])
        found[name] = quantiles(values, level)
        if found[name] is None:
            missing = int((~np.isfinite(values)).sum())
            found["undefined"][name] = f"undefined in {missing:,} of {resamples:,} resamples"
    if classes:
        by_class = {
            name: np.concatenate([part.by_class[name] for part in parts])
            for name in parts[0].by_class
        }
        found["per_class"] = [
            {"class": label}
            | {name: quantiles(values[:, i], level) for name, values in by_class.items()}
            for i, label in enumerate(classes)
        ]
    unit = "slide" if groups is None or _all_differ(groups, repeats) else "patient"
    return found | {"resamples": resamples, "level": level, "unit": unit}


def quantiles(values: Floats, level: float = LEVEL) -> list[float] | None:
    """[low, high] of resampled values, None when too few are defined; see `LEAST_DEFINED`."""
    defined = values[np.isfinite(values)]
    if len(defined) < LEAST_DEFINED * len(values):
        return None
    tails = [(1 - level) / 2, (1 + level) / 2]
    return [float(v) for v in np.quantile(defined, tails)]


def spread(parts: Sequence[Mapping[str, Any]], metrics: Sequence[str]) -> dict[str, Any]:
    """Mean and standard deviation of each metric over folds; None where a fold has none."""
    result: dict[str, Any] = {}
    for name in metrics:
        values = [part[name] for part in parts]
        if not values or any(value is None for value in values):
            result[name] = None
            continue
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        result[name] = {"mean": float(np.mean(values)), "sd": sd}
    return result


def ratio(over: Any, under: Any) -> Floats:
    """Quotient, nan where the divisor is 0 or below."""
    result = np.full(np.broadcast_shapes(np.shape(over), np.shape(under)), np.nan)
    np.divide(over, under, out=result, where=np.asarray(under) > 0)
    return result


def number(value: Any) -> float | None:
    """A JSON number; None where it is nan or infinite."""
    return float(value) if np.isfinite(value) else None


def _all_differ(groups: Sequence[str], repeats: Ints | None) -> bool:
    """Whether no group has two slides; a slide stands once in each repeat."""
    rows = groups if repeats is None else list(zip(groups, repeats.tolist(), strict=True))
    return len(set(rows)) == len(rows)
