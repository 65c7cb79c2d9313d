"""Labeled slides as bags of vectors; a labeled patch is a bag of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pathgen.data.bagset import Bags
from pathgen.data.labels import (
    Labeled,
    LabelTable,
    count,
    load_labels,
    match,
    shown,
    unmatched,
)  # fmt: skip
from pathgen.data.made import made_how
from pathgen.data.splits import joined
from pathgen.data.truth import Target, answers
from pathgen.data.vectors import StoredVectors
from pathgen.errors import DataError
from pathgen.progress import Progress, Silent
from pathgen.provenance import digest
from pathgen.stores.features import FeatureStore
from pathgen.stores.store import find_stores

__all__ = ["BagReport", "Bags", "load_bags", "load_labels"]


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
    sources: Mapping[str, str] = field(default_factory=dict)
    """slide -> id of the patches its vectors are of"""
    made: Mapping[str, Any] = field(default_factory=dict)
    """how; see `pathgen.data.made.made_how`"""

    @property
    def patient_note(self) -> str:
        """``12 patients (column 'patient')``: what keeps slides of one patient together."""
        return f"{count(self.patients, 'patient')} ({self.patient_source})"


def load_bags(
    features: Path | str | Sequence[Path | str],
    labels: Path | str,
    *,
    target: Target = "classes",
    classes: Sequence[str] | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    site_column: str | None = None,
    group_column: str | None = None,
    time_column: str | None = None,
    event_column: str | None = None,
    cache_gb: float = 4.0,
    strict: bool = False,
    progress: Progress | None = None,
) -> tuple[Bags, BagReport]:
    """Join feature stores with a CSV of slide, label and perhaps patient, site and group.

    Slides without a label and slides without a vector are left out and reported. Where the CSV
    names no patient the one known at tiling counts, else each slide is its own patient; the report
    says which. Classes that are all numbers are in order of value, others alphabetical. Vectors
    are kept in memory as they are stored, up to `cache_gb`; the rest is read when it is needed.

    Args:
        features: feature stores, or folders of them.
        labels: see `pathgen.data.labels.load_labels`.
        target: what the label is: a class, an ordered class or a number; of survival there is a
            time and an event instead.
        classes: all classes there are, in their order; default: those of the labels.
        label_column: name of the label column when it has another name; so the other columns.
        cache_gb: 1e9 bytes of vectors to keep.
        strict: raise instead of leaving slides out.

    Raises:
        DataError: PG-N06, the CSV cannot be used, no slide has a label, two stores are of one
            slide or of different encoders; PG-D06, a vector holds nan or infinity.
        NoInputError, StoreError: no stores, or one is damaged.
    """
    progress = progress or Silent()
    stores = _open(features, progress)
    table = load_labels(
        labels, label_column=label_column, patient_column=patient_column, site_column=site_column,
        group_column=group_column, time_column=time_column, event_column=event_column,
        survival=target == "survival",
    )  # fmt: skip
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
    owners = joined(groups, [labeled[name].group or "" for name in used])
    sites = [labeled[name].site or "" for name in used]
    truth = answers(target, [labeled[name] for name in used], table, classes)
    vectors = StoredVectors([stores[name] for name in used], cache_gb)
    bags = Bags(
        vectors, truth.labels, used, groups, truth.classes, vectors.coords(),
        sites if table.site_column else None, None if owners == groups else owners, target,
        truth.values, truth.events,
    )  # fmt: skip
    doubts += _kept_together(groups, owners, table)
    for name in set(stores) - set(used):
        stores[name].close()
    vectors.load(progress)
    report = BagReport(
        tuple(unlabeled), tuple(empty), (*messages, *table.notes, *doubts), table.column,
        str(stores[used[0]].encoder.get("id", "")),
        digest([[name, stores[name].id] for name in used]), len(set(groups)), source,
        {name: str(stores[name].source["id"]) for name in used},
        made_how(stores[name] for name in used),
    )  # fmt: skip
    return bags, report


def _open(
    features: Path | str | Sequence[Path | str], progress: Progress
) -> dict[str, FeatureStore]:
    """Feature stores by slide name, sorted by it."""
    found: dict[str, FeatureStore] = {}
    paths = find_stores(features, "features")
    with progress.task("open features", len(paths)) as task:
        for path in paths:
            store = FeatureStore.open(path)
            other = found.setdefault(store.name, store)
            if other is not store:
                raise DataError(
                    "two feature stores of one slide", where=store.name,
                    why=f"{other.path} and {path}", hint="give the features of one encoder",
                )  # fmt: skip
            task.advance()
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


def _kept_together(groups: Sequence[str], owners: Sequence[str], table: LabelTable) -> list[str]:
    """How many patients are one to a split because a group joins them."""
    less = len(set(groups)) - len(set(owners))
    if not less:
        return []
    return [
        f"column {table.group_column!r} keeps slides of different patients together: "
        f"{count(len(set(groups)), 'patient')} are {len(set(owners)):,} units to a split"
    ]


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
