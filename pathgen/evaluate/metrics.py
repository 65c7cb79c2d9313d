"""Metrics of a classification, with intervals, and with a reason where one is undefined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.data.labels import as_number
from pathgen.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: What `classification_metrics` gives one number for, in the order people read them.
METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "auc", "qwk")
RESAMPLES = 1000
#: An interval over fewer defined resamples than this share would describe another question.
LEAST_DEFINED = 0.95


def classification_metrics(
    y_true: Sequence[int] | NDArray[np.integer],
    probabilities: NDArray[np.floating] | None,
    classes: Sequence[str],
    *,
    predicted: Sequence[int] | NDArray[np.integer] | None = None,
    ordinal: bool | None = None,
) -> dict[str, Any]:
    """Everything about N predictions, as JSON-ready values.

    ``balanced_accuracy`` is the mean recall of the classes that occur; ``macro_f1`` and
    ``weighted_f1`` are over the classes that occur or are predicted; ``auc`` is the mean area
    under the ROC curve, each class against the rest; ``qwk`` is quadratic weighted kappa.
    An undefined metric is None, and ``undefined`` says why.

    Args:
        y_true: (N,) index into `classes`.
        probabilities: (N, classes) scores, or None when only decisions are known.
        predicted: (N,) decisions; default: the class with the highest score.
        ordinal: whether classes have an order, which kappa needs; default: when there are two
            or all are numbers.

    Raises:
        DataError: PG-N06, lengths differ, a label is no class, or a score is not finite.
    """
    truth, scores, chosen = _checked(y_true, probabilities, classes, predicted)
    matrix = confusion(truth, chosen, len(classes))
    values: dict[str, float | None] = {
        name: v.item() for name, v in from_confusion(matrix[None].astype(float)).items()
    }
    undefined: dict[str, str] = {}
    if not _has_order(classes, ordinal):
        values["qwk"], undefined["qwk"] = None, "the classes have no order"
    elif not np.isfinite(values["qwk"] or 0.0):
        values["qwk"] = None
        undefined["qwk"] = "truth and prediction are one and the same class throughout"
    areas = [None] * len(classes) if scores is None else _class_areas(truth, scores)
    values["auc"], reason = _macro_area(truth, scores, classes, areas)
    if reason:
        undefined["auc"] = reason
    return {
        "n": len(truth),
        "classes": list(classes),
        **{name: values[name] for name in METRICS},
        "undefined": undefined,
        "confusion": matrix.tolist(),
        "per_class": _per_class(matrix, classes, areas),
    }


def bootstrap_interval(
    y_true: Sequence[int] | NDArray[np.integer],
    probabilities: NDArray[np.floating] | None,
    classes: Sequence[str],
    *,
    predicted: Sequence[int] | NDArray[np.integer] | None = None,
    groups: Sequence[str] | None = None,
    ordinal: bool | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = 0.95,
) -> dict[str, Any]:
    """Percentile intervals of every metric in `METRICS`, by resampling whole groups.

    Args:
        groups: (N,) patient of each row; default: each row is its own.

    Returns:
        metric -> [low, high], or None where it is undefined in more than 5 % of the resamples;
        ``undefined`` says which. Other arguments and errors as in `classification_metrics`.
    """
    truth, scores, chosen = _checked(y_true, probabilities, classes, predicted)
    weights = resampled(len(truth), groups, resamples, seed)  # (B, N)
    cells = np.zeros((len(truth), len(classes) ** 2))
    cells[np.arange(len(truth)), truth * len(classes) + chosen] = 1
    matrices = (weights @ cells).reshape(resamples, len(classes), len(classes))
    values = from_confusion(matrices)
    if not _has_order(classes, ordinal):
        values["qwk"] = np.full(resamples, np.nan)
    values["auc"] = np.full(resamples, np.nan)
    if scores is not None:
        areas = [weighted_areas(truth == i, scores[:, i], weights) for i in range(len(classes))]
        values["auc"] = np.mean(areas, axis=0)  # nan where any class is missing or alone
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals: dict[str, Any] = {"undefined": {}}
    for name in METRICS:
        defined = values[name][np.isfinite(values[name])]
        intervals[name] = None
        if len(defined) >= LEAST_DEFINED * resamples:
            intervals[name] = [float(v) for v in np.quantile(defined, tails)]
        else:
            share = f"{resamples - len(defined):,} of {resamples:,}"
            intervals["undefined"][name] = f"undefined in {share} resamples"
    return intervals


def confusion(truth: Ints, predicted: Ints, classes: int) -> Ints:
    """(classes, classes) counts: rows are the truth, columns the prediction."""
    flat = np.bincount(truth * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def from_confusion(matrices: Floats) -> dict[str, Floats]:
    """Accuracy, balanced accuracy, F1 and kappa of (B, C, C) counts at once; nan: undefined."""
    hits = np.diagonal(matrices, axis1=1, axis2=2)  # (B, C)
    support, called = matrices.sum(2), matrices.sum(1)
    total = support.sum(1)
    occurs, known = support > 0, (support > 0) | (called > 0)
    recall = _ratio(hits, support)
    f1 = np.where(known, 2 * hits / np.maximum(support + called, 1e-300), 0.0)
    return {
        "accuracy": _ratio(hits.sum(1), total),
        "balanced_accuracy": _ratio(np.where(occurs, recall, 0).sum(1), occurs.sum(1)),
        "macro_f1": _ratio(f1.sum(1), known.sum(1)),
        "weighted_f1": _ratio((f1 * support).sum(1), total),
        "qwk": weighted_kappa(matrices),
    }


def weighted_kappa(matrices: Floats) -> Floats:
    """Quadratic weighted kappa (Cohen 1968) of (B, C, C) counts; nan where it is undefined."""
    steps = np.arange(matrices.shape[1])
    cost = (steps[:, None] - steps) ** 2
    support, called = matrices.sum(2), matrices.sum(1)
    expected = support[:, :, None] * called[:, None, :] / matrices.sum((1, 2))[:, None, None]
    observed = (cost * matrices).sum((1, 2))
    return 1 - _ratio(observed, (cost * expected).sum((1, 2)))


def weighted_areas(positive: NDArray[np.bool_], scores: Floats, weights: Floats) -> Floats:
    """(B,) areas under the ROC curve of one class, for (B, N) row weights; ties count half.

    nan where the weights leave the class, or the rest, without a row.
    """
    _, place = np.unique(scores, return_inverse=True)
    order = np.argsort(place, kind="stable")
    starts = np.flatnonzero(np.diff(place[order], prepend=-1))
    areas = np.empty(len(weights))
    chunk = max(1, 4_000_000 // max(1, len(scores)))  # bounds the memory
    for first in range(0, len(weights), chunk):
        sorted_weights = weights[first : first + chunk][:, order]
        hits = np.add.reduceat(sorted_weights * positive[order], starts, axis=1)
        misses = np.add.reduceat(sorted_weights * ~positive[order], starts, axis=1)
        below = np.cumsum(misses, axis=1) - misses / 2
        pairs = hits.sum(1) * misses.sum(1)
        areas[first : first + chunk] = _ratio((hits * below).sum(1), pairs)
    return areas


def spread(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each metric over folds; None where a fold has none."""
    result: dict[str, Any] = {}
    for name in METRICS:
        values = [fold[name] for fold in folds]
        if not values or any(value is None for value in values):
            result[name] = None
            continue
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        result[name] = {"mean": float(np.mean(values)), "sd": sd}
    return result


def resampled(n: int, groups: Sequence[str] | None, resamples: int, seed: int) -> Floats:
    """(B, N) how often each row is drawn when groups are drawn with replacement."""
    owner = np.arange(n)
    if groups is not None:
        owner = np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1]
    count = int(owner.max()) + 1
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, count, (resamples, count)) + count * np.arange(resamples)[:, None]
    times = np.bincount(draws.ravel(), minlength=resamples * count).reshape(resamples, count)
    return times[:, owner].astype(np.float64)


# --- inside --------------------------------------------------------------------------------


def _checked(
    y_true: Any, probabilities: Any, classes: Sequence[str], predicted: Any
) -> tuple[Ints, Floats | None, Ints]:
    truth = np.asarray(y_true, np.int64)
    scores = None if probabilities is None else np.asarray(probabilities, np.float64)
    if not len(truth):
        raise DataError("no predictions to judge")
    if scores is not None and scores.shape != (len(truth), len(classes)):
        raise DataError(
            "scores do not fit", why=f"{scores.shape} for {len(truth)} rows, {len(classes)} classes"
        )
    if scores is not None and not np.isfinite(scores).all():
        rows = np.flatnonzero(~np.isfinite(scores).all(1))
        raise DataError("scores are not finite", why=f"{len(rows)} rows, first {rows[0]}")
    if predicted is None and scores is None:
        raise DataError("neither scores nor decisions")
    chosen = np.asarray(scores.argmax(1) if predicted is None else predicted, np.int64)  # type: ignore[union-attr]
    if len(chosen) != len(truth):
        raise DataError("decisions do not fit", why=f"{len(chosen)} for {len(truth)} rows")
    for values in (truth, chosen):
        if values.min() < 0 or values.max() >= len(classes):
            raise DataError("label is no class", why=f"classes are 0 to {len(classes) - 1}")
    return truth, scores, chosen


def _has_order(classes: Sequence[str], ordinal: bool | None) -> bool:
    if ordinal is not None:
        return ordinal
    return len(classes) == 2 or all(as_number(name) is not None for name in classes)


def _class_areas(truth: Ints, scores: Floats) -> list[float | None]:
    everyone = np.ones((1, len(truth)))
    areas = [weighted_areas(truth == i, s, everyone).item() for i, s in enumerate(scores.T)]
    return [area if np.isfinite(area) else None for area in areas]


def _macro_area(
    truth: Ints, scores: Floats | None, classes: Sequence[str], areas: Sequence[float | None]
) -> tuple[float | None, str]:
    if scores is None:
        return None, "there are no scores, only decisions"
    defined = [area for area in areas if area is not None]
    if len(defined) == len(areas):
        return float(np.mean(defined)), ""
    present = np.unique(truth)
    if len(present) == 1:
        return None, f"there is only class {classes[present[0]]}"
    missing = [name for i, name in enumerate(classes) if i not in present]
    return None, f"there is no slide of class {', '.join(missing)}"


def _per_class(
    matrix: Ints, classes: Sequence[str], areas: Sequence[float | None]
) -> list[dict[str, Any]]:
    rows = []
    for i, name in enumerate(classes):
        hits, support, called = int(matrix[i, i]), int(matrix[i].sum()), int(matrix[:, i].sum())
        rows.append(
            {
                "class": name,
                "precision": hits / called if called else None,
                "recall": hits / support if support else None,
                "f1": 2 * hits / (support + called) if support + called else None,
                "auc": areas[i],
                "support": support,
                "predicted": called,
            }
        )
    return rows


def _ratio(over: Floats, under: NDArray[Any]) -> Floats:
    """Quotient, nan where the divisor is 0."""
    result = np.full(np.shape(over), np.nan)
    np.divide(over, under, out=result, where=under > 0)
    return result
