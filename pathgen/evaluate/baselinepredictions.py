"""Predictions of the baselines, split by split as the run made its own."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen import commit
from pathgen.data.labels import count, shown
from pathgen.errors import DataError
from pathgen.evaluate.baselinedata import RunData
from pathgen.evaluate.predictionfile import AnyPredictions, Continuous, Predictions, Survival
from pathgen.evaluate.resampling import Floats, Ints
from pathgen.evaluate.shortcutfits import fit_classes, fit_numbers, fit_risks
from pathgen.evaluate.shortcuts import Measures

#: (rows to learn from, rows to predict) -> probabilities, numbers or risks of the latter.
Fit = Callable[[Ints, Ints], Floats]


def from_labels(data: RunData) -> AnyPredictions:
    """What the training slides' labels alone say: class frequencies, the mean, or one risk."""

    def fit(train: Ints, test: Ints) -> Floats:
        if data.target == "survival":
            return np.zeros(len(test))
        if data.target == "regression":
            assert data.values is not None
            return np.full(len(test), data.values[train].mean())
        shares = np.bincount(data.labels[train], minlength=len(data.classes)) / len(train)
        return np.tile(shares, (len(test), 1))

    return _predicted(data, np.ones(len(data.names), np.bool_), fit)


def from_measures(
    data: RunData, measures: Measures, folder: Path, notes: list[str]
) -> AnyPredictions:
    """Predictions of the small model; the measures are written beside them."""
    has = np.array([name in measures.rows for name in data.names])
    lacking = [name for name, one in zip(data.names, has, strict=True) if not one]
    if lacking:
        notes.append(f"{count(len(lacking), 'slide')} without patches left out ({shown(lacking)})")
    x = np.zeros((len(data.names), len(measures.columns)))
    for i in np.flatnonzero(has).tolist():
        x[i] = measures.rows[data.names[i]]

    def fit(train: Ints, test: Ints) -> Floats:
        if data.target == "survival":
            assert data.values is not None
            assert data.events is not None
            return fit_risks(x[train], data.values[train], data.events[train], x[test])
        if data.target == "regression":
            assert data.values is not None
            return fit_numbers(x[train], data.values[train], x[test])
        return fit_classes(
            x[train], data.labels[train], x[test], len(data.classes), balanced=data.balanced
        )

    predictions = _predicted(data, has, fit)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide", *measures.columns])
    writer.writerows([data.names[i], *map(float, x[i])] for i in np.flatnonzero(has).tolist())
    commit.write_text(folder / "slides.csv", text.getvalue())
    return predictions


def _predicted(data: RunData, has: NDArray[np.bool_], fit: Fit) -> AnyPredictions:
    """The test slides of every split that `has` measures, predicted from its other slides."""
    rows, folds, repeats, said = [], [], [], []
    for split in data.splits:
        train, test = split.train[has[split.train]], split.test[has[split.test]]
        if len(train) and len(test):
            rows.append(test)
            folds.append(np.full(len(test), split.fold))
            repeats.append(np.full(len(test), split.repeat))
            said.append(fit(train, test))
    if not rows:
        raise DataError(
            "no slide of the run has patches there", where="--patches, --features",
            why=f"the run's slides are {shown(data.names)}",
            hint="give the stores that the run's features were made of",
        )  # fmt: skip
    every = np.concatenate(rows)
    answers = np.concatenate(said)
    common: Mapping[str, Any] = {
        "names": [data.names[i] for i in every.tolist()],
        "groups": [data.groups[i] for i in every.tolist()],
        "folds": np.concatenate(folds).tolist(),
        "sites": None if data.sites is None else [data.sites[i] for i in every.tolist()],
        "repeats": np.concatenate(repeats).tolist() if data.repeated else None,
    }
    if data.target == "survival":
        assert data.values is not None
        assert data.events is not None
        return Survival(time=data.values[every], event=data.events[every], risk=answers, **common)
    if data.target == "regression":
        assert data.values is not None
        return Continuous(target=data.values[every], predicted=answers, **common)
    return Predictions(
        labels=[data.classes[i] for i in data.labels[every].tolist()],
        predicted=[data.classes[i] for i in answers.argmax(1).tolist()],
        probabilities=answers,
        classes=data.classes,
        **common,
    )
