"""The BRIGHT challenge (ISBI 2022): its targets, its two official metrics, its submission file.

Evaluation page: research.ibm.com/haifa/Workshops/BRIGHT/evaluation.html. Ranks are by the average
over classes of F1; beside it stands the Brier skill score, 1 - BS / BS of forecasting the class
frequencies of the evaluated slides, with BS summed over classes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathgen import commit
from pathgen.columns import folded
from pathgen.data.cells import read_cells
from pathgen.data.labels import count, find_column, shown, slide_key
from pathgen.errors import ConfigError, DataError
from pathgen.evaluate import calibration
from pathgen.evaluate.predictionfile import Predictions, read_predictions


@dataclass(frozen=True)
class Task:
    """One of the challenge's tasks; the position of a class is its label."""

    title: str
    classes: tuple[str, ...]
    target: str
    """its column in the challenge's targets"""


TASKS: Mapping[str, Task] = {
    "bright3": Task("BRIGHT task 1", ("Noncancerous", "Precancerous", "Cancerous"), "Task1-target"),
    "bright6": Task("BRIGHT task 2", ("PB", "UDH", "FEA", "ADH", "DCIS", "IC"), "Task2-target"),
}


def challenge_column(targets: Path, classes: Sequence[str]) -> str | None:
    """The column of the challenge's targets that fits these classes; None for other files."""
    header = read_cells(targets).header
    return next(
        (
            task.target
            for task in TASKS.values()
            if task.target in header and _order(classes, task) is not None
        ),
        None,
    )


def official(values: Mapping[str, Any]) -> dict[str, Any]:
    """``{"challenge": {...}}`` with the official metrics, for results with a task's classes."""
    if values["kind"] != "classes":
        return {}
    for name, task in TASKS.items():
        if list(values["classes"]) == list(task.classes):
            both = {"average_f1": "macro_f1", "brier_skill_score": "brier_skill"}
            return {
                "challenge": {"task": name, "title": task.title}
                | {key: values[metric] for key, metric in both.items()}
                | {"intervals": {k: values["intervals"][metric] for k, metric in both.items()}}
            }
    return {}


def write_submission(
    predictions: Path,
    out: Path,
    task: str,
    *,
    images: Path | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write a submission: ``image_name, predicted_label, <class>-score, ...``.

    The label is the position of the class. Where a slide stands in several repeats its
    probabilities are averaged and the most probable class is taken.

    Args:
        predictions: a predictions.csv with a score for each class.
        out: the CSV to write.
        task: a name in `TASKS`.
        images: CSV that names the images to submit; the rows then are in its order, and each of
            them must be predicted. Default: all that are predicted, by name.
        classes: the classes of the predictions in the challenge's order, where they have other
            names; whole numbers are positions already.

    Returns:
        path, task, images and notes.

    Raises:
        ConfigError: PG-C01, no such task, or `classes` are not those of the predictions.
        DataError: PG-N06, the classes are not the task's, there are no probabilities, two slides
            have one image name, or an image is not predicted.
    """
    if task not in TASKS:
        raise ConfigError(
            "no such challenge task", where=task, hint=f"use one of {', '.join(TASKS)}"
        )
    chosen, said = TASKS[task], read_predictions(predictions)
    order = _chosen_order(said, chosen, classes, predictions)
    if said.probabilities is None:
        raise DataError("a submission needs probabilities", where=predictions.name)
    if why := calibration.no_probabilities(said.probabilities):
        raise DataError("a submission needs probabilities", where=predictions.name, why=why)
    scores, notes = _by_image(said, predictions)
    named = list(scores) if images is None else _images(images)
    if missing := [name for name in named if name not in scores]:
        raise DataError(
            "images without a prediction", where=predictions.name,
            why=f"{count(len(missing), 'image')}: {shown(missing)}",
            hint="the challenge refuses a submission with missing results",
        )  # fmt: skip
    if extra := len(scores) - len(named):
        notes.append(f"{count(extra, 'predicted slide')} not among the images: left out")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_name", "predicted_label", *(f"{c}-score" for c in chosen.classes)])
    for name in named:
        row, said_class = scores[name]
        label = order.index(said_class) if said_class is not None else int(row[order].argmax())
        writer.writerow([name, label, *(repr(float(row[i])) for i in order)])
    commit.write_text(out, text.getvalue())
    return {"path": str(out), "task": task, "images": len(named), "notes": notes}


def _by_image(said: Predictions, path: Path) -> tuple[dict[str, tuple[Any, int | None]], list[str]]:
    """image -> mean probabilities, and the decision where one was made; by name."""
    assert said.probabilities is not None
    rows: dict[str, list[int]] = {}
    owner: dict[str, str] = {}
    for i, name in enumerate(said.names):
        image = slide_key(name).rpartition("/")[2]
        if owner.setdefault(image, name) != name:
            raise DataError(
                "two slides of one image name", where=path.name, why=f"{owner[image]!r}, {name!r}"
            )
        rows.setdefault(image, []).append(i)
    place = {name: i for i, name in enumerate(said.classes)}
    found: dict[str, tuple[Any, int | None]] = {}
    for image in sorted(rows):
        mean = said.probabilities[rows[image]].mean(0)
        word = said.predicted[rows[image][0]]
        single = place.get(word, int(word) if word.isdecimal() else None)
        found[image] = (mean, single if len(rows[image]) == 1 else None)
    most = max(len(parts) for parts in rows.values())
    notes = [f"probabilities are means over up to {most} repeats"] if most > 1 else []
    return found, notes


def _images(path: Path) -> list[str]:
    table = read_cells(path)
    column, _ = find_column(path, table.header, "slide")
    return [slide_key(row[column]).rpartition("/")[2] for _, row in table.rows]


def _chosen_order(
    said: Predictions, task: Task, classes: Sequence[str] | None, path: Path
) -> list[int]:
    if classes is not None:
        if sorted(classes) != sorted(said.classes) or len(classes) != len(task.classes):
            raise ConfigError(
                "classes are not those of the predictions", where=", ".join(classes),
                why=f"the predictions have {', '.join(said.classes)}; the task has "
                f"{len(task.classes)}",
            )  # fmt: skip
        return [said.classes.index(name) for name in classes]
    order = _order(said.classes, task)
    if order is None:
        raise DataError(
            "the classes are not the challenge's", where=path.name,
            why=f"{', '.join(said.classes)} for {', '.join(task.classes)}",
            hint="say which is which with --classes, in the challenge's order",
        )  # fmt: skip
    return order


def _order(classes: Sequence[str], task: Task) -> list[int] | None:
    """Where each of the task's classes stands among `classes`; None where they are others."""
    if len(classes) != len(task.classes):
        return None
    if all(name.isdecimal() for name in classes):
        numbers = [int(name) for name in classes]
        wanted = range(len(classes))
        return [numbers.index(i) for i in wanted] if sorted(numbers) == [*wanted] else None
    names = [folded(name) for name in classes]
    wanted_names = [folded(name) for name in task.classes]
    if sorted(names) != sorted(wanted_names):
        return None
    return [names.index(name) for name in wanted_names]
