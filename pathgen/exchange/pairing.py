"""Features that were made elsewhere, and the patches of the same slide that they belong to.

Features that pathgen extracted name their patches. Imported ones do not: they belong to patches
of a slide of the same name at the same places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import DataError
from pathgen.exchange.geometry import MAX_ROUNDING
from pathgen.stores.features import FeatureStore
from pathgen.stores.table import ALL, Rows, Table
from pathgen.tiling.inputs import safe_name

if TYPE_CHECKING:
    from pathgen.exchange.entries import Entry


class OrderedFeatures(FeatureStore):
    """A feature store with its rows in another order."""

    def __init__(self, table: Table, order: NDArray[np.int64]) -> None:
        super().__init__(table)
        self.order = order

    def features(self, rows: Rows = ALL) -> NDArray[np.float32]:
        return super().features(self.order[rows])

    def coords(self, rows: Rows = ALL) -> NDArray[np.int64]:
        return super().coords(self.order[rows])

    def grid(self, rows: Rows = ALL) -> NDArray[np.int32]:
        return super().grid(self.order[rows])

    def labels(self, rows: Rows = ALL) -> NDArray[np.int32]:
        return super().labels(self.order[rows])


def pair(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, those of features alone joined to the one of the same slide that comes first.

    That is the one with patches, where there is one. Entries that cannot be joined, such as two
    patch stores of one slide, are left as they are.

    Raises:
        DataError: PG-F02, the places of features and patches differ.
    """
    ranked = sorted(entries, key=lambda entry: entry.patches is None)
    kept: list[Entry] = []
    for entry in ranked:
        hosts = [host for host in kept if entry.patches is None and _same(host, entry)]
        if len(hosts) != 1 or _encoders(hosts[0]) & _encoders(entry):
            kept.append(entry)
            continue
        host = hosts[0]
        host.features += [_aligned(host, store) for store in entry.features]
        host.label, host.patient = host.label or entry.label, host.patient or entry.patient
    return kept


def _same(host: Entry, entry: Entry) -> bool:
    """Whether names agree; other tools know the last part of a name, or all joined by ``__``."""
    own, other = file_name(host), file_name(entry)
    return host.name == entry.name or own == other or "__".join(_parts(host.name)) == other


def file_name(entry: Entry) -> str:
    """What the slide's file is called, without its suffix: tools look for it by that name.

    A store's name escapes some of it, as a ``-`` at the start; what no path can hold stays so.
    """
    own = (_parts(entry.name) or [""])[-1]
    if entry.patches is not None:
        facts: Mapping[str, Any] = entry.patches.slide.model_dump()
    else:
        facts = entry.features[0].source.get("slide") or {}
    file = str(facts.get("file") or "").removesuffix(facts.get("suffix") or "")
    is_plain = file.isprintable() and not set("/\\") & set(file) and file[:1] not in ("", ".")
    return file if is_plain and safe_name(file) == own else own


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".", "..")]


def _encoders(entry: Entry) -> set[Any]:
    return {store.encoder.get("id") for store in entry.features}


def _aligned(host: Entry, store: FeatureStore) -> FeatureStore:
    """The features in the order of the rows of `host`. Raises DataError (PG-F02)."""
    wanted, found = host.stores[0].coords(), store.coords()
    if len(found) and (found < 0).all():
        raise _apart(host, store, "the features do not say where their patches lie")
    if len(wanted) == len(found):
        if _near(wanted, found).all():
            return store
        by_wanted, by_found = np.lexsort(wanted.T), np.lexsort(found.T)
        if _near(wanted[by_wanted], found[by_found]).all():
            order = np.empty(len(found), np.int64)
            order[by_wanted] = by_found
            return OrderedFeatures(store.table, order)
    left, right = set(map(tuple, wanted.tolist())), set(map(tuple, found.tolist()))
    raise _apart(
        host, store, f"{len(right - left):,} of {len(found):,} coordinates of the features are not "
        f"among those of the {len(wanted):,} patches, and {len(left - right):,} of the patches not "
        "among those of the features",
    )  # fmt: skip


def _near(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Rows that are as far apart as rounding leaves them."""
    return np.asarray((np.abs(one - other) <= MAX_ROUNDING).all(axis=1))


def _apart(host: Entry, store: FeatureStore, why: str) -> DataError:
    return DataError(
        "features and patches of one slide at different places", code="PG-F02",
        where=f"{host.name}: {host.stores[0].path} and {store.path}", why=why,
        hint="give the features that were made at these patches, or export each on its own",
    )  # fmt: skip
