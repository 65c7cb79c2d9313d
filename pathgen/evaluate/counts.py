"""Metrics that follow from how often each class was taken for each other."""

from __future__ import annotations

import numpy as np

from pathgen.evaluate.resampling import Floats, Ints, ratio


def confusion(truth: Ints, predicted: Ints, classes: int) -> Ints:
    """(classes, classes) counts: rows are the truth, columns the prediction."""
    flat = np.bincount(truth * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def weighted_confusions(truth: Ints, predicted: Ints, classes: int, weights: Floats) -> Floats:
    """(B, classes, classes): `confusion` when row i counts ``weights[b, i]`` times."""
    cells = np.zeros((len(truth), classes**2))
    cells[np.arange(len(truth)), truth * classes + predicted] = 1
    matrices: Floats = (weights @ cells).reshape(len(weights), classes, classes)
    return matrices


def from_confusion(matrices: Floats) -> dict[str, Floats]:
    """Accuracy, balanced accuracy, F1 and kappa of (B, C, C) counts at once; nan: undefined."""
    hits = np.diagonal(matrices, axis1=1, axis2=2)  # (B, C)
    support, called = matrices.sum(2), matrices.sum(1)
    total = support.sum(1)
    occurs, known = support > 0, (support > 0) | (called > 0)
    recall = ratio(hits, support)
    f1 = np.where(known, 2 * hits / np.maximum(support + called, 1e-300), 0.0)
    return {
        "accuracy": ratio(hits.sum(1), total),
        "balanced_accuracy": ratio(np.where(occurs, recall, 0).sum(1), occurs.sum(1)),
        "macro_f1": ratio(f1.sum(1), known.sum(1)),
        "weighted_f1": ratio((f1 * support).sum(1), total),
        "qwk": weighted_kappa(matrices),
        "linear_kappa": weighted_kappa(matrices, power=1),
    }


def class_rates(matrices: Floats) -> dict[str, Floats]:
    """(B, C) precision, recall and F1 of each class; nan where a class is never said or true."""
    hits = np.diagonal(matrices, axis1=1, axis2=2)
    support, called = matrices.sum(2), matrices.sum(1)
    return {
        "precision": ratio(hits, called),
        "recall": ratio(hits, support),
        "f1": ratio(2 * hits, support + called),
    }


def weighted_kappa(matrices: Floats, power: int = 2) -> Floats:
    """Weighted kappa (Cohen 1968) of (B, C, C) counts; nan where it is undefined.

    Args:
        power: an error by k classes costs ``k ** power``: 2 is the quadratic kappa, 1 the linear.
    """
    steps = np.arange(matrices.shape[1])
    cost = np.abs(steps[:, None] - steps) ** power
    support, called = matrices.sum(2), matrices.sum(1)
    expected = ratio(support[:, :, None] * called[:, None, :], matrices.sum((1, 2))[:, None, None])
    observed = (cost * matrices).sum((1, 2))
    return 1 - ratio(observed, (cost * expected).sum((1, 2)))
