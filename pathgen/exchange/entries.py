"""The slides of an export: the stores that belong together, under one file name each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathgen.data.labels import Labeled, LabelTable, class_order, match, shown
from pathgen.errors import DataError
from pathgen.exchange.geometry import Geometry
from pathgen.exchange.pairing import file_name, pair
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import PatchStore
from pathgen.stores.store import find_stores, open_store


@dataclass
class Entry:
    """One slide: its patches, its features (one store an encoder), or both."""

    name: str
    patches: PatchStore | None = None
    features: list[FeatureStore] = field(default_factory=list)
    label: str | None = None
    patient: str | None = None
    id: str = ""
    """what its files are called; unique among the entries"""

    @property
    def stores(self) -> list[PatchStore | FeatureStore]:
        return [*([self.patches] if self.patches is not None else []), *self.features]

    def __len__(self) -> int:
        return len(self.stores[0])

    @cached_property
    def coords(self) -> NDArray[np.int64]:
        """Level-0 corners (n, 2). Raises DataError (PG-F02) for images that have no place."""
        coords = self.stores[0].coords()
        if (coords < 0).all(axis=1).any():
            raise DataError(
                "patches have no place on a slide", code="PG-F02", where=self.name,
                why="they are from a folder of images", hint="export features of tiled slides",
            )  # fmt: skip
        return coords

    @cached_property
    def grid(self) -> NDArray[np.int64]:
        """Row and column (n, 2) in the grid that was tiled; -1 throughout where none is known."""
        for store in self.stores:
            found = store.grid().astype(np.int64)
            if len(found) and (found >= 0).all():
                return found
        return np.full((len(self), 2), -1, np.int64)

    @cached_property
    def geometry(self) -> Geometry:
        """Size of a patch. Raises DataError (PG-F02) when no store says it."""
        for store in self.stores:
            facts = store.attrs if isinstance(store, PatchStore) else store.source
            found = Geometry.of(facts)
            if found is not None:
                return found
        raise DataError(
            "size of the patches is not known", code="PG-F02", where=self.name,
            why="the features do not say it", hint="give the patch store too",
        )  # fmt: skip

    @property
    def classes(self) -> tuple[str, ...]:
        """Names that `patch_labels` counts in."""
        labeled = next((store.classes for store in self.features if store.classes), ())
        return labeled or (self.patches.class_names if self.patches is not None else ())

    @cached_property
    def patch_labels(self) -> NDArray[np.int64] | None:
        """Index into `classes` (n,), -1 where unknown; None where none is known.

        Those of the features; else the class of the mask that covers half of a patch or more.
        """
        for store in self.features:
            labels = store.labels().astype(np.int64)
            if store.classes and (labels >= 0).any():
                return labels
        if self.patches is None or not self.patches.class_names or not len(self):
            return None
        shares = self.patches.class_shares()
        most = shares.argmax(axis=1)
        return np.where(shares.max(axis=1) >= 0.5, most, -1)

    def need_patches(self) -> PatchStore:
        if self.patches is None:
            raise DataError(
                "this format takes patches", code="PG-F02", where=self.name,
                why="only features of the slide were given", hint="give the patch stores",
            )  # fmt: skip
        return self.patches

    def close(self) -> None:
        for store in self.stores:
            store.close()
        for name in ("coords", "grid", "geometry", "patch_labels"):
            self.__dict__.pop(name, None)


def gather(
    stores: Sequence[Path | str] | Path | str, labels: LabelTable | None = None
) -> list[Entry]:
    """Patch and feature stores as one entry a slide, sorted by id.

    Features belong to the patches they were extracted from; those made elsewhere, to patches of
    the same name at the same places.

    Raises:
        NoInputError: PG-N01, no stores. StoreError: one cannot be opened, or is of augmentations.
        DataError: PG-F02, two stores of one slide, or features at other places than its patches;
            PG-N06, the labels do not fit.
    """
    by_patches: dict[str, Entry] = {}
    features: list[FeatureStore] = []
    for path in find_stores(stores):
        store = open_store(path)
        if isinstance(store, FeatureStore):
            features.append(store)
            continue
        if not isinstance(store, PatchStore):
            raise DataError(
                "neither patches nor features", code="PG-F02", where=path,
                why=f"it holds {store.kind}", hint="give patch stores, feature stores, or both",
            )  # fmt: skip
        if store.id in by_patches:
            raise _twice(store.name, by_patches[store.id].stores[0].path, store.path)
        by_patches[store.id] = Entry(store.name, store, [], store.label, store.patient)
    for store in features:
        entry = by_patches.setdefault(
            str(store.source["id"]), Entry(store.name, None, [], store.label, store.patient)
        )
        for other in entry.features:
            if other.encoder.get("id") == store.encoder.get("id"):
                raise _twice(store.name, other.path, store.path)
        if entry.stores and len(entry) != len(store):
            raise DataError(
                "features and patches of different length", code="PG-F02", where=store.path,
                why=f"{len(store)} vectors for {len(entry)} patches",
                hint="extract the features again",
            )  # fmt: skip
        entry.features.append(store)
    entries = _labeled(pair(list(by_patches.values())), labels)
    return sorted(_with_ids(entries), key=lambda entry: entry.id)


def encoder_folders(entries: Sequence[Entry]) -> dict[str, str]:
    """Encoder id -> a folder name of its own."""
    names: dict[str, str] = {}
    for entry in entries:
        for store in entry.features:
            name = re.sub(r"[^A-Za-z0-9._-]+", "_", str(store.encoder.get("name", "encoder")))
            names[str(store.encoder.get("id"))] = name.strip("._") or "encoder"
    taken = Counter(names.values())
    return {
        key: name if taken[name] == 1 else f"{name}-{key[:8]}" for key, name in names.items()
    }  # fmt: skip


def folder_of(store: FeatureStore, folders: dict[str, str]) -> str:
    """The name of a store's encoder among `encoder_folders`."""
    return folders[str(store.encoder.get("id"))]


def need_features(entry: Entry) -> None:
    """Raise DataError (PG-F02) for an entry of patches alone, where the format takes features."""
    if not entry.features:
        raise DataError(
            "this format takes features", code="PG-F02", where=entry.name,
            why="only patches of the slide were given",
            hint="give the stores that pathgen extract-features made",
        )  # fmt: skip


def one_encoder(entries: Sequence[Entry], wanted: str | None) -> list[Entry]:
    """The entries with the features of one encoder only.

    Raises:
        DataError: PG-F02, there are several and none, or an unknown one, was asked for.
    """
    folders = encoder_folders(entries)
    known = sorted(set(folders.values()))
    if wanted is None and len(known) > 1:
        raise DataError(
            "features of several encoders", code="PG-F02", where=", ".join(known),
            why="the format has one place for them", hint=f"choose one: --encoder {known[0]}",
        )  # fmt: skip
    if wanted is not None and wanted not in known:
        raise DataError(
            "no features of this encoder", code="PG-F02", where=wanted,
            why=f"there are: {', '.join(known) or 'none'}", hint="give one of these to --encoder",
        )  # fmt: skip
    return [
        replace(e, features=[s for s in e.features if wanted in (None, folder_of(s, folders))])
        for e in entries
    ]


def slide_classes(entries: Sequence[Entry]) -> tuple[str, ...]:
    """The slide labels in use, in the order that numbers them."""
    return class_order([entry.label for entry in entries if entry.label is not None])


def _labeled(entries: list[Entry], labels: LabelTable | None) -> list[Entry]:
    if labels is None:
        return entries
    found = labels_of([entry.name for entry in entries], labels)
    for entry in entries:
        row = found.get(entry.name)
        if row is not None:
            entry.label, entry.patient = row.label, row.patient or entry.patient
    return entries


def labels_of(names: Sequence[str], labels: LabelTable) -> dict[str, Labeled]:
    """Row of each slide that has one. Raises DataError (PG-N06) when none has."""
    found = match(names, labels)
    if names and not found:
        known = [row.slide for row in labels.rows.values()]
        raise DataError(
            "no label fits a slide", code="PG-N06", where=labels.path,
            why=f"its slides are {shown(known) or 'none'}; the stores have {shown(sorted(names))}",
            hint="write the slides' names as the stores have them; a suffix may stay",
        )  # fmt: skip
    return found


def _with_ids(entries: list[Entry]) -> list[Entry]:
    """The slide's file name where that is one slide's own; else all parts, joined by ``__``.

    Tools look for ``<slide>.h5`` in one flat folder.
    """
    last = Counter(file_name(entry).casefold() for entry in entries)
    taken: dict[str, Entry] = {}
    for entry in entries:
        parts = [part for part in entry.name.split("/") if part not in ("", ".", "..")]
        own = file_name(entry)
        name = own if last[own.casefold()] == 1 else "__".join(parts)
        if not name or name[0] == "." or "\\" in name or "\x00" in name:
            raise DataError(
                "name of the slide is no file name", code="PG-D11", where=entry.name,
                hint="do not use stores from a source you do not trust",
            )  # fmt: skip
        entry.id = name
        other = taken.setdefault(name.casefold(), entry)
        if other is not entry:
            raise _twice(entry.name, other.stores[0].path, entry.stores[0].path)
    return entries


def _twice(name: str, one: Path, other: Path) -> DataError:
    return DataError(
        "two stores of one slide", code="PG-F02", where=name, why=f"{one} and {other}",
        hint="export them into different folders",
    )  # fmt: skip
