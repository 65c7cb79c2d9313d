"""Slide-level predictions as a CSV, one slide (and repeat) a line.

classes: ``slide, patient, [site,] [repeat,] fold, label, predicted, p_<class>, ...``
regression: ``slide, patient, [site,] [repeat,] fold, target, predicted``
survival: ``slide, patient, [site,] [repeat,] fold, time, event, risk``

Files of other tools are read too: ``image_name, predicted_label, <class>-score, ...`` as in the
BRIGHT challenge.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pathgen import commit
from pathgen.columns import folded
from pathgen.data.cells import Cells, read_cells
from pathgen.data.labels import ALIASES, as_number, class_order, find_column, known, shown
from pathgen.data.truth import EVENTS
from pathgen.errors import DataError

Kind = Literal["classes", "regression", "survival"]
#: A cell that starts so is a formula to a spreadsheet; an apostrophe before it makes it text.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
DECISIONS = ("predicted", "predicted_label", "prediction")
REPEATS = ("repeat",)


@dataclass(frozen=True)
class Predictions:
    """Classes said of slides; one entry per row in every field but `classes`."""

    names: Sequence[str]
    groups: Sequence[str]
    folds: Sequence[int] | None
    labels: Sequence[str] | None
    """None: the file has no truth"""
    predicted: Sequence[str]
    probabilities: NDArray[np.float64] | None  # (N, classes)
    classes: tuple[str, ...]
    sites: Sequence[str] | None = None
    repeats: Sequence[int] | None = None
    """which seed said it; a slide stands once in each"""


@dataclass(frozen=True)
class Continuous:
    """Numbers said of slides; one entry per row in every field."""

    names: Sequence[str]
    groups: Sequence[str]
    folds: Sequence[int] | None
    target: NDArray[np.float64] | None
    """(N,) nan where it is not known; None: the file has no truth"""
    predicted: NDArray[np.float64]  # (N,)
    sites: Sequence[str] | None = None
    repeats: Sequence[int] | None = None


@dataclass(frozen=True)
class Survival:
    """Risks said of slides; one entry per row in every field."""

    names: Sequence[str]
    groups: Sequence[str]
    folds: Sequence[int] | None
    time: NDArray[np.float64] | None
    """(N,) nan where it is not known; None: the file has no truth"""
    event: NDArray[np.bool_] | None
    risk: NDArray[np.float64]  # (N,) the higher, the earlier
    sites: Sequence[str] | None = None
    repeats: Sequence[int] | None = None


AnyPredictions = Predictions | Continuous | Survival


def write_predictions(path: Path, predictions: AnyPredictions) -> None:
    """Write the CSV atomically, one slide a line. Numbers keep all digits: ties stay ties."""
    if predictions.folds is None:
        raise ValueError("predictions that are written have folds")
    columns: dict[str, list[str]] = {
        "slide": [armored(name) for name in predictions.names],
        "patient": [armored(name) for name in predictions.groups],
    }
    if predictions.sites is not None:
        columns["site"] = [armored(name) for name in predictions.sites]
    if predictions.repeats is not None:
        columns["repeat"] = [str(repeat) for repeat in predictions.repeats]
    columns["fold"] = [str(fold) for fold in predictions.folds]
    columns |= _answers(predictions)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    commit.write_text(path, text.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Read a CSV of predicted classes, ours or another tool's.

    Raises:
        DataError: PG-N06, no slide column, neither decisions nor scores, or a bad score.
    """
    found = read_any(path, "classes")
    assert isinstance(found, Predictions)
    return found


def read_any(path: Path, kind: Kind | None = None) -> AnyPredictions:
    """Read a CSV of predictions of any kind.

    Args:
        kind: what is predicted; default: what the columns say. Numbers under ``predicted`` are a
            regression where the truth is called ``target`` and they have a decimal point or an
            exponent, as ours do; other tools' files of numbers are class names.

    Raises:
        DataError: PG-N06, no slide column, nothing predicted, a bad number, or a slide twice.
    """
    table = read_cells(path)
    kind = kind or _kind(table)
    slide, _ = find_column(path, table.header, "slide")
    rows = [row for _, row in table.rows]
    names = [bare(row[slide]) for row in rows]
    owners = _column(table, ALIASES["patient"]) or names
    folds, repeats = (_whole(path, table, column) for column in (("fold",), REPEATS))
    keys = names if repeats is None else list(zip(repeats, names, strict=True))
    if len(set(keys)) < len(keys):
        seen: set[object] = set()
        twice = {names[i] for i, key in enumerate(keys) if key in seen or seen.add(key)}  # type: ignore[func-returns-value]
        raise DataError(
            "slide predicted twice", where=path.name, why=shown(sorted(twice)),
            hint="number the repeats in a column repeat" if repeats is None else None,
        )  # fmt: skip
    groups = [owner or name for owner, name in zip(owners, names, strict=True)]
    sites = _column(table, ALIASES["site"])
    if kind == "regression":
        return Continuous(
            names, groups, folds, _numbers(path, table, ("target", "label"), gaps=True),
            _needed(path, table, DECISIONS), sites, repeats,
        )  # fmt: skip
    if kind == "survival":
        return Survival(
            names, groups, folds, _numbers(path, table, ("time",), gaps=True),
            _events(path, table), _needed(path, table, ("risk",)), sites, repeats,
        )  # fmt: skip
    truth = _column(table, ALIASES["label"])
    predicted, scores, classes = _decisions(path, table, truth)
    return Predictions(names, groups, folds, truth, predicted, scores, classes, sites, repeats)


# --- cells ---------------------------------------------------------------------------------


def armored(text: str) -> str:
    """The text as a cell that is no formula; `bare` gives it back."""
    # A text that already begins so gets one more, so that reading gives it back as it was.
    return f"'{text}" if _is_formula(text) else text


def bare(text: str) -> str:
    """What was armored."""
    return text[1:] if text.startswith("'") and _is_formula(text) else text


def _answers(said: AnyPredictions) -> dict[str, list[str]]:
    """The columns that say what is true and what was predicted."""
    if isinstance(said, Continuous):
        if said.target is None:
            raise ValueError("predictions that are written have a target")
        return {"target": _texts(said.target), "predicted": _texts(said.predicted)}
    if isinstance(said, Survival):
        if said.time is None or said.event is None:
            raise ValueError("predictions that are written have time and event")
        events = [str(int(event)) for event in said.event]
        return {"time": _texts(said.time), "event": events, "risk": _texts(said.risk)}
    if said.labels is None or said.probabilities is None:
        raise ValueError("predictions that are written have labels and probabilities")
    columns = {
        "label": [armored(label) for label in said.labels],
        "predicted": [armored(label) for label in said.predicted],
    }
    for name, scores in zip(said.classes, said.probabilities.T, strict=True):
        columns[f"p_{name}"] = _texts(scores)
    return columns


def _texts(values: NDArray[np.float64]) -> list[str]:
    return [repr(float(value)) for value in values]


def _kind(table: Cells) -> Kind:
    names = {folded(name) for name in table.header}
    if any(_score_name(name) for name in table.header):
        return "classes"
    if "risk" in names:
        return "survival"
    said = _column(table, DECISIONS)
    if said is None or "label" in names or "target" not in names:
        return "classes"
    fractions = [as_number(cell) is not None and not cell.isdecimal() for cell in said]
    return "regression" if all(fractions) else "classes"


def _decisions(
    path: Path, table: Cells, truth: Sequence[str] | None
) -> tuple[list[str], NDArray[np.float64] | None, tuple[str, ...]]:
    """Predicted class of each row, (N, classes) scores where there are any, and the classes."""
    lower = [name.lower() for name in table.header]
    chosen = next((lower.index(name) for name in DECISIONS if name in lower), None)
    scores = {i: name for i, h in enumerate(table.header) if (name := _score_name(h))}
    if chosen is None and not scores:
        raise DataError(
            "no predictions in this file", where=path.name,
            why=f"it has: {', '.join(table.header)}",
            hint="needs a predicted column, or one p_<class> column a class",
        )  # fmt: skip
    probabilities = None
    if scores:
        probabilities = np.array(
            [[_number(path, line, row[i]) for i in scores] for line, row in table.rows]
        )
    if chosen is not None:
        predicted = [bare(row[chosen]) for _, row in table.rows]
    else:
        by_score = list(scores.values())
        assert probabilities is not None
        predicted = [by_score[i] for i in probabilities.argmax(1)]
    classes = tuple(scores.values()) or class_order([*predicted, *filter(known, truth or [])])
    return predicted, probabilities, classes


def _score_name(header: str) -> str:
    """Class of a score column; empty for another column."""
    if header.startswith("p_"):
        return header[2:]
    for ending in ("-score", "_score"):
        if header.lower().endswith(ending):
            return header[: -len(ending)]
    return ""


def _number(path: Path, line: int, text: str) -> float:
    value = as_number(text)
    if value is None:
        raise DataError("score is not a number", where=path.name, why=f"line {line}: {text!r}")
    return value


def _numbers(
    path: Path, table: Cells, names: Sequence[str], *, gaps: bool
) -> NDArray[np.float64] | None:
    """A column of numbers, nan where a cell says that nothing is known."""
    found = _column(table, names)
    if found is None:
        return None
    return np.array(
        [
            np.nan if gaps and known(cell) is None else _number(path, line, cell)
            for (line, _), cell in zip(table.rows, found, strict=True)
        ]
    )


def _needed(path: Path, table: Cells, names: Sequence[str]) -> NDArray[np.float64]:
    values = _numbers(path, table, names, gaps=False)
    if values is None:
        raise DataError(
            "no predictions in this file", where=path.name,
            why=f"it has: {', '.join(table.header)}", hint=f"needs a column {names[0]}",
        )  # fmt: skip
    return values


def _events(path: Path, table: Cells) -> NDArray[np.bool_] | None:
    found = _column(table, ("event",))
    if found is None:
        return None
    events = [EVENTS.get(cell.casefold(), False if known(cell) is None else None) for cell in found]
    for (line, _), cell, event in zip(table.rows, found, events, strict=True):
        if event is None:
            raise DataError(
                "event is neither yes nor no", where=path.name, why=f"line {line}: {cell!r}",
                hint="events are 1 (seen) and 0 (not seen)",
            )  # fmt: skip
    return np.array(events, np.bool_)


def _whole(path: Path, table: Cells, names: Sequence[str]) -> list[int] | None:
    found = _column(table, names)
    if found is None:
        return None
    for (line, _), cell in zip(table.rows, found, strict=True):
        if not cell.isdecimal():
            raise DataError(
                f"{names[0]} is not a whole number", where=path.name, why=f"line {line}: {cell!r}"
            )
    return [int(cell) for cell in found]


def _column(table: Cells, aliases: Sequence[str]) -> list[str] | None:
    names = [folded(name) for name in table.header]
    place = next((names.index(name) for name in map(folded, aliases) if name in names), None)
    return None if place is None else [bare(row[place]) for _, row in table.rows]


def _is_formula(text: str) -> bool:
    """True of ``=1+1`` and ``'=1+1``; a plain number such as -1 is harmless."""
    inside = text.lstrip("'")
    return inside.startswith(FORMULA) and as_number(inside) is None
