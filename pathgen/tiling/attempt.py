"""One slide in a worker: what is wrong with it becomes its row, whatever it is."""

from __future__ import annotations

import errno
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pathgen import commit
from pathgen.errors import PathgenError, SlideError, StorageError
from pathgen.tiling.claims import Claims
from pathgen.tiling.forecast import plan_slide
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.resume import finished
from pathgen.tiling.task import TileTask
from pathgen.tiling.tiler import tile_slide

DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
#: What a network drive says when it was away for a moment.
PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
#: Seconds before each further try of a slide whose drive was away.
PAUSES = (2.0, 10.0, 30.0)


@dataclass(frozen=True)
class Job:
    """A task, and the claim to it where several processes share the work."""

    task: TileTask
    claims: Claims | None = None
    sample: bool = False
    """with `task.plan`: cut a few blocks, to know how long they take"""

    def absolute(self) -> Job:
        """With no relative path, as a worker's current folder is another."""
        return replace(self, task=self.task.absolute())

    @property
    def place(self) -> Path | None:
        """Where the slide lies; None where that is no path, as of a URL."""
        return self.task.place

    def hung(self, limit: float) -> None:
        """Leave word that the slide took more than `limit` seconds."""
        if self.claims is None:
            return
        error = SlideError(
            "reader hung", code="PG-S13", where=self.task.slide.name,
            why=f"no answer within {limit:g} seconds",
            hint="look at the file with another program; a longer --slide-timeout gives it more "
            "time",
        )  # fmt: skip
        self.claims.tell(self.task.slide.name, failed(self.task, error))


@dataclass(frozen=True)
class Outcome:
    row: LedgerRow | None
    """None when another process works on the slide"""
    event: dict[str, Any] | None
    """for events.jsonl; None when this process did not work on it"""


def attempt(job: Job) -> Outcome:
    """Tile one slide, unless another process does or has.

    Raises:
        StorageError: the disk is full or the like; the run ends.
        ConfigError: PG-O19, another process has just made its store with other settings.
    """
    task, claims = job.task, job.claims
    name = task.slide.name
    if claims is None:
        return _worked(job)
    if not claims.take(name):
        return Outcome(None, None)
    try:
        row = settled(task, claims)
        if row is not None:
            return Outcome(row, None)
        outcome = _worked(job)
        if outcome.row is not None and outcome.row.store is None:
            claims.tell(name, outcome.row)
        return outcome
    finally:
        claims.release(name)


def settled(task: TileTask, claims: Claims) -> LedgerRow | None:
    """The row of a slide that another process has finished since this one began, if one has.

    Raises:
        ConfigError: PG-O19, its store has other settings.
    """
    with suppress(OSError):  # NFS remembers what was not there until its folder is opened anew
        os.close(os.open(task.store.parent, os.O_RDONLY))
    return finished(task) or claims.told(task.slide.name)


def _worked(job: Job) -> Outcome:
    task = job.task
    start = time.time()
    event: dict[str, Any] = {"slide": task.slide.name, "start": round(start, 3)}
    row = _row(job, event)
    clear(task, made=row.store is not None)
    event |= {"seconds": round(time.time() - start, 3), "state": row.state, "patches": row.patches}
    return Outcome(row, event)


def _row(job: Job, event: dict[str, Any]) -> LedgerRow:
    task = job.task
    pauses = iter(PAUSES)
    while True:
        try:
            if not task.plan:
                return tile_slide(task)
            row, sample = plan_slide(task, job.sample)
            event["sample"] = sample
            return row
        except StorageError:
            raise
        except PathgenError as error:
            if not is_passing(error):
                return failed(task, error)
            cause: Exception = error
        except OSError as error:
            if error.errno in DISK_IS_FULL:
                raise commit.storage_error(error, task.store) from error
            if not is_passing(error):
                return failed(task, _bug(task, error, event))
            cause = error
        except Exception as error:  # a bug or a library's: this slide fails, with the trace kept
            return failed(task, _bug(task, error, event))
        pause = next(pauses, None)
        if pause is None:
            return failed(task, _away(task, cause))
        event["tries"] = event.get("tries", 1) + 1
        time.sleep(pause)


def is_passing(error: BaseException) -> bool:
    """Whether a drive that was away for a moment may be the cause: EIO, ESTALE or ETIMEDOUT.

    OpenSlide hands on the system's words, without its number.
    """
    words = tuple(os.strerror(number) for number in PASSING)
    for one in _causes(error):
        if isinstance(one, OSError) and one.errno is not None:
            if one.errno in PASSING:
                return True
        elif any(word in str(one) for word in words):
            return True
    return False


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _away(task: TileTask, cause: Exception) -> SlideError:
    why = getattr(cause, "why", None) or str(cause)
    return SlideError(
        "slide could not be read to its end", code="PG-S12", where=task.slide.name,
        why=f"the disk or network failed {len(PAUSES) + 1} times: {why}",
        hint="run the same command again when the drive is back",
    )  # fmt: skip


def _bug(task: TileTask, error: Exception, event: dict[str, Any]) -> SlideError:
    event["traceback"] = traceback.format_exc()
    return SlideError(
        "slide could not be tiled", code="PG-S00", where=task.slide.name,
        why=f"{type(error).__name__}: {error}", hint="details are in events.jsonl",
    )  # fmt: skip


def failed(task: TileTask, error: PathgenError) -> LedgerRow:
    return LedgerRow.failure(task.slide.name, task.slide.path.name, error, **task.known)


def clear(task: TileTask, made: bool) -> None:
    """Remove what other settings left, lest it be taken for this run's."""
    if task.plan or not (made or task.overwrite):
        return
    for path in task.stale:
        if not (made and path == task.store):
            commit.discard(path)
