"""What a finished `train-mil` run says of its slides: their truth and its splits."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathgen import commit
from pathgen.config import read_yaml
from pathgen.data.labels import count, load_labels, match, shown
from pathgen.data.truth import Target, answers
from pathgen.errors import DataError, RunError
from pathgen.evaluate.resampling import Floats, Ints
from pathgen.provenance import Provenance


class RunSplit(NamedTuple):
    """Rows of a split's slides; `train` holds the validation part too: all that does not test."""

    repeat: int
    fold: int
    train: Ints
    test: Ints


@dataclass(frozen=True)
class RunData:
    """One entry a slide in every field up to `sites`."""

    path: Path
    id: str
    """of the run: equal ids, equal predictions"""
    names: Sequence[str]
    groups: Sequence[str]
    labels: Ints
    """(N,) index into `classes`; 0 where a target has none"""
    values: Floats | None
    events: NDArray[np.bool_] | None
    sites: Sequence[str] | None
    classes: tuple[str, ...]
    target: Target
    balanced: bool
    """whether each class counts the same in the run's loss"""
    splits: tuple[RunSplit, ...]

    @property
    def repeated(self) -> bool:
        """Whether there are several repeats."""
        return len({split.repeat for split in self.splits}) > 1


def read_run(path: Path, labels: Path | str | None = None) -> RunData:
    """Truth and splits of a run.

    Args:
        labels: CSV with the truth; default: the run's ``labels.csv``, else its predictions.

    Raises:
        RunError: PG-T04, it is no finished `train-mil` run.
        DataError: PG-N06, a slide of the splits has no label.
    """
    needed = (
        "done.json", "provenance.json", "config.yaml", "metrics.json", "splits.json",
        "predictions.csv",
    )  # fmt: skip
    missing = [name for name in needed if not (path / name).is_file()]
    if missing:
        raise RunError(
            "not a finished train-mil run", code="PG-T04", where=path,
            why=f"it has no {', '.join(missing)}", hint="give the folder that train-mil wrote",
        )  # fmt: skip
    config = read_yaml(path / "config.yaml")
    target: Target = config.get("target", "classes")
    parts = commit.read_json(path / "splits.json")
    names = sorted({name for split in parts for part in _parts(split).values() for name in part})
    own = path / "labels.csv"
    table = load_labels(
        labels or (own if own.is_file() else path / "predictions.csv"),
        survival=target == "survival",
    )
    rows = match(names, table)
    unknown = [name for name in names if name not in rows or rows[name].label is None]
    if unknown:
        raise DataError(
            "slides of the run without a label", where=table.path,
            why=f"{count(len(unknown), 'slide')}: {shown(unknown)}",
            hint="give the labels the run was trained with by --labels",
        )  # fmt: skip
    found = [rows[name] for name in names]
    classes = commit.read_json(path / "metrics.json").get("classes") or None
    truth = answers(target, found, table, classes)
    place = {name: i for i, name in enumerate(names)}
    sites = [row.site or "" for row in found]
    groups = [row.patient or name for row, name in zip(found, names, strict=True)]
    provenance = Provenance.model_validate(commit.read_json(path / "provenance.json"))
    return RunData(
        path, provenance.id, names, groups, truth.labels, truth.values, truth.events,
        sites if any(sites) else None, truth.classes, target,
        config.get("class_weights", "balanced") == "balanced", _splits(parts, place),
    )  # fmt: skip


def write_labels(
    path: Path,
    names: Sequence[str],
    groups: Sequence[str],
    sites: Sequence[str] | None,
    *,
    labels: Sequence[str] | None = None,
    values: NDArray[np.float64] | None = None,
    events: NDArray[np.bool_] | None = None,
) -> None:
    """Write what `load_labels` reads: slide, patient, site, and a label, or a time and an event.

    Args:
        labels: class of each slide; else `values` are numbers, or with `events` times.
    """
    columns: dict[str, Sequence[Any]] = {"slide": names, "patient": groups}
    if sites is not None:
        columns["site"] = sites
    if labels is not None:
        columns["label"] = labels
    else:
        assert values is not None
        columns["label" if events is None else "time"] = [repr(float(v)) for v in values]
        if events is not None:
            columns["event"] = [int(event) for event in events]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    commit.write_text(path, text.getvalue())


def _parts(split: Mapping[str, Any]) -> dict[str, list[str]]:
    return {part: list(split.get(part, ())) for part in ("train", "valid", "test")}


def _splits(parts: Sequence[Mapping[str, Any]], place: Mapping[str, int]) -> tuple[RunSplit, ...]:
    """The splits as rows; a repeat that is not named is one in which no slide is tested twice."""
    tested: list[set[str]] = []
    folds: dict[int, int] = {}
    result = []
    for split in parts:
        named = _parts(split)
        test = set(named["test"])
        repeat = split.get("repeat")
        if repeat is None:
            repeat = next((i for i, seen in enumerate(tested) if not seen & test), len(tested))
        while len(tested) <= repeat:
            tested.append(set())
        tested[repeat] |= test
        fold = int(split.get("fold", folds.get(repeat, 0)))
        folds[repeat] = fold + 1
        train, rows = (
            np.array(sorted(place[name] for name in group), np.int64)
            for group in ([*named["train"], *named["valid"]], named["test"])
        )
        result.append(RunSplit(int(repeat), fold, train, rows))
    return tuple(result)
