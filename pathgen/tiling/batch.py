"""Many slides in, a folder of stores and its ledger out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathgen import commit
from pathgen.config import to_yaml
from pathgen.errors import ConfigError, SlideError
from pathgen.progress import Progress, Silent, Task
from pathgen.provenance import digest
from pathgen.tiling.attempt import Job, Outcome, attempt, clear, failed, settled
from pathgen.tiling.claims import join
from pathgen.tiling.contours import write_missing
from pathgen.tiling.forecast import forecast, sampled
from pathgen.tiling.inputs import find_slides
from pathgen.tiling.ledger import LedgerRow, TileReport, write_ledger
from pathgen.tiling.maskfiles import check_asked, with_masks
from pathgen.tiling.pool import Crashed, default_workers, run_all
from pathgen.tiling.resume import STORES, flat, look_around
from pathgen.tiling.strangers import is_tile_settings, spare_others
from pathgen.tiling.task import TileConfig, TileTask

if TYPE_CHECKING:
    from pathgen.tiling.cluster import Machines

#: Runs `attempt` on jobs somewhere and gives the results as they come, with the jobs' numbers.
Runner = Callable[
    [Callable[[Job], Outcome], Sequence[Job]],
    Generator[tuple[int, "Outcome | Crashed"], None, None],
]
#: Seconds between two looks at what others have finished, at first and at most.
LOOK_AGAIN = (0.2, 5.0)

#: What is said of a slide whose process ended, or had to be.
CRASHES = {
    "died": ("reader crashed", "the file is damaged in a way the reader cannot stand; get a fresh "
             "copy"),
    "killed": ("reader was killed", "use fewer --workers, or a machine with more memory"),
    "hung": ("reader hung", "look at the file with another program; a longer --slide-timeout gives "
             "it more time"),
}  # fmt: skip


def tile(
    slides: str | Path | Sequence[str | Path],
    out: str | Path,
    config: TileConfig = TileConfig(),
    *,
    masks: str | Path | None = None,
    workers: int | None = None,
    machines: Machines | None = None,
    slide_timeout: float | None = None,
    overwrite: bool = False,
    plan: bool = False,
    progress: Progress = Silent(),
) -> TileReport:
    """Cut slides into stain-filtered patches at an exact scale, one store a slide.

    Stores that an equal run finished are kept as they are; so the same command goes on where a
    stopped one left off, and its result has the same bytes. A slide that fails has a row that
    says why, and the others go on; a good store it has from before stays.

    Several processes, on several hosts too, may run the same call on one `out` at the same time:
    they share the slides, and each returns when all slides have a row, with the same report.

    Args:
        slides: folders, slide files, globs, CSV lists; see `find_slides`.
        out: gets ``<slide>.h5`` or ``.zarr``, ``thumbnails/``, ``slides.csv``, ``slides.json``,
            ``config.yaml`` and, with timings, ``events.jsonl``.
        masks: outlines or rasters from outside, a folder with one a slide or one file; see
            `pathgen.tiling.maskfiles`. A CSV's column `mask` wins.
        workers: processes; None = one a core, 0 = in this process.
        machines: a Dask cluster to work on instead; see `pathgen.tiling.cluster`.
        slide_timeout: seconds after which a slide's process is killed (PG-S13); None = never.
            Needs a worker process.
        overwrite: make stores of other settings anew, instead of refusing. Only patch stores
            are ever replaced. No other process may work on `out` meanwhile.
        plan: only find tissue, count patches and cut a few for a forecast; nothing is written.

    Raises:
        NoInputError: PG-N01, nothing to tile.
        ConfigError: PG-O19, `out` holds stores made with other settings or of other slides, or
            a store's or another output's place is taken by what `tile` has not made. PG-C01,
            `slide_timeout` without workers, or settings for masks without any.
        StorageError: PG-O01, PG-O03, `out` cannot be written.
        BusyError: PG-O06, another pathgen with other settings writes there.
        ClusterError: PG-E03 to PG-E05, `machines` cannot be used.
    """
    out = Path(out)
    config.normalize.check()
    count = default_workers() if workers is None else workers
    if machines is not None:
        out = out.absolute()  # the workers are elsewhere
    elif slide_timeout is not None and not count:
        raise ConfigError(
            "a time limit needs a worker process", where="slide_timeout",
            why="what hangs in this process cannot be stopped", hint="use 1 worker or more",
        )  # fmt: skip
    given, ignored = find_slides(slides)
    check_asked(given, masks, config.masks)
    given = with_masks(given, masks, config.masks.missing)
    _spare_the_list(slides, out)
    tasks = [TileTask(slide, out, config, plan=plan) for slide in given]
    spare_others(out, _thumbnails(tasks), is_tile_settings)
    with ExitStack() as stack:
        claims = None
        if not plan:
            commit.writable_folder(out)
            claims = stack.enter_context(join(out, _settings(tasks, config), alone=overwrite))
            commit.sweep(out)
            stack.push(_sweeper(out))
        found = look_around(out, tasks, overwrite, progress, count)
        rows = found.rows
        kept = sum(row.state != "failed" for row in rows.values())
        for index, stale in found.stale.items():
            tasks[index] = replace(tasks[index], stale=stale, overwrite=overwrite)
            if index in rows:
                clear(tasks[index], made=rows[index].store is not None)
        if not plan:
            commit.write_text(out / "config.yaml", to_yaml(config))
        if machines is None:
            run: Runner = partial(run_all, workers=count, limit=slide_timeout)
        else:
            place = None if plan else out
            run, count = stack.enter_context(machines.runner(place, slide_timeout, progress))
        todo = [i for i in range(len(tasks)) if i not in rows]
        if machines is None and todo:  # more workers than slides: the others help within them
            spare = max(1, count // len(todo))
            tasks = [replace(task, threads=spare) for task in tasks]
        measured = {todo[i] for i in sampled(len(todo))} if plan else set()
        shared = None if overwrite else claims
        jobs = {i: Job(tasks[i], shared, sample=i in measured) for i in todo}
        samples = []
        with (
            progress.task("plan" if plan else "tile", len(tasks), len(rows)) as bar,
            # Closed at once when anything stops the loop, so that no worker outlives it.
            closing(_work(jobs, run, bar)) as results,
        ):
            for index, row, event in results:
                rows[index] = row
                if plan:
                    samples += [event["sample"]] if event and event.get("sample") else []
                elif event:
                    _append_event(out, event)
                bar.advance(note=row.slide + (": failed" if row.state == "failed" else ""))
        report = TileReport(
            tuple(rows[i] for i in range(len(tasks))), out, ignored, planned=plan, kept=kept
        )
        if plan:
            cost = forecast([rows[i] for i in todo], samples, count)
            size = cost.bytes if cost else 0
            return replace(report, bytes=size, forecast=cost).without_stores()
        if config.write_tissue:
            write_missing(out, report.stores)
        write_ledger(report)
        commit.sweep(out)  # of processes that died meanwhile
        return replace(report, bytes=sum(map(_size, report.stores)))


def _settings(tasks: Sequence[TileTask], config: TileConfig) -> dict[str, Any]:
    """What processes that share a folder must agree on, lest their ledgers differ."""
    slides = digest([task.settings["slide"] for task in tasks])
    return {**flat(config.model_dump(mode="json")), "slides": f"{len(tasks)} ({slides})"}


def _spare_the_list(slides: str | Path | Sequence[str | Path], out: Path) -> None:
    """The ledger has a name that a list of slides may have."""
    for path in [slides] if isinstance(slides, str | Path) else slides:
        if Path(path).resolve() == (out / "slides.csv").resolve():
            raise ConfigError(
                "the ledger would take the place of the list of slides", code="PG-O19", where=path,
                hint="choose another --out, or another name for the list",
            )  # fmt: skip


def _thumbnails(tasks: Sequence[TileTask]) -> Iterator[Path]:
    """Those that will be made; one beside a store is its own."""
    for task in tasks:
        stores = (task.store.with_name(f"{task.store.stem}.{kind}") for kind in STORES)
        if not any(map(os.path.lexists, stores)):
            yield task.thumbnail


def _sweeper(out: Path) -> Callable[..., None]:
    """At an exception: remove what stopped workers leave."""

    def sweep(kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            commit.sweep(out)

    return sweep


Result = tuple[int, LedgerRow, "dict[str, Any] | None"]


def _work(jobs: Mapping[int, Job], run: Runner, bar: Task) -> Generator[Result, None, None]:
    """Each job's row: made here, or taken from the process that has the slide."""
    mine, theirs = list(jobs), set[int]()
    pause = LOOK_AGAIN[0]
    while mine or theirs:
        with closing(run(attempt, [jobs[i] for i in mine])) as results:
            for at, result in results:
                index = mine[at]
                if isinstance(result, Crashed):
                    yield _crashed(index, jobs[index], result)
                elif result.row is None:
                    theirs.add(index)
                else:
                    yield index, result.row, result.event
        mine = []
        for index in sorted(theirs):
            task, claims = jobs[index].task, jobs[index].claims
            assert claims is not None  # else nobody else could have it
            row = settled(task, claims)
            if row is not None:
                theirs.remove(index)
                yield index, row, None
            elif not claims.held(task.slide.name):  # who had it is gone
                theirs.remove(index)
                mine.append(index)
        if theirs and not mine:
            bar.advance(0, note=f"waiting for others: {len(theirs)}")
            time.sleep(pause)
            pause = min(pause * 1.5, LOOK_AGAIN[1])


def _crashed(index: int, job: Job, crash: Crashed) -> Result:
    task, claims = job.task, job.claims
    what, hint = CRASHES[crash.kind]
    error = SlideError(what, code="PG-S13", where=task.slide.name, why=crash.why, hint=hint)
    row = failed(task, error)
    clear(task, made=False)
    if claims is not None:
        claims.tell(task.slide.name, row)
        claims.release(task.slide.name)
    return index, row, {"slide": task.slide.name, "state": "failed", "crashed": crash.kind}


def _append_event(out: Path, event: Mapping[str, Any]) -> None:
    """One line in one write, under a lock: over NFS, appending alone can lose a line."""
    line = (json.dumps(event) + "\n").encode()
    with (out / "events.jsonl").open("ab", buffering=0) as log, commit.locked(log):
        log.write(line)


def _size(path: Path) -> int:
    with suppress(FileNotFoundError):  # removed by its owner since
        if path.is_dir():
            return sum(part.stat().st_size for part in path.rglob("*") if part.is_file())
        return path.stat().st_size
    return 0
