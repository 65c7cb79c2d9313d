"""Right and wrong answers in detail: classes and their curves, numbers, survival."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pathgen.report import figures, milfigures
from pathgen.report.blocks import Figure, Heading, Note, Section, Table, Text
from pathgen.report.metricnames import kind_of
from pathgen.report.text import as_float, inside, mappings, number, with_interval

Values = Mapping[str, Any]
#: Numbers of a class, and their titles.
PER_CLASS = {
    "precision": "precision", "recall": "recall", "f1": "F1", "auc": "AUC",
    "auprc": "area under precision-recall",
}  # fmt: skip


def answers(section: Section, values: Values) -> None:
    """The blocks that fit what is predicted."""
    {"classes": _classes, "regression": _regression, "survival": _survival}[kind_of(values)](
        section, values
    )


def _classes(section: Section, values: Values) -> None:
    _confusion(section, values)
    _per_class(section, values)
    _curves(section, values)
    _reliability(section, values)


def _confusion(section: Section, values: Values) -> None:
    matrix, classes = values.get("confusion"), values.get("classes")
    section.add(Heading("Confusion matrix"))
    try:
        figure = figures.confusion(matrix or [], [str(name) for name in classes or ()])
    except (ValueError, TypeError):
        section.add(Note("The confusion matrix does not fit its classes, or is missing."))
        return
    repeats = values.get("repeats")
    many = isinstance(repeats, int) and repeats > 1
    counted = "slides, once a repeat" if many else "slides"
    section.add(
        Figure(
            figure,
            "Confusion matrix",
            f"Rows are the truth, columns the prediction, numbers count {counted}; right answers "
            "lie on the diagonal.",
        )
    )


def _per_class(section: Section, values: Values) -> None:
    rows = [row for row in mappings(values.get("per_class")) if "class" in row]
    if not rows:
        return
    spans = {
        str(row.get("class")): row for row in mappings(inside(values, "intervals", "per_class"))
    }
    names = [name for name in PER_CLASS if any(name in row for row in rows)]
    body = [
        [
            str(row["class"]),
            *(with_interval(row.get(n), inside(spans, str(row["class"]), n)) for n in names),
            number(row.get("support")),
        ]
        for row in rows
    ]
    head = ["class", *(PER_CLASS[name] for name in names), "slides"]
    section.add(
        Heading("Each class against the rest"),
        Table(
            "Precision: how many of those named so are so. Recall: how many of them were found. "
            "In brackets the 95 % interval over patients.",
            head, body, numeric=frozenset(range(1, len(head))),
        ),
    )  # fmt: skip


def _curves(section: Section, values: Values) -> None:
    roc, pr = (_lines(inside(values, "curves", name)) for name in ("roc", "pr"))
    if not roc and not pr:
        return
    section.add(
        Figure(
            milfigures.roc_and_pr(roc, pr),
            "ROC and precision-recall curves of each class",
            "Left: how many of a class are found at the price of how many false alarms; the dotted "
            "line is chance. Right: how many alarms are right when so many are found; by chance "
            "that is the share of the class.",
        )
    )


def _lines(values: Any) -> list[milfigures.Line]:
    found: list[milfigures.Line] = []
    for curve in mappings(values):
        x, y = (_numbers(curve.get(axis)) for axis in ("x", "y"))
        if len(x) and len(x) == len(y):
            found.append((str(curve.get("class")), x, y))
    return found


def _reliability(section: Section, values: Values) -> None:
    keys = ("confidence", "accuracy", "n", "low", "high")
    bins = [
        one for one in mappings(inside(values, "calibration", "reliability"))
        if all(as_float(one.get(key)) is not None for key in keys)
    ]  # fmt: skip
    if not bins:
        return
    confidence, accuracy, n, low, high = (
        np.array([float(one[key]) for one in bins]) for key in keys
    )
    scale = inside(values, "calibration", "scale")
    section.add(
        Heading("Calibration"),
        Figure(
            milfigures.reliability(confidence, accuracy, n, np.stack([low, high], 1)),
            "Reliability diagram",
            "Of slides predicted with a probability of, say, 0.8 about 80 % should be right: then "
            "the points lie on the dotted line. Orange: the gap; below: how many slides there are.",
        ),
    )
    if isinstance(scale, str):
        section.add(Text(scale[:1].upper() + scale[1:] + "."))


def _regression(section: Section, values: Values) -> None:
    truth, predicted = (_numbers(inside(values, "scatter", n)) for n in ("truth", "predicted"))
    section.add(Heading("Predicted and true values"))
    if not len(truth) or len(truth) != len(predicted):
        section.add(Note("The pairs of true and predicted values are missing."))
        return
    unit = values.get("label")
    section.add(
        Figure(
            milfigures.scatter(truth, predicted, unit if isinstance(unit, str) else "value"),
            "Predicted by true values",
            "A point a slide; on the dotted line both agree. Predictions that are flatter than the "
            "line are drawn to the mean.",
        )
    )


def _survival(section: Section, values: Values) -> None:
    groups: list[milfigures.Steps] = []
    for one in mappings(values.get("kaplan_meier")):
        columns = [_numbers(one.get(key)) for key in ("time", "survival", "low", "high")]
        if len(columns[0]) and len({len(column) for column in columns}) == 1:
            text = (
                f"{one.get('group')} ({number(one.get('events'))} events in {number(one.get('n'))})"
            )
            groups.append((text, *columns))  # type: ignore[arg-type]
    section.add(Heading("Survival by predicted risk"))
    if not groups:
        section.add(Note("The survival curves are missing."))
        return
    test = values.get("logrank")
    p, chi2 = as_float(inside(test, "p")), as_float(inside(test, "chi2"))
    said = "" if p is None else f" Log-rank test: p {_p(p)} (chi-squared {number(chi2, 1)})."
    section.add(
        Figure(
            milfigures.survival_curves(groups),
            "Kaplan-Meier curves of low and high risk",
            "Share of patients without an event, of those below and above the median of the "
            f"predicted risk; bands are pointwise 95 % intervals.{said} The groups are cut at the "
            "median of these same slides, which flatters the separation a little.",
        )
    )


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _numbers(values: Any) -> Any:
    """A list of finite numbers as an array; empty for anything else."""
    known = [as_float(value) for value in values] if isinstance(values, list) else []
    return np.array([]) if None in known else np.array(known, float)
