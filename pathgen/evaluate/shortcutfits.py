"""Small models of a few numbers a slide: the baselines that need no patch to be looked at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge

from pathgen.evaluate.resampling import Floats, Ints

#: Strength of the L2 penalties, on measures of deviation 1: weak.
PENALTY = 1.0
STEPS = 50


def fit_classes(
    train: Floats, labels: Ints, test: Floats, classes: int, *, balanced: bool
) -> Floats:
    """(M, classes) probabilities of a logistic regression.

    Args:
        train: (N, k) measures. Center and scale are theirs alone.
        labels: (N,) index of a class; classes that do not occur get 0.
        test: (M, k).
        balanced: each class counts the same in the loss.
    """
    probabilities = np.zeros((len(test), classes))
    present = np.unique(labels)
    if len(present) == 1:
        probabilities[:, present[0]] = 1
        return probabilities
    train, test = _standardized(train, test)
    model = LogisticRegression(
        C=1 / PENALTY, class_weight="balanced" if balanced else None, max_iter=5000
    )
    model.fit(train, labels)
    probabilities[:, present] = model.predict_proba(test)
    return probabilities


def fit_numbers(train: Floats, values: Floats, test: Floats) -> Floats:
    """(M,) predictions of a ridge regression on (N, k) measures."""
    train, test = _standardized(train, test)
    predicted: Floats = Ridge(alpha=PENALTY).fit(train, values).predict(test)
    return predicted


def fit_risks(train: Floats, time: Floats, event: NDArray[np.bool_], test: Floats) -> Floats:
    """(M,) log hazards of a Cox regression (Breslow's ties, L2 penalty) on (N, k) measures.

    Newton's method: the loss is convex, and steps are halved until it falls.
    """
    train, test = _standardized(train, test)
    weights = np.zeros(train.shape[1])
    loss, gradient, curvature = _cox(train, time, event, weights)
    for _ in range(STEPS):
        step = np.linalg.solve(curvature, gradient)
        if np.abs(step).max() < 1e-9:
            break
        size = 1.0
        while size > 1e-6:
            found = _cox(train, time, event, weights - size * step)
            if found[0] <= loss:
                break
            size /= 2
        else:
            break
        weights = weights - size * step
        loss, gradient, curvature = found
    risks: Floats = test @ weights
    return risks


def _cox(
    x: Floats, time: Floats, event: NDArray[np.bool_], weights: Floats
) -> tuple[float, Floats, Floats]:
    """Penalized negative partial log likelihood, its gradient (k,) and its Hessian (k, k)."""
    order = np.argsort(-time, kind="stable")  # who is at risk stands before
    x, time, event = x[order], time[order], event[order]
    scores = x @ weights
    hazard = np.exp(scores - scores.max())
    last = np.searchsorted(-time, -time, side="right") - 1  # of the rows with the same time
    sums = np.cumsum(hazard)[last]
    means = np.cumsum(hazard[:, None] * x, axis=0)[last] / sums[:, None]
    squares = np.cumsum(hazard[:, None, None] * x[:, :, None] * x[:, None, :], axis=0)[last]
    spread = squares / sums[:, None, None] - means[:, :, None] * means[:, None, :]
    loss = (np.log(sums) + scores.max() - scores)[event].sum() + PENALTY / 2 * weights @ weights
    gradient = (means - x)[event].sum(0) + PENALTY * weights
    return float(loss), gradient, spread[event].sum(0) + PENALTY * np.eye(len(weights))


def _standardized(train: Floats, test: Floats) -> tuple[Floats, Floats]:
    """Both by the mean and deviation of `train`; a measure that never varies is only centered."""
    center, scale = train.mean(0), train.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    return (train - center) / scale, (test - center) / scale
