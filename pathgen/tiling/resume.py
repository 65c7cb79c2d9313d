"""What lies in the output folder before a run: what is kept, what may go, what is in the way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pathgen.errors import ConfigError, PathgenError, StorageError, StoreError
from pathgen.progress import Progress, Silent
from pathgen.stores import FORMAT, PatchStore
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.pool import Crashed, run_all
from pathgen.tiling.task import TileTask
from pathgen.tiling.tiler import row_of_store

STORES = ("h5", "zarr")
#: How a store's writer may have been stopped, or its disk have failed.
BROKEN = {"PG-O04", "PG-O11"}

#: Stores that are looked at in one go, and from how many on by several processes.
CHUNK, MANY = 16, 400


@dataclass
class Found:
    """What an earlier run leaves to this one, by index of the task."""

    rows: dict[int, LedgerRow] = field(default_factory=dict)
    """of slides that need no work"""
    stale: dict[int, tuple[Path, ...]] = field(default_factory=dict)
    """patch stores to remove once the slide is tiled anew"""


def look_around(
    out: Path, tasks: Sequence[TileTask], overwrite: bool, progress: Progress = Silent(),
    workers: int = 0,
) -> Found:  # fmt: skip
    """Compare what is in `out` with what `tasks` would make. Nothing is changed.

    Many stores are looked at by `workers` processes.

    Raises:
        ConfigError: PG-O19, a store is whole but made with other settings, belongs to no task,
            or a place is taken by what `tile` has not made.
    """
    _refuse_strangers(out, tasks)
    listed = _listed(out)
    found = Found()
    places = {
        index: there
        for index, task in enumerate(tasks)
        if (there := [path for path in _places(task) if os.path.lexists(path)])
    }
    if not places:
        return found
    looks = [
        _Look(
            tasks[i],
            there,
            overwrite,
            listed & {path.relative_to(out).as_posix() for path in there},
        )
        for i, there in places.items()
    ]
    chunks = [looks[i : i + CHUNK] for i in range(0, len(looks), CHUNK)]
    indices = list(places)
    with (
        progress.task("check", len(places)) as bar,
        closing(run_all(_look_at, chunks, workers if len(looks) > MANY else 0)) as results,
    ):
        for number, seen in results:
            if isinstance(seen, Crashed):
                raise StorageError(
                    "stores here cannot be checked", where=out, why=seen.why,
                    hint="check the disk, or look with --workers 0 for which store it is",
                )  # fmt: skip
            for index, (row, stale) in zip(indices[number * CHUNK :], seen, strict=False):
                if row is not None:
                    found.rows[index] = row
                if stale:
                    found.stale[index] = stale
            bar.advance(len(seen), note=tasks[indices[number * CHUNK]].slide.name)
    return found


@dataclass(frozen=True)
class _Look:
    task: TileTask
    there: list[Path]
    overwrite: bool
    listed: set[str]


def _look_at(looks: Sequence[_Look]) -> list[tuple[LedgerRow | None, tuple[Path, ...]]]:
    """Of each, the row of the store that stays, and the stores to be replaced."""
    result = []
    for look in looks:
        seen = [_look(look.task, path, look.overwrite, look.listed) for path in look.there]
        row = next((one for one in seen[::-1] if isinstance(one, LedgerRow)), None)
        result.append((row, tuple(one for one in seen if isinstance(one, Path))))
    return result


def _places(task: TileTask) -> list[Path]:
    return [task.out / f"{task.slide.name}.{kind}" for kind in STORES]


def _look(task: TileTask, path: Path, overwrite: bool, listed: set[str]) -> LedgerRow | Path | None:
    """The row of a store to keep, the path of one to replace, or None for what is left alone."""
    try:
        with PatchStore.open(path) as store:
            store.verify()
            row = _compare(task, store, overwrite)
        return path if row is None else row
    except StoreError as error:
        head = _head(path)
        ours = _is_patches(head)
        if head is None:  # unreadable: only the ledger can tell whose it was
            ours = path.relative_to(task.out).as_posix() in listed
        if ours and (overwrite or error.code in BROKEN):
            return path
        if not ours and path != task.store:
            return None
        hint = "move it away, or choose another --out"
        raise ConfigError(
            "the place of a store is taken", code="PG-O19", where=path, why=error.what,
            hint=f"make it anew with --overwrite, {hint}" if ours else hint,
        ) from error  # fmt: skip


def finished(task: TileTask) -> LedgerRow | None:
    """The row of a sound store that another process has made since `look_around`.

    Raises:
        ConfigError: PG-O19, it made it with other settings.
    """
    if not os.path.lexists(task.store):
        return None
    try:
        with PatchStore.open(task.store) as store:
            store.verify()
            return _compare(task, store, overwrite=False)
    except StoreError:  # `look_around` found it and said that it may be replaced
        return None


def _compare(task: TileTask, store: PatchStore, overwrite: bool) -> LedgerRow | None:
    """The row of a sound store that stays; None when it is to be made anew."""
    source = store.slide.mpp_source
    mine, theirs = flat(task.settings_for(source)), flat(store.provenance.config)
    key = next((k for k in [*mine, *theirs] if mine.get(k) != theirs.get(k)), None)
    if key is not None:
        why = f"the setting {key} was {theirs.get(key)!r} and is now {mine.get(key)!r}"
    elif "ledger" not in store.attrs:
        why = "it was not made by `pathgen tile`"
    else:
        try:
            if task.slide.problem:
                raise task.slide.problem
            wanted = task.provenance(source)
        except PathgenError as error:
            return _kept(task, error)
        if store.id == wanted.id:
            return row_of_store(task, store)
        why = "it was made by another version of pathgen"
        if store.provenance.inputs != wanted.inputs:
            why = "the slide file is not the one it was made from"
            if store.provenance.inputs.get("slide") == wanted.inputs["slide"]:
                why = "its mask is not the one it was made with"
    if overwrite:
        return None
    raise ConfigError(
        "stores here were made with other settings", code="PG-O19", where=store.path, why=why,
        hint="make them anew with --overwrite, or choose another --out",
    )  # fmt: skip


def _kept(task: TileTask, error: PathgenError) -> LedgerRow:
    """A slide that cannot be read now, as when its disk is not mounted, keeps its good store."""
    row = LedgerRow.failure(task.slide.name, task.slide.path.name, error, **task.known)
    return replace(row, message=f"{row.message} The store of an earlier run was kept.")


def _refuse_strangers(out: Path, tasks: Iterable[TileTask]) -> None:
    """Stores that the new ledger would not list, and later commands would still take."""
    mine = {f"{task.slide.name}.{kind}" for task in tasks for kind in STORES}
    strange = [
        name for name in _stores_below(out)
        if name not in mine and _is_sealed_patches(_head(out / name))
    ]  # fmt: skip
    if not strange:
        return
    more = f" and {len(strange) - 3} more" if len(strange) > 3 else ""
    # A list in a parent folder names the slides with the folders between.
    lost = set(strange)
    moved = next((n for n in sorted(mine) if any(tail in lost for tail in _tails(n))), None)
    hint = "give all slides, choose another --out, or remove those stores"
    if moved is not None:
        hint = (
            "slides are named by their folders below the folder or list that is given: give the "
            "folder as before, and the list after it"
        )
    raise ConfigError(
        "stores of other slides are here", code="PG-O19", where=out,
        why=f"not among the slides given: {', '.join(strange[:3])}{more}"
        + ("" if moved is None else f"; they may be the ones now named as {moved}"),
        hint=hint,
    )  # fmt: skip


def _tails(name: str) -> Iterator[str]:
    """``b/c`` and ``c`` of ``a/b/c``."""
    while "/" in name:
        name = name.partition("/")[2]
        yield name


def _stores_below(out: Path) -> Iterator[str]:
    """Paths relative to `out` of what has a store's suffix; hidden names are passed over."""
    for folder, folders, files in os.walk(out):
        here = Path(folder)
        shown = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in shown if not name.endswith(".zarr")]
        for name in [n for n in shown if n.endswith(".zarr")] + sorted(files):
            if name.endswith(tuple(f".{kind}" for kind in STORES)) and not name.startswith("."):
                yield (here / name).relative_to(out).as_posix()


def _head(path: Path) -> Mapping[str, Any] | None:
    """Root attributes, unchecked; {} for what is no store; None where they cannot be read."""
    from pathgen.stores import hdf5, zarr

    try:
        if path.suffix == ".zarr":
            return zarr.read_attrs(path)
        return hdf5.read_attrs(path)
    except StoreError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return None


def _is_patches(head: Mapping[str, Any] | None) -> bool:
    head = head or {}
    return head.get("format") == FORMAT and head.get("kind") == PatchStore.kind


def _is_sealed_patches(head: Mapping[str, Any] | None) -> bool:
    return _is_patches(head) and "seal" in (head or {})


def _listed(out: Path) -> set[str]:
    """Stores in the ledger of an earlier run."""
    try:
        rows = json.loads((out / "slides.json").read_bytes())["slides"]
        return {row["store"] for row in rows if row["store"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result
