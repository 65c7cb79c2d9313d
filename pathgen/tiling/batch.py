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
from pathgen.errors import ConfigError, PathgenError, SlideError, StorageError
from pathgen.progress import Progress, Silent
from pathgen.tiling.inputs import find_slides
from pathgen.tiling.ledger import LedgerRow, TileReport, write_ledger
from pathgen.tiling.pool import Crashed, default_workers, run_all
from pathgen.tiling.resume import look_around
from pathgen.tiling.task import TileConfig, TileTask
from pathgen.tiling.tiler import tile_slide

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
    says why, and the others go on; a good store it has from before stays.

    Args:
        slides: folders, slide files, globs, CSV lists; see `find_slides`.
        out: gets ``<slide>.h5`` or ``.zarr``, ``thumbnails/``, ``slides.csv``, ``slides.json``,
            ``config.yaml`` and, with timings, ``events.jsonl``.
        workers: processes; None = one a core, 0 = in this process.
        overwrite: make stores of other settings anew, instead of refusing. Only patch stores
            are ever replaced.
        plan: only find tissue and count patches; nothing is written.

    Raises:
        NoInputError: PG-N01, nothing to tile.
        ConfigError: PG-O19, `out` holds stores made with other settings or of other slides, or
            a store's place is taken by what `tile` has not made.
        StorageError: PG-O01, PG-O03, `out` cannot be written.
        BusyError: PG-O06, another pathgen writes there.
    """
    out = Path(out)
    given, ignored = find_slides(slides)
    _spare_the_list(slides, out)
    tasks = [TileTask(slide, out, config, plan=plan) for slide in given]
    with ExitStack() as stack:
        if not plan:
            commit.writable_folder(out)
            stack.enter_context(commit.lock(out))
            commit.sweep(out)
            stack.push(_sweeper(out))
        found = look_around(out, tasks, overwrite, progress)
        rows = found.rows
        kept = sum(row.state != "failed" for row in rows.values())
        for index, stale in found.stale.items():
            tasks[index] = replace(tasks[index], stale=stale, overwrite=overwrite)
            if index in rows:
                _clear(tasks[index], made=rows[index].store is not None)
        if not plan:
            commit.write_text(out / "config.yaml", to_yaml(config))
        todo = [i for i in range(len(tasks)) if i not in rows]
        count = default_workers() if workers is None else workers
        with (
            progress.task("plan" if plan else "tile", len(tasks), len(rows)) as bar,
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


def _spare_the_list(slides: str | Path | Sequence[str | Path], out: Path) -> None:
    """The ledger has a name that a list of slides may have."""
    for path in [slides] if isinstance(slides, str | Path) else slides:
        if Path(path).resolve() == (out / "slides.csv").resolve():
            raise ConfigError(
                "the ledger would take the place of the list of slides", code="PG-O19", where=path,
                hint="choose another --out, or another name for the list",
            )  # fmt: skip


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
            _clear(task, made=False)
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
    _clear(task, made=row.store is not None)
    event |= {"seconds": round(time.time() - start, 3), "state": row.state, "patches": row.patches}
    return row, event


def _clear(task: TileTask, made: bool) -> None:
    """Remove what other settings left, lest it be taken for this run's."""
    if task.plan or not (made or task.overwrite):
        return
    for path in task.stale:
        if not (made and path == task.store):
            commit.discard(path)


def _bug(task: TileTask, error: Exception, event: dict[str, Any]) -> SlideError:
    event["traceback"] = traceback.format_exc()
    return SlideError(
        "slide could not be tiled", code="PG-S00", where=task.slide.name,
        why=f"{type(error).__name__}: {error}", hint="details are in events.jsonl",
    )  # fmt: skip


def _failed(task: TileTask, error: PathgenError) -> LedgerRow:
    return LedgerRow.failure(task.slide.name, task.slide.path.name, error, **task.known)


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
