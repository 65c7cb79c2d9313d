"""Features with a class each: of image folders, or of a CSV of labeled patches."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathgen.data.labels import find_patient, known
from pathgen.errors import DataError, RunError
from pathgen.stores import FeatureStore, find_stores

PathLike = str | Path

#: Columns of a patch-label file; x and y are the top left corner in level-0 pixels.
COLUMNS = ("slide", "x", "y", "label")


class PatchLabels(NamedTuple):
    """A patch-label file: (slide, x, y) -> label, and slide -> patient as far as it says."""

    labels: Mapping[tuple[str, int, int], str]
    patients: Mapping[str, str]


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of many slides with a class each; `unlabelled` patches are left out."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    groups: NDArray[np.str_]
    """(n,) patient, or slide where there is none"""
    classes: tuple[str, ...]
    unlabelled: int
    encoder: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.y)


def load_labelled(
    features: PathLike | Sequence[PathLike],
    labels: PathLike | None = None,
    classes: Sequence[str] | None = None,
) -> LabelledFeatures:
    """Feature stores with the class of each patch.

    Args:
        features: feature stores, or folders of them.
        labels: CSV with slide, x, y, label, joined by slide name and corner, and perhaps patient,
            which wins over the one the store carries; None takes the classes of image folders,
            which the stores carry.
        classes: names that `y` counts in; None takes all that occur, sorted.

    Raises:
        NoInputError: no stores. DataError: PG-D07 no patch has a label, PG-D08 the CSV cannot be
        used. RunError: PG-T04, the stores are of different encoders.
    """
    stores = [FeatureStore.open(path) for path in find_stores(_paths(features), kind="features")]
    encoder = _one_encoder(stores)
    table = None if labels is None else read_patch_labels(Path(labels))
    patients = {} if table is None else table.patients
    names, vectors, groups, unlabelled = [], [], [], 0
    for store in stores:
        with store:
            found = _names(store, table)
            named = np.array([name is not None for name in found], np.bool_)
            unlabelled += int((~named).sum())
            if named.any():
                vectors.append(store.features(np.flatnonzero(named)).astype(np.float32))
                names += [name for name in found if name is not None]
                patient = patients.get(store.name) or store.patient or store.name
                groups += [patient] * int(named.sum())
    if not names:
        raise DataError(
            "no patch has a label",
            code="PG-D07",
            where=labels or ", ".join(map(str, _paths(features))),
            why=f"{unlabelled} patches, none of which is named there"
            if labels
            else "the stores were not made from class folders",
            hint="give a CSV with slide, x, y, label by --labels",
        )
    order = tuple(sorted(set(names)) if classes is None else classes)
    index = {name: i for i, name in enumerate(order)}
    return LabelledFeatures(
        x=np.concatenate(vectors),
        y=np.array([index.get(name, len(order)) for name in names], np.int64),
        groups=np.array(groups),
        classes=order,
        unlabelled=unlabelled,
        encoder=encoder,
    )


def read_patch_labels(path: Path) -> PatchLabels:
    """Labels of patches and patients of slides; a label such as ``NA`` is none.

    Raises:
        DataError: PG-D08, naming the line that is wrong.
    """
    labels: dict[tuple[str, int, int], str] = {}
    patients: dict[str, str] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise _bad_labels(path, f"it has no column {', '.join(missing)}")
            owner = _patient_column(path, reader.fieldnames or ())
            for row in reader:
                try:
                    key = (row["slide"], int(float(row["x"])), int(float(row["y"])))
                except (TypeError, ValueError) as error:
                    raise _bad_labels(path, f"line {reader.line_num}: {error}") from error
                patient = known((row[owner] or "").strip()) if owner else None
                if patient and patients.setdefault(key[0], patient) != patient:
                    raise _bad_labels(path, f"line {reader.line_num}: two patients for one slide")
                label = known(row["label"] or "")
                if label and labels.setdefault(key, label) != label:
                    raise _bad_labels(path, f"line {reader.line_num}: two labels for one patch")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _bad_labels(path, str(error)) from error
    return PatchLabels(labels, patients)


def several_encoders(ids: Sequence[str]) -> RunError:
    """PG-T04: vectors of two encoders have no distance."""
    return RunError(
        "features come from several encoders",
        where="features",
        why=f"ids {', '.join(ids)}",
        hint="compare features of one encoder at a time",
    )


def _names(store: FeatureStore, table: PatchLabels | None) -> list[str | None]:
    if table is not None:
        return [table.labels.get((store.name, x, y)) for x, y in store.coords().tolist()]
    return [store.classes[i] if i >= 0 else None for i in store.labels().tolist()]


def _patient_column(path: Path, header: Sequence[str]) -> str | None:
    try:
        found = find_patient(path, header)
    except DataError as error:
        raise _bad_labels(path, f"{error.what}: {error.why}") from error
    return found and found[1]


def _one_encoder(stores: Sequence[FeatureStore]) -> Mapping[str, Any]:
    ids = sorted({str(store.encoder["id"]) for store in stores})
    if len(ids) > 1:
        raise several_encoders(ids)
    return stores[0].encoder


def _bad_labels(path: Path, why: str) -> DataError:
    return DataError(
        "patch labels cannot be used",
        code="PG-D08",
        where=path,
        why=why,
        hint=f"write a CSV with the columns {', '.join(COLUMNS)}",
    )


def _paths(paths: PathLike | Sequence[PathLike]) -> list[PathLike]:
    return [paths] if isinstance(paths, str | Path) else list(paths)
