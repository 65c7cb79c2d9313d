"""Slide-level predictions as a CSV, and their metrics.

Columns: ``slide, patient, fold, label, predicted, p_<class>, ...``. Files of other tools are
read too: ``image_name, predicted_label, <class>-score, ...`` as in the BRIGHT challenge.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen import commit
from pathgen.columns import folded
from pathgen.data.cells import read_cells
from pathgen.data.labels import (
    ALIASES,
    LabelTable,
    as_number,
    class_order,
    count,
    find_column,
    known,
    load_labels,
    match,
    shown,
)
from pathgen.errors import DataError
from pathgen.evaluate.judgement import judge

#: A cell that starts so is a formula to a spreadsheet; an apostrophe before it makes it text.
FORMULA = ("=", "+", "-", "@", "\t", "\r")
DECISIONS = ("predicted", "predicted_label", "prediction")


@dataclass(frozen=True)
class Predictions:
    """One entry per slide in every field but `classes`."""

    names: Sequence[str]
    groups: Sequence[str]
    folds: Sequence[int] | None
    labels: Sequence[str] | None
    """None: the file has no truth"""
    predicted: Sequence[str]
    probabilities: NDArray[np.float64] | None  # (N, classes)
    classes: tuple[str, ...]


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write the CSV atomically, one slide a line. Scores keep all digits: ties stay ties."""
    if predictions.labels is None or predictions.folds is None:
        raise ValueError("predictions of a cross-validation have labels and folds")
    if predictions.probabilities is None:
        raise ValueError("predictions of a cross-validation have probabilities")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    scores = [f"p_{name}" for name in predictions.classes]
    writer.writerow(["slide", "patient", "fold", "label", "predicted", *scores])
    for i, name in enumerate(predictions.names):
        words = [name, predictions.groups[i]]
        numbers = [repr(float(p)) for p in predictions.probabilities[i]]
        writer.writerow(
            [
                *map(_armored, words),
                predictions.folds[i],
                *map(_armored, (predictions.labels[i], predictions.predicted[i])),
                *numbers,
            ]
        )
    commit.write_text(path, text.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Read a predictions CSV, ours or another tool's.

    Raises:
        DataError: PG-N06, no slide column, neither decisions nor scores, or a bad score.
    """
    table = read_cells(path)
    header, rows = table.header, [row for _, row in table.rows]
    slide, _ = find_column(path, header, "slide")
    lower = [name.lower() for name in header]
    chosen = next((lower.index(name) for name in DECISIONS if name in lower), None)
    scores = {i: name for i, h in enumerate(header) if (name := _score_name(h))}
    if chosen is None and not scores:
        raise DataError(
            "no predictions in this file", where=path.name, why=f"it has: {', '.join(header)}",
            hint="needs a predicted column, or one p_<class> column a class",
        )  # fmt: skip
    names = [_bare(row[slide]) for row in rows]
    repeated = sorted({name for name in names if names.count(name) > 1}) if _repeats(names) else []
    if repeated:
        raise DataError("slide predicted twice", where=path.name, why=shown(repeated))
    probabilities = None
    if scores:
        probabilities = np.array(
            [[_score(path, line, row[i]) for i in scores] for line, row in table.rows]
        )
    truth = _column(header, rows, ALIASES["label"])
    if chosen is None and probabilities is not None:
        by_score = list(scores.values())
        predicted = [by_score[i] for i in probabilities.argmax(1)]
    else:
        predicted = [_bare(row[chosen]) for row in rows]  # type: ignore[index]
    owners = _column(header, rows, ALIASES["patient"]) or names
    classes = tuple(scores.values()) or class_order([*predicted, *filter(known, truth or [])])
    return Predictions(
        names,
        [owner or name for owner, name in zip(owners, names, strict=True)],
        [int(fold) for fold in folds] if (folds := _column(header, rows, ("fold",))) else None,
        truth,
        predicted,
        probabilities,
        classes,
    )


def evaluate_predictions(
    path: Path | str,
    *,
    targets: Path | str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Metrics of a predictions file: pooled with 95 % intervals by patient, and for each fold.

    Args:
        path: predictions.csv, or the folder that holds it.
        targets: CSV with slide and label; default: the label column of the predictions.
        label_column: name of the label column of `targets`.
        patient_column: name of its patient column; a patient named there wins.
        seed: of the bootstrap.

    Returns:
        `classification_metrics` of all slides, and ``intervals``, ``folds``, ``fold_mean``,
        ``baselines`` and ``notes``, JSON-ready.

    Raises:
        DataError: PG-N06, a file cannot be used, or the two have no slide in common.
    """
    path = Path(path)
    path = path / "predictions.csv" if path.is_dir() else path
    predictions = read_predictions(path)
    notes: list[str] = []
    owners: Mapping[str, str | None] = {}
    if targets is not None:
        table = load_labels(targets, label_column=label_column, patient_column=patient_column)
        kept, truth, owners = _targets(predictions, table, notes)
    else:
        kept, truth = _own_labels(predictions, path, notes)
    predicted = [predictions.predicted[i] for i in kept]
    classes = predictions.classes
    if predictions.probabilities is None:
        classes = class_order([*predicted, *truth])
    y, decided = (_positions(texts, classes, path, notes) for texts in (truth, predicted))
    scores = None if predictions.probabilities is None else predictions.probabilities[kept]
    groups = [owners.get(predictions.names[i]) or predictions.groups[i] for i in kept]
    fold_of = None if predictions.folds is None else np.array(predictions.folds)[kept]
    return judge(y, decided, scores, classes, groups, fold_of, seed=seed) | {"notes": notes}


# --- reading, in detail --------------------------------------------------------------------


def _own_labels(
    predictions: Predictions, path: Path, notes: list[str]
) -> tuple[list[int], list[str]]:
    """Rows that have a label, and their labels; ``NA`` is one only where it is predicted."""
    if predictions.labels is None:
        raise DataError(
            "predictions without labels", where=path.name, hint="give the labels with --targets"
        )
    scored = predictions.probabilities is not None
    classes = set(predictions.classes if scored else predictions.predicted)
    has = [known(label) is not None or label in classes for label in predictions.labels]
    kept = [i for i, one in enumerate(has) if one]
    left = [name for name, one in zip(predictions.names, has, strict=True) if not one]
    if left:
        notes.append(f"{count(len(left), 'prediction')} without a label left out ({shown(left)})")
    return kept, [predictions.labels[i] for i in kept]


def _targets(
    predictions: Predictions, table: LabelTable, notes: list[str]
) -> tuple[list[int], list[str], dict[str, str | None]]:
    """Rows that have a target, their targets, and the patient of each slide."""
    found = match(predictions.names, table)
    labels = {name: row.label for name, row in found.items() if row.label is not None}
    kept = [i for i, name in enumerate(predictions.names) if name in labels]
    if not kept:
        raise DataError(
            "no predicted slide has a target", where=table.path.name,
            why=f"it does not name {shown(predictions.names)}",
        )  # fmt: skip
    left = [name for name in predictions.names if name not in labels]
    if left:
        notes.append(f"{count(len(left), 'prediction')} without a target left out ({shown(left)})")
    extra = len(table.rows) - len(found)
    if extra:
        notes.append(f"{count(extra, 'target')} without a prediction")
    notes += table.notes
    owners = {name: row.patient for name, row in found.items()}
    return kept, [str(labels[predictions.names[i]]) for i in kept], owners


def _positions(
    texts: Sequence[str], classes: Sequence[str], path: Path, notes: list[str]
) -> NDArray[np.int64]:
    """Labels as positions in `classes`: by name, else by number when all are whole numbers.

    Where a position is a class's name too, as 1 among the classes 1 to 5, it is only a name.
    """
    place = {name: i for i, name in enumerate(classes)}
    unknown = sorted({text for text in texts if text not in place})
    if not unknown:
        return np.array([place[text] for text in texts], np.int64)
    named = any(str(i) in place for i in range(len(classes)))
    if not named and all(text.isdecimal() and int(text) < len(classes) for text in texts):
        note = f"labels are read as positions: 0 is {classes[0]}"
        if note not in notes:
            notes.append(note)
        return np.array([int(text) for text in texts], np.int64)
    raise DataError(
        "label is no class of the predictions", where=path.name,
        why=f"{shown(unknown)}; classes are {', '.join(classes)}",
        hint="write labels as the classes are written" if named else None,
    )  # fmt: skip


def _score_name(header: str) -> str:
    """Class of a score column; empty for another column."""
    if header.startswith("p_"):
        return header[2:]
    for ending in ("-score", "_score"):
        if header.lower().endswith(ending):
            return header[: -len(ending)]
    return ""


def _score(path: Path, line: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise DataError("score is not a number", where=path.name, why=f"line {line}: {text!r}")
    return value


def _column(
    header: Sequence[str], rows: Sequence[Sequence[str]], aliases: Sequence[str]
) -> list[str] | None:
    names = [folded(name) for name in header]
    place = next((names.index(name) for name in map(folded, aliases) if name in names), None)
    return None if place is None else [_bare(row[place]) for row in rows]


def _repeats(names: Sequence[str]) -> bool:
    return len(set(names)) < len(names)


def _armored(text: str) -> str:
    # A text that already begins so gets one more, so that reading gives it back as it was.
    return f"'{text}" if _is_formula(text) else text


def _bare(text: str) -> str:
    return text[1:] if text.startswith("'") and _is_formula(text) else text


def _is_formula(text: str) -> bool:
    """True of ``=1+1`` and ``'=1+1``; a plain number such as -1 is harmless."""
    inside = text.lstrip("'")
    return inside.startswith(FORMULA) and as_number(inside) is None
