"""Tables as stores: which kind it is, who made it, and which back end reads it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from pathgen.errors import NoInputError, StoreError
from pathgen.provenance import Provenance
from pathgen.stores.seal import FORMAT, FORMAT_VERSION, damaged, missing
from pathgen.stores.table import Column, Table, TableWriter

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "SUFFIXES",
    "Store",
    "create_table",
    "find_stores",
    "open_store",
    "open_table",
]

#: Suffix -> module, reader and writer. The modules load on first use.
_BACK_ENDS: Mapping[str, tuple[str, str, str]] = {
    ".h5": ("pathgen.stores.hdf5", "Hdf5Table", "Hdf5Writer"),
    ".zarr": ("pathgen.stores.zarr", "ZarrTable", "ZarrWriter"),
}
SUFFIXES = tuple(_BACK_ENDS)

#: kind -> module and class that reads it.
_KINDS: Mapping[str, tuple[str, str]] = {
    "patches": ("pathgen.stores.patches", "PatchStore"),
    "features": ("pathgen.stores.features", "FeatureStore"),
    "augmentations": ("pathgen.stores.augmentations", "SelfAugmentationStore"),
    "latents": ("pathgen.stores.latents", "LatentStore"),
}


class Store:
    """A table read as one kind of thing. Subclasses name the kind and its columns."""

    kind: ClassVar[str]

    def __init__(self, table: Table) -> None:
        found = table.attrs.get("kind", "something else")
        if found != self.kind:
            raise StoreError(
                f"{table.path.name} holds {found}, not {self.kind}", code="PG-O16",
                where=table.path,
            )  # fmt: skip
        self.table = table
        try:
            self.provenance = Provenance.model_validate(table.attrs.get("provenance"))
        except ValidationError as error:
            raise damaged(table.path, "its provenance cannot be read") from error

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a finished store of this kind. Raises StoreError (see `open_table`; PG-O16)."""
        return cls(open_table(Path(path)))

    @property
    def id(self) -> str:
        """16 hex digits of stage, config and inputs: equal ids, equal content."""
        return self.provenance.id

    @property
    def path(self) -> Path:
        return self.table.path

    @property
    def attrs(self) -> Mapping[str, Any]:
        return self.table.attrs

    def __len__(self) -> int:
        return len(self.table)

    def verify(self, deep: bool = False) -> None:
        """Raise StoreError (PG-O11) unless the store is as it was written; `deep`: every byte."""
        self.table.verify(deep)

    def close(self) -> None:
        self.table.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self)} rows)"


def open_table(path: Path | str) -> Table:
    """Open a finished table, by its suffix.

    Raises:
        StoreError: PG-O15 not a store, PG-O04 not finished, PG-O11 damaged, PG-O12 too new.
    """
    path = Path(path)
    module, reader, _ = back_end(path)
    if not path.exists():
        raise missing(path)
    if path.is_dir() != (path.suffix == ".zarr"):
        raise StoreError(
            "not a pathgen store", code="PG-O15", where=path,
            why="it is a folder" if path.is_dir() else "it is a file, and a zarr store a folder",
        )  # fmt: skip
    table: Table = getattr(import_module(module), reader)(path)
    return table


def create_table(
    path: Path | str,
    columns: Mapping[str, Column],
    attrs: Mapping[str, Any],
    notes: Mapping[str, Mapping[str, Any]] | None = None,
) -> TableWriter:
    """Start a table, by the suffix of its path. Use it as ``with create_table(...) as writer``.

    Args:
        path: ends in ``.h5`` or ``.zarr``; its folder is made; what is there is replaced.
        columns: name -> column.
        attrs: JSON-ready attributes of the whole.
        notes: column -> plain attributes on that column's array, for readers of other tools;
            pathgen itself reads none of them.
    """
    path = Path(path)
    module, _, writer = back_end(path)
    made: TableWriter = getattr(import_module(module), writer)(path, columns, attrs, notes or {})
    return made


def open_store(path: Path | str) -> Store:
    """Open a finished store as the class of its kind. Raises StoreError as `open_table`."""
    table = open_table(path)
    kind = str(table.attrs.get("kind"))
    if kind not in _KINDS:
        raise StoreError(
            f"store of unknown kind {kind!r}", code="PG-O16", where=path,
            why=f"known: {', '.join(_KINDS)}", hint="run: pip install -U pathgen",
        )  # fmt: skip
    module, name = _KINDS[kind]
    build: Callable[[Table], Store] = getattr(import_module(module), name)
    return build(table)


def find_stores(path: Path | str | Sequence[Path | str], kind: str | None = None) -> list[Path]:
    """Stores at `path`: a store, a folder searched through, or several of both.

    Args:
        path: drafts and hidden names in folders are passed over; no link to a folder is followed.
        kind: keep stores of this kind only. A store named outright is kept whatever it holds,
            so that opening it says what is wrong; so are damaged ones.

    Returns:
        Paths without repeats; those of each folder sorted.

    Raises:
        NoInputError: PG-N01, nothing was found.
    """
    given = [path] if isinstance(path, str | Path) else list(path)
    found: dict[Path, None] = {}
    for place in map(Path, given):
        if not place.exists():
            raise NoInputError("no such file or folder", where=place, hint="check the path")
        if place.is_file() or place.suffix in _BACK_ENDS:
            found[place] = None
        else:
            found.update((p, None) for p in sorted(_walk(place)) if _may_be(p, kind))
    if not found:
        raise NoInputError(
            f"no {_SINGULAR.get(kind or '', 'pathgen')} stores found",
            where=", ".join(map(str, given)) or None,
            why=f"none of its files ends in {' or '.join(SUFFIXES)}"
            + (f" and holds {kind}" if kind else ""),
            hint="give a store or a folder of stores",
        )  # fmt: skip
    return list(found)


_SINGULAR = {
    "patches": "patch", "features": "feature", "augmentations": "augmentation",
    "latents": "latent",
}  # fmt: skip


def _walk(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise NoInputError(
            "folder cannot be read", where=folder, why=error.strerror, hint="check permissions"
        ) from error
    for entry in inside:
        if entry.name.startswith("."):  # drafts among them
            continue
        place = Path(entry.path)
        is_folder = entry.is_dir()
        if place.suffix == (".zarr" if is_folder else ".h5"):
            yield place
        elif is_folder and not entry.is_symlink():
            yield from _walk(place)


def _may_be(path: Path, kind: str | None) -> bool:
    """False for another kind, or for a file of another tool; the seal is not checked here."""
    module = _BACK_ENDS[path.suffix][0]
    try:
        attrs = import_module(module).read_attrs(path)
    except (StoreError, OSError, ValueError, KeyError, AttributeError, RuntimeError):
        return True  # opening it will say what is wrong
    return attrs.get("format") == FORMAT and kind in (None, attrs.get("kind"))


def back_end(path: Path) -> tuple[str, str, str]:
    """Module, reader and writer of a path's suffix. Raises StoreError PG-O15 for another."""
    if path.suffix not in _BACK_ENDS:
        raise StoreError(
            "not a pathgen store", code="PG-O15", where=path,
            why=f"its name ends in {path.suffix!r}", hint=f"stores end in {', '.join(SUFFIXES)}",
        )  # fmt: skip
    return _BACK_ENDS[path.suffix]
