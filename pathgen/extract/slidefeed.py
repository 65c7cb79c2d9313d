"""Patches straight from slides, cut ahead of the encoder: in a thread, or in a process a slide.

A slide that cannot be read has a row that says why. So has one whose process dies twice, the
second time with this slide alone; the others go on.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pathgen import commit
from pathgen.errors import PathgenError, SlideError, StorageError
from pathgen.extract.items import AHEAD, Block, Feed, Item, ahead, as_it_is, pinned, unfilled
from pathgen.extract.origins import Slide, made_from
from pathgen.tiling.attempt import DISK_IS_FULL, PAUSES, is_passing
from pathgen.tiling.batch import CRASHES
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.pixels import Begun, Cut, cut_slide
from pathgen.tiling.pool import Crashed, Worker, prepare_worker

#: Seconds without a word of any process, after which it is asked whether to go on.
SILENCE = 0.5
#: Told of an exception that nobody expected: the slide's name and the traceback.
Log = Callable[[str, str], None]


def feed_slides(
    slides: Sequence[Slide],
    numbers: Iterable[int],
    batch_size: int,
    workers: int,
    pin: bool,
    log: Log,
) -> Feed:
    """The patches of those slides that `numbers` names, which is asked as work is taken up.

    With `workers`, as many slides are cut at a time, and their blocks come as they are ready.
    """
    if workers:
        # Blocks come through a pipe, which takes as long as a small network: beside the encoder.
        beside = ahead(lambda: _from_processes(slides, numbers, batch_size, workers, pin, log))
        with closing(beside) as ready:
            yield from (one for one in ready if one is not None)
        return

    def items() -> Iterator[tuple[int, Item]]:
        for number in numbers:
            for item in cut_to_the_end(slides[number], batch_size, log):
                yield number, item

    with closing(ahead(items, _pinned if pin else as_it_is)) as found:
        yield from found


def cut_to_the_end(slide: Slide, batch_size: int, log: Log) -> Generator[Item, None, None]:
    """Material, blocks and row of a slide. Where a drive was away it begins again, with pauses.

    Raises:
        StorageError: the disk is full, as where a remote slide is kept.
    """
    pauses = iter(PAUSES)
    while True:
        try:
            row = yield from _items(slide, batch_size)
        except StorageError:
            raise
        except PathgenError as error:
            if not is_passing(error):
                yield error
                return
            cause: Exception = error
        except OSError as error:
            if error.errno in DISK_IS_FULL:
                raise commit.storage_error(error, slide.task.out) from error
            if not is_passing(error):
                log(slide.name, traceback.format_exc())
                yield _unknown(slide, error)
                return
            cause = error
        except Exception as error:  # a bug or a library's: this slide fails, with the trace kept
            log(slide.name, traceback.format_exc())
            yield _unknown(slide, error)
            return
        else:
            yield row
            return
        pause = next(pauses, None)
        if pause is None:
            yield _away(slide, cause)
            return
        time.sleep(pause)


def _items(slide: Slide, batch_size: int) -> Generator[Item, None, LedgerRow]:
    cutting = cut_slide(slide.task, batch_size)
    while True:
        try:
            found = next(cutting)
        except StopIteration as end:
            row: LedgerRow = end.value
            return row
        yield made_from(found) if isinstance(found, Begun) else _block(found)


def _block(cut: Cut) -> Block:
    return Block(cut.images, cut.coords, cut.grid, np.full(len(cut.images), -1, np.int32))


def _unknown(slide: Slide, error: Exception) -> SlideError:
    return SlideError(
        "slide could not be tiled", code="PG-S00", where=slide.name,
        why=f"{type(error).__name__}: {error}", hint="details are in events.jsonl",
    )  # fmt: skip


def _away(slide: Slide, cause: Exception) -> SlideError:
    why = getattr(cause, "why", None) or str(cause)
    return SlideError(
        "slide could not be read to its end", code="PG-S12", where=slide.name,
        why=f"the disk or network failed {len(PAUSES) + 1} times: {why}",
        hint="run the same command again when the drive is back",
    )  # fmt: skip


def _pinned(item: tuple[int, Item]) -> tuple[int, Item]:
    number, found = item
    return (number, pinned(found)) if isinstance(found, Block) else item


# --- in processes -----------------------------------------------------------------------------


def _from_processes(
    slides: Sequence[Slide],
    numbers: Iterable[int],
    batch_size: int,
    workers: int,
    pin: bool,
    log: Log,
) -> Generator[tuple[int, Item] | None, None, None]:
    """Up to `workers` slides at a time; those whose process died are tried again alone.

    None where nothing came for a while, so that who no longer wants any can end it.
    """
    waiting, suspects = iter(numbers), deque[int]()
    idle: list[Worker] = []
    busy: dict[Connection, Worker] = {}

    def start(number: int) -> None:
        worker = idle.pop() if idle else Worker(SERVE)
        worker.index = number
        busy[worker.pipe] = worker
        with suppress(BrokenPipeError):  # it has died, as is seen when it is read from
            worker.pipe.send((slides[number], batch_size))

    well = False
    try:
        more, alone = True, False
        while True:
            while more and len(busy) < workers:
                number = next(waiting, None)
                if number is None:
                    more = False
                else:
                    start(number)
            if not busy:
                if not suspects:
                    break
                alone = True
                start(suspects.popleft())
            reachable = connection.wait(list(busy), SILENCE)
            if not reachable:
                yield None
            for pipe in reachable:
                assert isinstance(pipe, Connection)
                worker = busy[pipe]
                try:
                    found = _receive(pipe, pin)
                except (EOFError, OSError):
                    del busy[pipe]
                    crash = worker.bury()
                    if alone:
                        yield worker.index, _crashed(slides[worker.index], crash)
                    else:
                        suspects.append(worker.index)
                    continue
                if isinstance(found, _Told):
                    if found.error is not None:
                        raise found.error
                    log(slides[worker.index].name, found.trace)
                    continue
                if isinstance(found, LedgerRow | PathgenError):
                    idle.append(busy.pop(pipe))
                yield worker.index, found
        well = True
    finally:
        for worker in [*idle, *busy.values()]:
            worker.pipe.close()  # an idle one ends by itself
            if not well:
                worker.process.terminate()
        for worker in [*idle, *busy.values()]:
            worker.stop(at_once=False)


def _crashed(slide: Slide, crash: Crashed) -> SlideError:
    what, hint = CRASHES[crash.kind]
    return SlideError(what, code="PG-S13", where=slide.name, why=crash.why, hint=hint)


class _Told:
    """What a process says besides items: a traceback for the log, or what ends the run."""

    def __init__(self, trace: str, error: StorageError | None = None) -> None:
        self.trace, self.error = trace, error


class _Head:
    """Goes before the pixels of a block, which travel as they lie in memory."""

    def __init__(self, shape: tuple[int, ...], rest: tuple[Any, ...]) -> None:
        self.shape, self.rest = shape, rest


def _receive(pipe: Connection, pin: bool) -> Item | _Told:
    found = pipe.recv()
    if not isinstance(found, _Head):
        return found  # type: ignore[no-any-return]
    held = unfilled(found.shape, pin)
    pipe.recv_bytes_into(held.reshape(-1).data)
    return Block(held, *found.rest)


def _serve(pipe: Connection) -> None:
    """In a process: one slide after the other, until the parent closes the pipe."""
    prepare_worker()
    while True:
        try:
            slide, batch_size = pipe.recv()
        except (EOFError, OSError):
            return
        told: list[_Told] = []

        def log(name: str, trace: str, told: list[_Told] = told) -> None:
            told.append(_Told(trace))

        try:
            with closing(_cut_ahead(slide, batch_size, log)) as items:
                for item in items:
                    while told:
                        pipe.send(told.pop())
                    _send(pipe, item)
        except StorageError as error:
            pipe.send(_Told("", error))
        except BrokenPipeError:
            return


def _cut_ahead(slide: Slide, batch_size: int, log: Log) -> Generator[Item, None, None]:
    return ahead(lambda: cut_to_the_end(slide, batch_size, log), depth=AHEAD)


def _send(pipe: Connection, item: Item) -> None:
    if not isinstance(item, Block):
        pipe.send(item)
        return
    images = np.ascontiguousarray(item.images)
    pipe.send(_Head(images.shape, tuple(item[1:])))
    pipe.send_bytes(images.reshape(-1).data)


#: What a process runs.
SERVE = _serve
