"""Metrics of a classification, with intervals, and with a reason where one is undefined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from pathgen.data.labels import as_number
from pathgen.errors import DataError
from pathgen.evaluate import calibration
from pathgen.evaluate.counts import class_rates, confusion, from_confusion, weighted_confusions
from pathgen.evaluate.curves import curves
from pathgen.evaluate.ranking import weighted_areas
from pathgen.evaluate.resampling import RESAMPLES, Floats, Ints, Measured, intervals, number

#: What `classification_metrics` gives one number for, in the order people read them.
METRICS = (
    "accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "auc", "auprc", "qwk",
    "linear_kappa", *calibration.METRICS,
)  # fmt: skip
#: And one for each class.
CLASS_METRICS = ("precision", "recall", "f1", "auc", "auprc")


@dataclass(frozen=True)
class JudgedClasses:
    """True class and decision of N slides, and perhaps a score for each class."""

    truth: Ints
    """(N,) index into `classes`"""
    scores: Floats | None
    """(N, classes)"""
    chosen: Ints
    """(N,) index into `classes`"""
    classes: tuple[str, ...]
    ordinal: bool
    """whether the classes have an order, which kappa needs"""

    kind: ClassVar[str] = "classes"

    @property
    def metrics(self) -> tuple[str, ...]:
        """`METRICS`."""
        return METRICS

    def __len__(self) -> int:
        return len(self.truth)

    def select(self, rows: Ints) -> Self:
        """The slides in `rows`, of the same classes."""
        scores = None if self.scores is None else self.scores[rows]
        return type(self)(self.truth[rows], scores, self.chosen[rows], self.classes, self.ordinal)

    def measure(self, weights: Floats) -> Measured:
        """`METRICS` and `CLASS_METRICS` for (B, N) weights; see `Judged.measure`."""
        size, classes = len(weights), len(self.classes)
        matrices = weighted_confusions(self.truth, self.chosen, classes, weights)
        values = {name: np.full(size, np.nan) for name in METRICS} | from_confusion(matrices)
        by_class = {name: np.full((size, classes), np.nan) for name in CLASS_METRICS}
        by_class |= class_rates(matrices)
        if not self.ordinal:
            values |= {name: np.full(size, np.nan) for name in ("qwk", "linear_kappa")}
        if self.scores is not None:
            for i in range(classes):
                areas = weighted_areas(self.truth == i, self.scores[:, i], weights)
                by_class["auc"][:, i], by_class["auprc"][:, i] = areas
            # nan where any class is missing or alone
            values |= {name: by_class[name].mean(1) for name in ("auc", "auprc")}
        if self.probabilities is not None:
            values |= calibration.calibration(self.truth, self.probabilities, weights)
        return Measured({name: values[name] for name in METRICS}, by_class)

    @property
    def probabilities(self) -> Floats | None:
        """The scores, where they are between 0 and 1 and sum to 1."""
        if self.scores is None or calibration.no_probabilities(self.scores):
            return None
        return self.scores

    def point(self) -> dict[str, Any]:
        """See `classification_metrics`."""
        found = self.measure(np.ones((1, len(self))))
        values = {name: number(value[0]) for name, value in found.values.items()}
        matrix = confusion(self.truth, self.chosen, len(self.classes))
        return {
            "n": len(self),
            "classes": list(self.classes),
            **values,
            "undefined": {name: self._reason(name) for name in METRICS if values[name] is None},
            "confusion": matrix.tolist(),
            "per_class": [
                {"class": label}
                | {name: number(found.by_class[name][0, i]) for name in CLASS_METRICS}
                | {"support": int(matrix[i].sum()), "predicted": int(matrix[:, i].sum())}
                for i, label in enumerate(self.classes)
            ],
        }

    def truths(self) -> list[object]:
        """Class of each slide."""
        return [self.classes[i] for i in self.truth]

    def named(self, classes: Sequence[str]) -> Self:
        """The same with `classes` in place of its own, among which its own all are.

        With scores they are the same classes in another order.
        """
        place = np.array([classes.index(name) for name in self.classes])
        scores = None
        if self.scores is not None:
            scores = self.scores[:, [self.classes.index(name) for name in classes]]
        return type(self)(
            place[self.truth], scores, place[self.chosen], tuple(classes), self.ordinal
        )

    def details(self) -> dict[str, Any]:
        """Reliability in bins, and curves; without scores there are none."""
        meant = self.probabilities
        bins = [] if meant is None else calibration.reliability(self.truth, meant)
        found: dict[str, Any] = {"roc": [], "pr": []}
        if self.scores is not None:
            found = curves(self.truth, self.scores, self.classes)
        about = {"bins": calibration.BINS, "scale": calibration.SCALE}
        return {"calibration": about | {"reliability": bins}, "curves": found}

    def baselines(self) -> dict[str, Any]:
        """Always the largest class."""
        largest = int(np.bincount(self.truth).argmax())
        chosen = np.full(len(self), largest)
        always = type(self)(self.truth, None, chosen, self.classes, self.ordinal)
        return {"majority": always.point() | {"predicts": self.classes[largest]}}

    def _reason(self, name: str) -> str:
        """Why a metric is undefined."""
        if name in ("qwk", "linear_kappa"):
            if not self.ordinal:
                return "the classes have no order"
            return "truth and prediction are one and the same class throughout"
        if self.scores is None:
            return "there are no scores, only decisions"
        present = np.unique(self.truth)
        if name in calibration.METRICS and (why := calibration.no_probabilities(self.scores)):
            return why
        if len(present) == 1:
            return f"there is only class {self.classes[present[0]]}"
        missing = [label for i, label in enumerate(self.classes) if i not in present]
        return f"there is no slide of class {', '.join(missing)}"


def judged_classes(
    y_true: Sequence[int] | NDArray[np.integer],
    probabilities: NDArray[np.floating] | None,
    classes: Sequence[str],
    *,
    predicted: Sequence[int] | NDArray[np.integer] | None = None,
    ordinal: bool | None = None,
) -> JudgedClasses:
    """Checked answers; arguments and errors as in `classification_metrics`."""
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
    return JudgedClasses(truth, scores, chosen, tuple(classes), has_order(classes, ordinal))


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
    ``weighted_f1`` are over the classes that occur or are predicted; ``auc`` and ``auprc`` are the
    mean area under the ROC curve and the mean average precision, each class against the rest;
    ``qwk`` and ``linear_kappa`` are weighted kappa; for ``brier``, ``brier_skill``, ``log_loss``,
    ``ece`` and ``mce`` see `pathgen.evaluate.calibration`. An undefined metric is None, and
    ``undefined`` says why.

    Args:
        y_true: (N,) index into `classes`.
        probabilities: (N, classes) scores, or None when only decisions are known.
        predicted: (N,) decisions; default: the class with the highest score.
        ordinal: whether classes have an order, which kappa needs; default: when there are two
            or all are numbers.

    Raises:
        DataError: PG-N06, lengths differ, a label is no class, or a score is not finite.
    """
    return judged_classes(
        y_true, probabilities, classes, predicted=predicted, ordinal=ordinal
    ).point()


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
    """`pathgen.evaluate.resampling.intervals` of `classification_metrics`, each class included.

    Args:
        groups: (N,) patient of each row; default: each row is its own.
        seed: of the draws. Other arguments and errors as in `classification_metrics`.
    """
    answers = judged_classes(y_true, probabilities, classes, predicted=predicted, ordinal=ordinal)
    return intervals(answers, groups, classes=classes, seed=seed, resamples=resamples, level=level)


def has_order(classes: Sequence[str], ordinal: bool | None) -> bool:
    """What was said; else true of two classes, and of numbers."""
    if ordinal is not None:
        return ordinal
    return len(classes) == 2 or all(as_number(name) is not None for name in classes)
