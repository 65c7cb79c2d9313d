"""Many slides in, a folder of stores and its ledger out."""

from __future__ import annotations

import errno
import json
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from pathgen import commit
from pathgen.config import to_yaml
from pathgen.errors import ConfigError, PathgenError, SlideError, StorageError, StoreError
from pathgen.progress import Progress, Silent
from pathgen.stores import PatchStore
from pathgen.tiling.inputs import find_slides
from pathgen.tiling.ledger import LedgerRow, TileReport, write_ledger
from pathgen.tiling.pool import Crashed, default_workers, run_all
from pathgen.tiling.tiler import TileConfig, TileTask, row_of_store, tile_slide

STORES = ("h5", "zarr")
DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


def tile(
    slides: str | Path | Sequence[str | Path],
    out: str | Path,
    config: TileConfig = TileConfig(),
    *,
    workers: int | None = None,
    overwrite: bool = False,
    plan: bool = False,
    progress: Progress = Silent(),
) -> TileReport:
    """Cut slides into stain-filtered patches at an exact scale, one store a slide.

    Stores that an equal run finished are kept as they are; so the same command goes on where a
    stopped one left off, and its result has the same bytes. A slide that fails has a row that
    says why, and the others go on.

    Args:
        slides: folders, slide files, globs, CSV lists; see `find_slides`.
        out: gets ``<slide>.h5`` or ``.zarr``, ``thumbnails/``, ``slides.csv``, ``slides.json``,
            ``config.yaml`` and, with timings, ``events.jsonl``.
        workers: processes; None = one a core, 0 = in this process.
        overwrite: make stores of other settings anew, instead of refusing.
        plan: only find tissue and count patches; nothing is written.

    Raises:
        NoInputError: PG-N01, nothing to tile.
        ConfigError: PG-O19, `out` holds stores made with other settings.
        StorageError: PG-O01, PG-O03, `out` cannot be written.
        BusyError: PG-O06, another pathgen writes there.
    """
    out = Path(out)
    found, ignored = find_slides(slides)
    tasks = [TileTask(slide, out, config, plan=plan) for slide in found]
    with ExitStack() as stack:
        if not plan:
            commit.writable_folder(out)
            stack.enter_context(commit.lock(out))
            commit.sweep(out)
            stack.push(_sweeper(out))
        rows = _finished(tasks, overwrite)
        kept = len(rows)
        if not plan:
            commit.write_text(out / "config.yaml", to_yaml(config))
        todo = [i for i in range(len(tasks)) if i not in rows]
        count = default_workers() if workers is None else workers
        with (
            progress.task("plan" if plan else "tile", len(tasks), kept) as bar,
            # Closed at once when anything stops the loop, so that no worker outlives it.
            closing(_work(tasks, todo, count)) as results,
        ):
            for index, row, event in results:
                rows[index] = row
                if not plan:
                    _append_event(out, event)
                bar.advance(note=row.slide + (": failed" if row.state == "failed" else ""))
        report = TileReport(
            tuple(rows[i] for i in range(len(tasks))), out, ignored, planned=plan, kept=kept
        )
        if plan:
            return replace(report, bytes=estimate(report, config)).without_stores()
        write_ledger(report)
        return replace(report, bytes=sum(map(_size, report.stores)))


def _sweeper(out: Path) -> Callable[..., None]:
    """At an exception: remove what stopped workers leave."""

    def sweep(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            commit.sweep(out)

    return sweep


def _work(
    tasks: Sequence[TileTask], todo: Sequence[int], workers: int
) -> Generator[tuple[int, LedgerRow, dict[str, Any]], None, None]:
    chosen = [tasks[i] for i in todo]
    for at, result in run_all(_attempt, chosen, workers):
        task = chosen[at]
        if isinstance(result, Crashed):
            error = SlideError(
                "reader crashed", code="PG-S13", where=task.slide.name,
                why="its process died twice, with this slide alone the second time",
                hint="the file is damaged in a way the reader cannot stand; get a fresh copy",
            )  # fmt: skip
            yield todo[at], _failed(task, error), {"slide": task.slide.name, "crashed": True}
            continue
        row, event = result
        yield todo[at], row, event


def _attempt(task: TileTask) -> tuple[LedgerRow, dict[str, Any]]:
    """Tile one slide; what is wrong with it is a row, what is wrong with the disk ends the run."""
    start = time.time()
    event: dict[str, Any] = {"slide": task.slide.name, "start": round(start, 3)}
    try:
        row = tile_slide(task)
    except StorageError:
        raise
    except PathgenError as error:
        row = _failed(task, error)
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            raise commit.storage_error(error, task.store) from error
        row = _failed(task, _bug(task, error, event))
    except Exception as error:  # a bug or a library's: this slide fails, with the trace kept
        row = _failed(task, _bug(task, error, event))
    if not task.plan:
        # What other settings left must not be taken for this run's.
        stale = {f".{kind}" for kind in STORES} - (
            {f".{task.config.store}"} if row.store else set()
        )
        for suffix in sorted(stale):
            commit.discard(task.out / f"{task.slide.name}{suffix}")
    event |= {"seconds": round(time.time() - start, 3), "state": row.state, "patches": row.patches}
    return row, event


def _bug(task: TileTask, error: Exception, event: dict[str, Any]) -> SlideError:
    event["traceback"] = traceback.format_exc()
    return SlideError(
        "slide could not be tiled", code="PG-S00", where=task.slide.name,
        why=f"{type(error).__name__}: {error}", hint="details are in events.jsonl",
    )  # fmt: skip


def _failed(task: TileTask, error: PathgenError) -> LedgerRow:
    return LedgerRow.failure(task.slide.name, task.slide.path.name, error, **task.known)


def _finished(tasks: Sequence[TileTask], overwrite: bool) -> dict[int, LedgerRow]:
    """Rows of slides whose store is there, whole, and what this run would make.

    Raises:
        ConfigError: PG-O19, a store is whole but made with other settings.
    """
    rows = {}
    for index, task in enumerate(tasks):
        for kind in STORES:
            path = task.out / f"{task.slide.name}.{kind}"
            store = _open(path)
            if store is None:
                continue
            with store:
                row = _compare(task, store, overwrite)
            if row is not None:
                rows[index] = row
    return rows


def _open(path: Path) -> PatchStore | None:
    """The store at `path`; None when there is none or it is broken, and so made again."""
    if not path.exists():
        return None
    try:
        store = PatchStore.open(path)
        store.verify()
    except StoreError:
        return None
    return store if "ledger" in store.attrs else None


def _compare(task: TileTask, store: PatchStore, overwrite: bool) -> LedgerRow | None:
    try:
        wanted = task.provenance()
    except PathgenError:
        return None  # the slide is gone or broken now: its own row will say so
    if store.id == wanted.id:
        return row_of_store(task, store)
    if overwrite:
        return None
    mine = {**_flat(wanted.config), "slide file": wanted.inputs}
    theirs = {**_flat(store.provenance.config), "slide file": store.provenance.inputs}
    key = next(k for k in [*mine, *theirs] if mine.get(k) != theirs.get(k))
    why = f"the setting {key} was {theirs.get(key)!r} and is now {mine.get(key)!r}"
    if key == "slide file":
        why = "the slide file is not the one it was made from"
    raise ConfigError(
        "stores here were made with other settings", code="PG-O19", where=store.path, why=why,
        hint="make them anew with --overwrite, or choose another --out",
    )  # fmt: skip


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _append_event(out: Path, event: Mapping[str, Any]) -> None:
    with (out / "events.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(event) + "\n")


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
    return path.stat().st_size if path.exists() else 0


#: Bytes per pixel of H&E patches, about: measured on lung and skin at 0.25 to 1 um.
_BYTES_PER_PIXEL = {"png": 1.9, "jpeg": 0.45}


def estimate(report: TileReport, config: TileConfig) -> int:
    """About how many bytes the planned patches take."""
    return int(report.counts["patches"] * config.patch_size**2 * _BYTES_PER_PIXEL[config.codec])
