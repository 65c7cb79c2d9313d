"""What `metrics.json` says of a set of slide-level predictions, and the same in one line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.data.labels import count
from pathgen.evaluate.metrics import bootstrap_interval, classification_metrics, spread

FORMAT = "pathgen.mil"


def judge(
    y: NDArray[np.int64],
    predicted: NDArray[np.int64],
    scores: NDArray[np.float64] | None,
    classes: Sequence[str],
    groups: Sequence[str],
    folds: NDArray[np.int64] | None,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """All that `evaluate_predictions` returns but the notes, from arrays of N slides."""
    values: dict[str, Any] = {"format": FORMAT}
    values |= classification_metrics(y, scores, classes, predicted=predicted)
    values["patients"] = len(set(groups))
    values["intervals"] = bootstrap_interval(
        y, scores, classes, predicted=predicted, groups=groups, seed=seed
    )
    largest = np.full(len(y), np.bincount(y).argmax())
    values["baselines"] = {
        "majority": classification_metrics(y, None, classes, predicted=largest)
        | {"predicts": classes[int(largest[0])]}
    }
    values["folds"] = []
    for fold in [] if folds is None else np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        part = None if scores is None else scores[rows]
        found = classification_metrics(y[rows], part, classes, predicted=predicted[rows])
        values["folds"].append({"fold": int(fold), **found})
    values["fold_mean"] = spread(values["folds"]) if values["folds"] else None
    return values


def summary(values: dict[str, Any]) -> str:
    """One line for people: ``accuracy 0.83 [0.70, 0.93], ... on 12 slides.``"""
    parts = []
    for name, title in (("accuracy", "accuracy"), ("auc", "AUC"), ("qwk", "kappa")):
        if values[name] is None:
            parts.append(f"{title} undefined ({values['undefined'][name]})")
            continue
        interval = values["intervals"][name]
        width = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        parts.append(f"{title} {values[name]:.3f}{width}")
    baseline = values["baselines"]["majority"]
    return (
        f"{', '.join(parts)} on {count(values['n'], 'slide')} of "
        f"{count(values['patients'], 'patient')}{_fold_mean(values)}; always "
        f"{baseline['predicts']}: accuracy {baseline['accuracy']:.3f}."
    )


def _fold_mean(values: dict[str, Any]) -> str:
    """``; mean of 5 folds: accuracy 0.81 (sd 0.05)``: scores of several heads were pooled."""
    means = values.get("fold_mean") or {}
    parts = [
        f"{title} {found['mean']:.3f}" + (f" (sd {found['sd']:.3f})" if found["sd"] else "")
        for name, title in (("accuracy", "accuracy"), ("auc", "AUC"))
        if (found := means.get(name)) and len(values["folds"]) > 1
    ]
    return f"; mean of {len(values['folds'])} folds: {', '.join(parts)}" if parts else ""
