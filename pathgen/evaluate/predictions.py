"""Metrics of a predictions file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathgen.data.labels import (
    Labeled,
    LabelTable,
    class_order,
    count,
    known,
    load_labels,
    match,
    shown,
)
from pathgen.data.truth import answers
from pathgen.errors import ConfigError, DataError, NoInputError
from pathgen.evaluate.continuous import judged_numbers
from pathgen.evaluate.judgement import Slides, judge
from pathgen.evaluate.metrics import judged_classes
from pathgen.evaluate.predictionfile import (
    AnyPredictions,
    Continuous,
    Kind,
    Predictions,
    Survival,
    read_any,
    read_predictions,
    write_predictions,
)
from pathgen.evaluate.resampling import Judged
from pathgen.evaluate.submission import challenge_column, official
from pathgen.evaluate.survival import judged_risks
from pathgen.progress import Progress

__all__ = [
    "Answered", "Continuous", "Kind", "Predictions", "Survival", "answered",
    "evaluate_predictions", "predictions_file", "read_any", "read_predictions",
    "write_predictions",
]  # fmt: skip


class Answered(NamedTuple):
    """The predicted slides whose truth is known."""

    judged: Judged
    slides: Slides
    notes: list[str]
    """what a person should know of how the file was read"""


def evaluate_predictions(
    path: Path | str,
    *,
    targets: Path | str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    site_column: str | None = None,
    kind: Kind | None = None,
    ordinal: bool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of a predictions file: pooled with 95 % intervals by patient, and for each fold.

    Args:
        path: predictions.csv, or the folder that holds it.
        targets: CSV with slide and label; default: the label column of the predictions.
        label_column: name of the label column of `targets`; of the BRIGHT challenge's targets
            the one of the task is found.
        patient_column: name of its patient column; a patient named there wins.
        site_column: name of its site column; a site named there wins.
        kind: classes, regression or survival; default: what the columns say.
        ordinal: whether the classes have an order; default: when there are two, or numbers.
        seed: of the bootstrap.

    Returns:
        `pathgen.evaluate.judgement.judge` of all slides, and ``notes``, JSON-ready.

    Raises:
        NoInputError: PG-N01, there is no such file.
        ConfigError: PG-C01, a column's name without `targets`.
        DataError: PG-N06, a file cannot be used, or the two have no slide in common.
    """
    found = answered(
        path, targets=targets, label_column=label_column, patient_column=patient_column,
        site_column=site_column, kind=kind, ordinal=ordinal,
    )  # fmt: skip
    values = judge(found.judged, found.slides, seed=seed, progress=progress)
    return values | official(values) | {"notes": found.notes}


def answered(
    path: Path | str,
    *,
    targets: Path | str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    site_column: str | None = None,
    kind: Kind | None = None,
    ordinal: bool | None = None,
) -> Answered:
    """A predictions file joined with the truth; arguments as in `evaluate_predictions`."""
    for role, name in (
        ("label", label_column), ("patient", patient_column), ("site", site_column)
    ):  # fmt: skip
        if name is not None and targets is None:
            raise ConfigError(
                f"--{role}-column names a column of --targets", where=name, hint="give --targets"
            )
    path = predictions_file(path)
    said = read_any(path, kind)
    notes: list[str] = []
    found: Mapping[str, Labeled] = {}
    table: LabelTable | None = None
    if targets is not None:
        if label_column is None and isinstance(said, Predictions):
            label_column = challenge_column(Path(targets), said.classes)
        table = load_labels(
            targets, label_column=label_column, patient_column=patient_column,
            site_column=site_column, survival=isinstance(said, Survival),
        )  # fmt: skip
        found = match(list(dict.fromkeys(said.names)), table)
        kept = _with_target(said.names, found, table, notes)
    else:
        kept = _with_own_truth(said, path, notes)
    judged = _judged(said, kept, found, table, path, notes, ordinal)
    return Answered(judged, _slides(said, kept, found), notes)


def predictions_file(path: Path | str) -> Path:
    """The file itself, or the one in a run folder. Raises NoInputError (PG-N01): none there."""
    path = Path(path)
    found = path / "predictions.csv" if path.is_dir() else path
    if not found.exists():
        raise NoInputError(
            "no predictions here", where=path, hint="give a predictions.csv, or the folder of one"
        )
    return found


# --- the truth -----------------------------------------------------------------------------


def _with_own_truth(said: AnyPredictions, path: Path, notes: list[str]) -> list[int]:
    """Rows whose truth the file knows; ``NA`` is a class only where it is predicted."""
    if isinstance(said, Predictions):
        if said.labels is None:
            raise _unlabeled(path, "labels")
        classes = set(said.classes if said.probabilities is not None else said.predicted)
        has = [known(label) is not None or label in classes for label in said.labels]
    elif isinstance(said, Continuous):
        if said.target is None:
            raise _unlabeled(path, "a target")
        has = np.isfinite(said.target).tolist()
    else:
        if said.time is None or said.event is None:
            raise _unlabeled(path, "time and event")
        has = np.isfinite(said.time).tolist()
    left = [name for name, one in zip(said.names, has, strict=True) if not one]
    if left:
        notes.append(f"{count(len(left), 'prediction')} without a label left out ({shown(left)})")
    if not any(has):
        raise _unlabeled(path, "labels")
    return [i for i, one in enumerate(has) if one]


def _with_target(
    names: Sequence[str], found: Mapping[str, Labeled], table: LabelTable, notes: list[str]
) -> list[int]:
    """Rows that have a target."""
    kept = [i for i, name in enumerate(names) if name in found and found[name].label is not None]
    if not kept:
        raise DataError(
            "no predicted slide has a target", where=table.path.name,
            why=f"it does not name {shown(names)}",
        )  # fmt: skip
    has = {names[i] for i in kept}
    left = [name for name in dict.fromkeys(names) if name not in has]
    if left:
        notes.append(f"{count(len(left), 'prediction')} without a target left out ({shown(left)})")
    extra = len(table.rows) - len(found)
    if extra:
        notes.append(f"{count(extra, 'target')} without a prediction")
    notes += table.notes
    return kept


def _judged(
    said: AnyPredictions,
    kept: Sequence[int],
    found: Mapping[str, Labeled],
    table: LabelTable | None,
    path: Path,
    notes: list[str],
    ordinal: bool | None,
) -> Judged:
    rows = np.asarray(kept)
    targets = [found[said.names[i]] for i in kept] if table is not None else []
    if isinstance(said, Predictions):
        truth = [str(row.label) for row in targets] or [(said.labels or ())[i] for i in kept]
        return _classes(said, rows, truth, path, notes, ordinal)
    if isinstance(said, Continuous):
        values = _rows(said.target, rows)
        if table is not None:
            values = answers("regression", targets, table).values
        return judged_numbers(np.asarray(values), said.predicted[rows])
    time, event = _rows(said.time, rows), _rows(said.event, rows)
    if table is not None:
        _, _, time, event = answers("survival", targets, table)
    return judged_risks(np.asarray(time), np.asarray(event), said.risk[rows])


def _rows(values: NDArray[Any] | None, rows: NDArray[np.integer[Any]]) -> NDArray[Any] | None:
    return None if values is None else values[rows]


def _classes(
    said: Predictions,
    rows: NDArray[np.integer[Any]],
    truth: Sequence[str],
    path: Path,
    notes: list[str],
    ordinal: bool | None,
) -> Judged:
    predicted = [said.predicted[i] for i in rows]
    classes = said.classes
    if said.probabilities is None:
        classes = class_order([*predicted, *truth])
    y, decided = (_positions(texts, classes, path, notes) for texts in (truth, predicted))
    scores = None if said.probabilities is None else said.probabilities[rows]
    return judged_classes(y, scores, classes, predicted=decided, ordinal=ordinal)


def _slides(said: AnyPredictions, kept: Sequence[int], found: Mapping[str, Labeled]) -> Slides:
    """Whose the kept rows are; what the targets say of patient and site wins."""
    names = [said.names[i] for i in kept]
    rows = [found.get(name) for name in names]
    groups = [(row and row.patient) or said.groups[i] for i, row in zip(kept, rows, strict=True)]
    own = said.sites
    sites = [
        (row and row.site) or ("" if own is None else own[i])
        for i, row in zip(kept, rows, strict=True)
    ]
    folds, repeats = (
        None if values is None else np.array(values, np.int64)[kept]
        for values in (said.folds, said.repeats)
    )
    return Slides(groups, names, folds, sites if any(sites) else None, repeats)


def _unlabeled(path: Path, what: str) -> DataError:
    return DataError(
        f"predictions without {what}", where=path.name, hint="give the labels with --targets"
    )


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
