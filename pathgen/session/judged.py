"""Do the groups differ? Cross-validated logistic regression on a table, judged by patient."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathgen.data.labels import class_order
from pathgen.data.splits import Split, shortfalls
from pathgen.data.splits import folds as divide
from pathgen.errors import DataError
from pathgen.progress import counted
from pathgen.session.columns import texts, vectors
from pathgen.session.shown import Shown, html_table
from pathgen.session.tables import frame

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Steps of the solver.
STEPS = 5000
#: Wrong slides that the page shows.
SHOWN = 20
METHOD = (
    "Logistic regression (L2, C = {c:g}) on {numbers} numbers a slide, each scaled by mean and "
    "spread of the training part. {k} folds, stratified by class; slides of one {owner} are in one "
    "fold. Nothing was tuned."
)


@dataclass(frozen=True, repr=False, eq=False)
class CrossValidated(Shown):
    """Each slide's prediction by the fold that had not seen its patient, and what it is worth."""

    target: str
    slides: tuple[str, ...]
    groups: tuple[str, ...]
    folds: tuple[int, ...]
    labels: tuple[str, ...]
    predicted: tuple[str, ...]
    probabilities: NDArray[np.float64]  # (N, classes)
    classes: tuple[str, ...]
    metrics: dict[str, Any]
    """as in the `metrics.json` of `pathgen train-mil`"""
    notes: tuple[str, ...]
    """what a person should know"""
    method: str

    @property
    def line(self) -> str:
        """``grade from the table: accuracy 0.71 [0.62, 0.80], ..., kappa 0.83 [...] on ...``."""
        from pathgen.evaluate.judgement import summary

        return f"{self.target} from the table: {summary(self.metrics)}"

    def html(self) -> str:
        rows = [[name, *map(str, row)] for name, row in zip(
            self.classes, self.metrics["confusion"], strict=True)]  # fmt: skip
        return html_table([f"true {self.target}", *self.classes], rows)

    def predictions(self) -> pandas.DataFrame:
        """One row a slide, indexed by its id: patient, fold, label, predicted, p_<class>."""
        columns = ["slide", "patient", "fold", "label", "predicted",
                   *(f"p_{name}" for name in self.classes)]  # fmt: skip
        cells = zip(self.slides, self.groups, self.folds, self.labels, self.predicted, strict=True)
        rows = [
            dict(zip(columns, (*row, *map(float, p)), strict=True))
            for row, p in zip(cells, self.probabilities, strict=True)
        ]
        return frame(rows, columns, index="slide")

    def to_csv(self, path: str | Path) -> Path:
        """Write `predictions` as CSV, which `pathgen evaluate` reads; returns where it is.

        Texts that a spreadsheet would take for a formula begin with an apostrophe.
        """
        from pathgen import commit
        from pathgen.evaluate.predictionfile import armored

        path, table = Path(path), self.predictions().reset_index()
        for name in ("slide", "patient", "label", "predicted"):
            table[name] = table[name].map(armored)
        commit.write_text(path, table.to_csv(index=False, lineterminator="\n"))
        return path

    def report(self, path: str | Path) -> Path:
        """Write one HTML page that needs nothing else; returns where it is.

        Raises:
            ConfigError: PG-O19, another program's file is there. StorageError: PG-O01, PG-O03.
        """
        from pathgen.session.resultpage import write_page

        return write_page(self, Path(path))

    def plot(self, ax: Axes | None = None) -> Figure:
        """The confusion matrix: rows are the truth."""
        from pathgen.session.canvas import axes_of

        axes, figure = axes_of(ax)
        matrix = np.array(self.metrics["confusion"])
        axes.imshow(matrix, cmap="Blues")
        for (row, column), number in np.ndenumerate(matrix):
            color = "white" if number > matrix.max() / 2 else "black"
            axes.text(column, row, f"{number:,}", ha="center", va="center", color=color)
        axes.set_xticks(range(len(self.classes)), self.classes)
        axes.set_yticks(range(len(self.classes)), self.classes)
        axes.set(xlabel="predicted", ylabel=f"true {self.target}")
        return figure

    def wrong(self) -> list[tuple[str, str, str, float]]:
        """Slide, truth, prediction and its probability of the wrong ones, the surest first."""
        sure = self.probabilities.max(axis=1)
        pairs = enumerate(zip(self.labels, self.predicted, strict=True))
        rows = sorted((i for i, (a, b) in pairs if a != b), key=lambda i: -sure[i])
        return [(self.slides[i], self.labels[i], self.predicted[i], float(sure[i])) for i in rows]


def cross_validate(
    table: pandas.DataFrame,
    target: str,
    *,
    groups: str | None = None,
    folds: int = 5,
    seed: int = 0,
    c: float = 1.0,
) -> CrossValidated:
    """Predict a column of classes from the columns of numbers, and say how well that goes.

    Rows without a class are left out and said. Classes that are all numbers are in order of value,
    and have a quadratic weighted kappa.

    Args:
        table: one row a slide, indexed by its id; all columns of numbers but `target` and `groups`
            are learned from.
        target: column of classes.
        groups: column of patients, whose slides never part; None: each row is its own.
        seed: of the folds and of the bootstrap.
        c: inverse strength of the penalty.

    Raises:
        DataError: PG-N06, a column or a number is missing; PG-N07, fewer patients than folds, one
            class only, or a fold that would train on one class only.
        ValueError: `c` is not above 0.
    """
    from pathgen.evaluate.judgement import judge_arrays

    if not c > 0:
        raise ValueError(f"c is above 0, not {c}")
    said, owners = texts(table, target), None if groups is None else texts(table, groups)
    known = [i for i, label in enumerate(said) if label is not None]
    if not known:
        raise DataError(f"no row has a {target}", why=f"{len(table)} rows, all without one",
                        hint="do the ids of the two tables agree?")  # fmt: skip
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()][0]
        raise DataError("row stands twice", where=str(twice), hint="one row a slide")
    x = vectors(table.iloc[known], (target, groups))
    labels = [str(said[i]) for i in known]
    names = [str(table.index[i]) for i in known]
    patients = names if owners is None else [
        owners[i] or name for i, name in zip(known, names, strict=True)
    ]  # fmt: skip
    classes = class_order(labels)
    y = np.array([classes.index(label) for label in labels], np.int64)
    splits = divide(y, patients, folds, seed, valid_share=0.0)
    scores, fold, notes = _predicted(x, y, splits, len(classes), c)
    best = scores.argmax(axis=1)
    metrics = judge_arrays(
        y, scores, predicted=best, classes=classes, groups=patients, names=names, folds=fold,
        seed=seed,
    )  # fmt: skip
    notes = [*_left_out(table, said, target), *_alone(owners, known, groups), *notes]
    notes += [note for note in shortfalls(splits, y, classes) if "validation" not in note]
    return CrossValidated(
        target, tuple(names), tuple(patients), tuple(fold), tuple(labels),
        tuple(classes[i] for i in best), scores, classes, metrics, tuple(notes),
        METHOD.format(c=c, numbers=f"{x.shape[1]:,}", k=folds, owner=groups or "row"),
    )  # fmt: skip


def _predicted(
    x: NDArray[np.float64], y: NDArray[np.int64], splits: list[Split], classes: int, c: float
) -> tuple[NDArray[np.float64], list[int], list[str]]:
    """Probabilities (N, classes), the fold (N,) that gave them, and notes."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    scores, fold, notes = np.zeros((len(y), classes)), np.zeros(len(y), np.int64), []
    for number, split in enumerate(splits):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=STEPS))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(x[split.train], y[split.train])
        if any(issubclass(one.category, ConvergenceWarning) for one in caught):
            notes.append(f"fold {number}: the solver had not settled after {STEPS:,} steps")
        # A class that the training part lacks has probability 0.
        columns = model[-1].classes_
        scores[np.ix_(split.test, columns)] = model.predict_proba(x[split.test])
        fold[split.test] = number
    return scores, fold.tolist(), notes


def _left_out(table: pandas.DataFrame, said: list[str | None], target: str) -> list[str]:
    gone = [str(name) for name, label in zip(table.index, said, strict=True) if label is None]
    if not gone:
        return []
    some = ", ".join(gone[:3]) + (", ..." if len(gone) > 3 else "")
    return [f"{counted(len(gone), 'row')} without a {target} left out ({some})"]


def _alone(owners: list[str | None] | None, known: list[int], groups: str | None) -> list[str]:
    if owners is None:
        return ["no column of patients was given: each row counts as a patient of its own"]
    alone = sum(owners[i] is None for i in known)
    return [f"{counted(alone, 'row')} without a {groups}: each its own"] if alone else []
