"""What a folder of tiled slides holds: the rows of its ledger, their stores and thumbnails."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pathgen.errors import NoInputError, StoreError
from pathgen.places import astray, inside
from pathgen.stores import PatchStore, find_stores
from pathgen.stores.store import SUFFIXES
from pathgen.tiling.ledger import LedgerRow

#: What a store may not say of itself: where it lies, and so where others of its name would go.
_PLACES = frozenset({"slide", "file", "store", "thumbnail"})


@dataclass(frozen=True)
class Tiled:
    """One slide as it was tiled."""

    row: LedgerRow
    store: Path | None
    """None for a slide that failed"""
    thumbnail: Path | None


def tiled(place: Path) -> Iterator[Tiled]:
    """The slides at `place`: a patch store, or a folder of them.

    Where `tile` or `refilter` left a ledger, its rows and in their order; elsewhere the rows that
    the stores know of themselves.

    Raises:
        NoInputError: PG-N01, no patch stores. StoreError: one is missing, damaged or unfinished;
            PG-O20, the ledger names files outside of its folder.
    """
    ledger = read_ledger(place)
    for row in ledger:
        _check(row, place)
    for row in ledger:
        store = place / row.store if row.store else None
        if store is not None and not store.exists():
            raise StoreError(
                "store is missing", code="PG-O15", where=store, why="the ledger has it",
                hint="tile again with the same command",
            )  # fmt: skip
        thumbnail = place / row.thumbnail if row.thumbnail else None
        yield Tiled(row, store, thumbnail if thumbnail and thumbnail.is_file() else None)
    if ledger:
        return
    for path in find_stores(place, kind=PatchStore.kind):
        name = path.relative_to(place).as_posix() if place in path.parents else path.name
        with PatchStore.open(path) as found:
            row = LedgerRow(
                found.name, "done", "ok", "", found.name + (found.slide.suffix or ""), store=name,
                label=found.label, patient=found.patient,
            )  # fmt: skip
            count = {"candidates": len(found), "patches": len(found)}
            told = _fields(found.attrs.get("ledger", count))
            told = {name: value for name, value in told.items() if name not in _PLACES}
            yield Tiled(replace(row, **told), path, None)


def _check(row: LedgerRow, place: Path) -> None:
    """Whether a row names what `tile` would make, below `place`: outputs get the same names."""
    said = place / "slides.json"
    if row.store and inside(place, row.store, said).suffix not in SUFFIXES:
        raise astray(row.store, said)
    if row.thumbnail:
        path = inside(place, row.thumbnail, said)
        own = path.suffix == ".jpg" and Path(row.thumbnail).parts[0] == "thumbnails"
        # Its bytes may be copied: a link must not pass another file off as a picture.
        if not own or not path.resolve().is_relative_to(place.resolve()):
            raise astray(row.thumbnail, said)


def read_ledger(place: Path) -> list[LedgerRow]:
    """The rows in a folder that `tile` or `refilter` made; none elsewhere."""
    path = place / "slides.json"
    if not place.exists():
        raise NoInputError("no such file or folder", where=place, hint="check the path")
    if place.suffix == ".zarr" or not path.is_file():
        return []
    try:
        rows = json.loads(path.read_bytes())["slides"]
        return [LedgerRow(**_fields(row)) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NoInputError(
            "ledger cannot be read", where=path, why=str(error), hint="run pathgen tile again"
        ) from error


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    known = {item.name for item in fields(LedgerRow)}
    return {name: value for name, value in values.items() if name in known}
