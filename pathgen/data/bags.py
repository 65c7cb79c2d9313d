"""Labeled slides as bags of vectors; a labeled patch is a bag of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathgen.data.labels import (
    Labeled,
    LabelTable,
    class_order,
    count,
    load_labels,
    match,
    shown,
    unmatched,
)  # fmt: skip
from pathgen.errors import DataError
from pathgen.provenance import digest
from pathgen.stores.features import FeatureStore
from pathgen.stores.store import find_stores

__all__ = ["BagReport", "Bags", "load_bags", "load_labels"]


@dataclass(frozen=True)
class Bags:
    """One entry per bag in every field but the last."""

    features: Sequence[NDArray[np.float32]]
    """each (n, dim); n differs between bags, dim does not"""
    labels: NDArray[np.int64]
    """(N,) index into `classes`"""
    names: Sequence[str]
    groups: Sequence[str]
    """the patient: bags of one group never part in a split"""
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.features), len(self.labels), len(self.names), len(self.groups)}
        if len(lengths) != 1:
            raise ValueError(f"fields of different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def dim(self) -> int:
        """Length of a vector; 0 without bags."""
        return int(self.features[0].shape[1]) if len(self) else 0

    def select(self, rows: Sequence[int] | NDArray[np.integer]) -> Bags:
        """The bags in `rows`, in that order, with the same classes."""
        rows = np.asarray(rows, np.int64)
        return Bags(
            [self.features[i] for i in rows],
            self.labels[rows],
            [self.names[i] for i in rows],
            [self.groups[i] for i in rows],
            self.classes,
        )


@dataclass(frozen=True)
class BagReport:
    """What `load_bags` left out, and from what the bags are."""

    unlabeled: tuple[str, ...]
    """slides without a label"""
    empty: tuple[str, ...]
    """labeled slides without a single vector"""
    messages: tuple[str, ...]
    """the same in sentences, and what else a person should know; empty when all fit"""
    label_column: str
    encoder: str
    """id of the encoder"""
    id: str
    """16 hex digits of the feature stores used; equal ids, equal vectors"""
    patients: int
    """how many there are"""
    patient_source: str
    """who said so: the column, the stores, or nobody"""

    @property
    def patient_note(self) -> str:
        """``12 patients (column 'patient')``: what keeps slides of one patient together."""
        return f"{count(self.patients, 'patient')} ({self.patient_source})"


def load_bags(
    features: Path | str | Sequence[Path | str],
    labels: Path | str,
    *,
    label_column: str | None = None,
    patient_column: str | None = None,
    strict: bool = False,
) -> tuple[Bags, BagReport]:
    """Join feature stores with a CSV of slide, label and, if there is one, patient.

    Slides without a label and slides without a vector are left out and reported. Where the CSV
    names no patient the one known at tiling counts, else each slide is its own patient; the report
    says which. Classes that are all numbers are in order of value, others alphabetical. All
    vectors are read into memory, as float32.

    Args:
        features: feature stores, or folders of them.
        labels: see `pathgen.data.labels.load_labels`.
        label_column: name of the label column when it has another name.
        patient_column: name of the patient column when it has another name.
        strict: raise instead of leaving slides out.

    Raises:
        DataError: PG-N06, the CSV cannot be used, no slide has a label, two stores are of one
            slide or of different encoders; PG-D06, a vector holds nan or infinity.
        NoInputError, StoreError: no stores, or one is damaged.
    """
    stores = _open(features)
    table = load_labels(labels, label_column=label_column, patient_column=patient_column)
    rows = match(list(stores), table)
    labeled = {name: row for name, row in rows.items() if row.label is not None}
    unlabeled = [name for name in stores if name not in labeled]
    empty = [name for name in labeled if not len(stores[name])]
    messages = _messages(list(stores), unlabeled, empty, unmatched(list(stores), table, rows))
    used = [name for name in labeled if len(stores[name])]
    if not used or (strict and messages):
        raise DataError(
            "labels and features do not fit together" if used else "no slide has a label",
            where=table.path.name, why="; ".join([*messages, *table.notes]),
            hint="name slides in the CSV as in the features folder",
        )  # fmt: skip
    groups, source, doubts = _patients(used, labeled, stores, table)
    classes = class_order([str(labeled[name].label) for name in used])
    bags = Bags(
        [_vectors(stores[name]) for name in used],
        np.array([classes.index(str(labeled[name].label)) for name in used], np.int64),
        used,
        groups,
        classes,
    )
    encoder = str(stores[used[0]].encoder.get("id", ""))
    report = BagReport(
        tuple(unlabeled), tuple(empty), (*messages, *table.notes, *doubts), table.column, encoder,
        digest([[name, stores[name].id] for name in used]), len(set(groups)), source,
    )  # fmt: skip
    for store in stores.values():
        store.close()
    return bags, report


def _open(features: Path | str | Sequence[Path | str]) -> dict[str, FeatureStore]:
    """Feature stores by slide name, sorted by it."""
    found: dict[str, FeatureStore] = {}
    for path in find_stores(features, "features"):
        store = FeatureStore.open(path)
        other = found.setdefault(store.name, store)
        if other is not store:
            raise DataError(
                "two feature stores of one slide", where=store.name,
                why=f"{other.path} and {path}", hint="give the features of one encoder",
            )  # fmt: skip
    first = next(iter(found.values()))
    for store in found.values():
        if (store.dim, store.encoder.get("id")) != (first.dim, first.encoder.get("id")):
            raise DataError(
                "features of different encoders", where=store.name,
                why=f"{first.name} has {first.encoder.get('name')} ({first.dim} numbers), this "
                f"one {store.encoder.get('name')} ({store.dim})",
                hint="give the features of one encoder",
            )  # fmt: skip
    return dict(sorted(found.items()))


def _patients(
    used: Sequence[str],
    labeled: Mapping[str, Labeled],
    stores: Mapping[str, FeatureStore],
    table: LabelTable,
) -> tuple[list[str], str, list[str]]:
    """Patient of each slide, who said so, and which are not known."""
    named = [labeled[name].patient or stores[name].patient for name in used]
    groups = [patient or name for patient, name in zip(named, used, strict=True)]
    doubts = []
    if table.patient_column is not None:
        source = f"column {table.patient_column!r}"
        blank = [row.slide for row in table.rows.values() if row.patient is None]
        if blank:
            doubts.append(f"{count(len(blank), 'row')} without a patient ({shown(blank)})")
    elif any(named):
        source = "known from tiling"
    else:
        return groups, "no patient column: each slide counts as a patient of its own", []
    alone = [name for patient, name in zip(named, used, strict=True) if not patient]
    if alone:
        doubts.append(
            f"{count(len(alone), 'slide')} of no known patient ({shown(alone)}): each counts as a "
            "patient of its own"
        )
    return groups, source, doubts


def _vectors(store: FeatureStore) -> NDArray[np.float32]:
    vectors = store.features().astype(np.float32, copy=False)
    if not np.isfinite(vectors).all():
        raise DataError(
            "features with nan or infinity", code="PG-D06", where=store.name,
            why=f"{int((~np.isfinite(vectors)).any(1).sum())} of {len(vectors)} vectors",
            hint="extract the features of this slide again",
        )  # fmt: skip
    return vectors


def _messages(
    names: Sequence[str], unlabeled: Sequence[str], empty: Sequence[str], left: str
) -> list[str]:
    messages = []
    if unlabeled:
        have = "have" if len(unlabeled) > 1 else "has"
        messages.append(
            f"{len(unlabeled)} of {count(len(names), 'slide')} {have} no label ({shown(unlabeled)})"
        )
    if left:
        messages.append(left)
    if empty:
        have = "have" if len(empty) > 1 else "has"
        messages.append(f"{count(len(empty), 'labeled slide')} {have} no patches ({shown(empty)})")
    return messages
