"""What is to be predicted of each slide, from the cells of a labels file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathgen.data.labels import Labeled, LabelTable, as_number, class_order
from pathgen.errors import DataError

Target = Literal["classes", "ordinal", "regression", "survival"]
#: Parts of about equal number that numbers are cut into where splits are stratified.
PARTS = 5
#: Cells of an event column, in any case.
EVENTS = {
    "1": True, "1.0": True, "true": True, "yes": True, "dead": True, "deceased": True,
    "1:deceased": True, "event": True, "0": False, "0.0": False, "false": False, "no": False,
    "alive": False, "living": False, "0:living": False, "censored": False,
}  # fmt: skip


class Answers(NamedTuple):
    """Of N slides; what a target does not have is empty, 0 or None."""

    labels: NDArray[np.int64]
    """(N,) index into `classes`"""
    classes: tuple[str, ...]
    values: NDArray[np.float64] | None
    """(N,) the number of a regression, the time of survival"""
    events: NDArray[np.bool_] | None
    """(N,) of survival: false where the time was cut off without the event"""


def answers(
    target: Target,
    rows: Sequence[Labeled],
    table: LabelTable,
    classes: Sequence[str] | None = None,
) -> Answers:
    """The cells of labeled rows as numbers.

    Args:
        classes: all there are, in their order; default: those of the rows, in order of value when
            all are numbers, else alphabetical.

    Raises:
        DataError: PG-N06, with the line: a label is none of `classes`, a class of an ordinal
            target without them or a value is not a number, a time is negative, or an event is
            neither yes nor no.
    """
    labels = np.zeros(len(rows), np.int64)
    if target in ("classes", "ordinal"):
        if classes is not None:
            for row in rows:
                if row.label not in classes:
                    raise _bad(
                        table, f"label is none of {', '.join(classes)}", row, table.column,
                        row.label,
                    )  # fmt: skip
        elif target == "ordinal":
            _numbers(rows, table, "ordered classes are numbers, or are given in their order")
        classes = tuple(classes or class_order([str(row.label) for row in rows]))
        place = {name: i for i, name in enumerate(classes)}
        return Answers(np.array([place[str(row.label)] for row in rows]), classes, None, None)
    if target == "regression":
        return Answers(labels, (), _numbers(rows, table, "a value is a number"), None)
    times = _numbers(rows, table, "a time is a number")
    if (times < 0).any():
        row = rows[int((times < 0).argmax())]
        raise _bad(table, "time is negative", row, table.column, row.label)
    return Answers(labels, (), times, np.array([_event(row, table) for row in rows], bool))


def strata(target: Target, found: Answers) -> NDArray[np.int64]:
    """(N,) what splits are balanced by: the class; of numbers the fifth; of survival also whether
    the event was seen."""
    if found.values is None:
        return found.labels
    events = np.zeros(len(found.values), bool) if found.events is None else found.events
    result = np.zeros(len(found.values), np.int64)
    for event in (False, True):  # ranked apart: those cut off early are another kind
        rows = np.flatnonzero(events == event)
        rank = np.argsort(np.argsort(found.values[rows], kind="stable"), kind="stable")
        parts = PARTS if target == "regression" else 2
        result[rows] = rank * parts // max(1, len(rows)) + parts * event
    return result


def _numbers(rows: Sequence[Labeled], table: LabelTable, what: str) -> NDArray[np.float64]:
    values = [as_number(str(row.label)) for row in rows]
    for row, value in zip(rows, values, strict=True):
        if value is None:
            raise _bad(table, what, row, table.column, row.label)
    return np.array(values, np.float64)


def _event(row: Labeled, table: LabelTable) -> bool:
    found = EVENTS.get((row.event or "").casefold())
    if found is None:
        raise _bad(table, "event is neither yes nor no", row, table.event_column, row.event)
    return found


def _bad(
    table: LabelTable, what: str, row: Labeled, column: str | None, cell: str | None
) -> DataError:
    return DataError(
        what, where=table.path.name,
        why=f"line {row.line}, column {column!r}: {'nothing' if cell is None else repr(cell)}",
        hint="events are 1 (seen) and 0 (not seen)" if column == table.event_column
        else "correct the cell, or see --target, --classes and --label-column",
    )  # fmt: skip
