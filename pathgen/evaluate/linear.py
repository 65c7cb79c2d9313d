"""The linear probe: logistic regression on frozen features, how much a hyperplane can read.

Features are standardized by the training rows. The strength of the L2 penalty comes from a fixed
grid and a held-out part of the training rows alone; the test rows are seen once, at the end.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pathgen.errors import DataError
from pathgen.evaluate.knn import scores
from pathgen.evaluate.labelled import PathLike, load_labelled, several_encoders

Vectors = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]

#: scikit-learn's C, the inverse of the penalty: the larger, the freer.
GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
#: Share of each class's training rows that the grid is judged on.
HELD_OUT = 0.2
ITERATIONS = 500


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe.

    Attributes:
        predicted: (m,) int64, class of each test vector.
        c: the chosen entry of the grid.
        held_out: accuracy on the held-out training rows for each C tried; empty when none was.
        converged: whether the last fit ended before `ITERATIONS`.
    """

    predicted: NDArray[np.int64]
    c: float
    held_out: dict[float, float]
    converged: bool


def linear_probe(
    train: Vectors,
    labels: Labels,
    test: Vectors,
    *,
    grid: Sequence[float] = GRID,
    seed: int = 0,
) -> LinearProbe:
    """Fit on all training rows with the C that does best on `HELD_OUT` of them.

    Of equally good entries the strongest penalty (smallest C) is taken. A class with one row has
    none held out. Equal arguments give equal results.

    Args:
        train: (n, dim). test: (m, dim). Any float type; computed in float64.
        labels: (n,) classes, 0 or more.
        grid: values of C to choose from; a single one is taken without a trial.

    Raises:
        DataError: PG-D07, fewer than two classes to learn. ValueError: shapes do not fit.
    """
    if train.shape[1:] != test.shape[1:] or len(labels) != len(train) or not len(grid):
        raise ValueError(f"train {train.shape}, labels {labels.shape}, test {test.shape}")
    if len(np.unique(labels)) < 2:
        raise DataError("a linear probe needs two classes to tell apart", code="PG-D07")
    values = sorted(grid)
    held: dict[float, float] = {}
    if len(values) > 1:
        learn, judge = held_out_rows(labels, seed)
        for c in values:
            found, _ = _fit(train[learn], labels[learn], train[judge], c)
            held[c] = float((found == labels[judge]).mean())
    c = max(values, key=lambda value: held.get(value, 0.0))  # the first, so the smallest, of ties
    predicted, converged = _fit(train, labels, test, c)
    return LinearProbe(predicted, c, held, converged)


def held_out_rows(labels: Labels, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to learn from and rows to choose C by, the latter `HELD_OUT` of each class."""
    chance = np.random.default_rng(seed)
    judged = np.zeros(len(labels), np.bool_)
    for value in np.unique(labels):
        rows = chance.permutation(np.flatnonzero(labels == value))
        judged[rows[: round(HELD_OUT * len(rows))]] = True
    if not judged.any():
        raise DataError(
            "too few labelled patches for a linear probe", code="PG-D07",
            why=f"{len(labels)} rows leave none to choose the penalty by",
        )  # fmt: skip
    return np.flatnonzero(~judged), np.flatnonzero(judged)


def _fit(train: Vectors, labels: Labels, test: Vectors, c: float) -> tuple[NDArray[np.int64], bool]:
    x = np.asarray(train, np.float64)
    mean, spread = x.mean(0), x.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    model = LogisticRegression(C=c, max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said by `converged`
        model.fit((x - mean) / spread, labels)
    found = model.predict((np.asarray(test, np.float64) - mean) / spread)
    return found.astype(np.int64), bool((model.n_iter_ < ITERATIONS).all())


def evaluate_linear(
    train: PathLike | Sequence[PathLike],
    test: PathLike | Sequence[PathLike],
    *,
    labels: PathLike | None = None,
    seed: int = 0,
    title: str | None = None,
) -> dict[str, Any]:
    """Accuracy of a linear probe that learns from `train` and is judged on `test`.

    Args:
        train, test: feature stores, or folders of them.
        labels: CSV with slide, x, y, label of patches; None takes class folders' names.
        title: name of the row in a report; default the encoder's.

    Returns:
        Plain values as of `evaluate_knn`, with c, held_out and converged of `LinearProbe` in
        place of k, temperature and folds.

    Raises:
        NoInputError, StoreError: no features. DataError: PG-D07 too few labels, PG-D08 a bad
        label file. RunError: PG-T04, several encoders.
    """
    learn = load_labelled(train, labels)
    judge = load_labelled(test, labels, classes=learn.classes)
    if judge.encoder["id"] != learn.encoder["id"]:
        raise several_encoders([learn.encoder["id"], judge.encoder["id"]])
    probe = linear_probe(learn.x, learn.y, judge.x, seed=seed)
    return {
        "title": title or str(learn.encoder["name"]),
        **scores(judge.y, probe.predicted, learn.classes),
        "n_train": len(learn),
        "n_test": len(judge),
        "n_unlabelled": learn.unlabelled + judge.unlabelled,
        "c": probe.c,
        "held_out": {str(c): accuracy for c, accuracy in probe.held_out.items()},
        "converged": probe.converged,
        "seed": seed,
        "encoder": {name: learn.encoder.get(name) for name in ("name", "id", "dim")},
        "shared_groups": len(set(learn.groups.tolist()) & set(judge.groups.tolist())),
    }
