"""Many tasks in worker processes, any of which may die or hang without taking the run along."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Literal, TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Seconds a worker gets to end by itself before it is killed.
GRACE = 5.0


@dataclass(frozen=True)
class Crashed:
    """Stands for the result of a task whose process died twice, or gave no answer in time."""

    kind: Literal["died", "killed", "hung"]
    why: str


def default_workers() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    function: Callable[[T], R], tasks: Sequence[T], workers: int, limit: float | None = None
) -> Generator[tuple[int, R | Crashed], None, None]:
    """``function(task)`` of each task, as they finish: (index, result).

    With `workers` 0 all is done in this process. Otherwise each worker holds one task at a time.
    A task whose worker dies is tried again alone when the others are done, as it may have
    wanted more memory than there was; when it kills its worker again, its result is a `Crashed`.
    So is that of a task that takes more than `limit` seconds, whose worker is killed. An
    exception that `function` raises ends the run. When the caller stops iterating, or is
    interrupted, the workers are stopped at once.
    """
    if workers == 0:
        for index, task in enumerate(tasks):
            yield index, function(task)
        return
    waiting = deque(range(len(tasks)))
    suspects: deque[int] = deque()
    with _Crew(min(workers, len(tasks)), limit) as crew:
        while waiting or suspects or crew.busy:
            while waiting and crew.free:
                index = waiting.popleft()
                crew.start(index, function, tasks[index])
            alone = not waiting and not crew.busy and bool(suspects)
            if alone:
                crew.start(suspects[0], function, tasks[suspects[0]])
            for index, result in crew.finished():
                if alone:
                    suspects.popleft()
                elif isinstance(result, Crashed) and result.kind != "hung":
                    suspects.append(index)
                    continue
                yield index, result


class _Crew:
    """Worker processes, of which each has one task or none. They end with the block."""

    def __init__(self, size: int, limit: float | None) -> None:
        self.size, self.limit = size, limit
        self.idle: list[Worker] = []
        self.busy: dict[connection.Connection, Worker] = {}

    @property
    def free(self) -> bool:
        return len(self.busy) < self.size

    def start(self, index: int, function: Callable[[T], R], task: T) -> None:
        worker = self.idle.pop() if self.idle else Worker()
        worker.index, worker.since = index, time.monotonic()
        self.busy[worker.pipe] = worker
        with suppress(BrokenPipeError):  # it has died, as `finished` will see
            worker.pipe.send((function, task))

    def finished(self) -> Iterator[tuple[int, Any]]:
        """Wait for the next results; a worker's exception is raised here."""
        patience = None
        if self.limit is not None:
            first = min(worker.since for worker in self.busy.values())
            patience = max(first + self.limit - time.monotonic(), 0.0)
        ready = connection.wait(list(self.busy), patience)
        for pipe in [pipe for pipe in self.busy if pipe in ready]:
            worker = self.busy.pop(pipe)
            try:
                good, value, trace = worker.pipe.recv()
            except (EOFError, OSError):
                yield worker.index, worker.bury()
                continue
            self.idle.append(worker)
            if not good:
                value.add_note(trace)
                raise value
            yield worker.index, value
        if self.limit is not None:
            late = time.monotonic() - self.limit
            for pipe in [p for p, worker in self.busy.items() if worker.since <= late]:
                worker = self.busy.pop(pipe)
                worker.stop(at_once=True)
                yield worker.index, Crashed("hung", f"no answer within {self.limit:g} seconds")

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        workers = [*self.idle, *self.busy.values()]
        for worker in workers:
            worker.pipe.close()  # an idle worker ends by itself
            if kind is not None or worker not in self.idle:
                worker.process.terminate()
        for worker in workers:
            worker.stop(at_once=False)


class Worker:
    """A process that answers through a pipe. `index` is the task it has.

    Args:
        serve: what it runs, with its end of the pipe; ends when ours is closed.
    """

    def __init__(self, serve: Callable[[Any], None] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve or _serve, args=(theirs,))
        self.index, self.since = -1, 0.0
        with _main_hidden():
            self.process.start()
        theirs.close()

    def stop(self, at_once: bool) -> None:
        self.pipe.close()
        if not at_once:
            self.process.join(GRACE)
        if self.process.is_alive():
            self.process.kill()
        self.process.join()

    def bury(self) -> Crashed:
        """What the exit code of a dead worker says."""
        self.stop(at_once=False)
        code = self.process.exitcode or 0
        if code == -getattr(signal, "SIGKILL", 9):
            return Crashed("killed", "its process was killed by the system: out of memory?")
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return Crashed("died", f"its process ended with {name}")
        return Crashed("died", f"its process ended with exit code {code}")


def _serve(pipe: connection.Connection) -> None:
    """In a worker: one task after the other, until the parent closes the pipe."""
    prepare_worker()
    while True:
        try:
            function, task = pipe.recv()
        except EOFError:
            return
        except Exception as error:
            pipe.send((False, error, traceback.format_exc()))
            continue
        try:
            answer = True, function(task), ""
        except Exception as error:
            answer = False, error, traceback.format_exc()
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return
        except Exception as error:  # what cannot be pickled
            told = RuntimeError(f"{type(error).__name__}: {error}")
            pipe.send((False, told, answer[2] or traceback.format_exc()))


def prepare_worker() -> None:
    """In a worker, first of all: signals are the parent's, and it ends with its parent."""
    # Ctrl-C reaches the whole process group; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: object) -> None:
    """A killed parent can tell its workers nothing."""
    parent.join()  # type: ignore[attr-defined]
    os._exit(1)


@contextmanager
def _main_hidden() -> Iterator[None]:
    """Workers run functions of this package; they need not import the caller's script again.

    Importing it would run a script that lacks ``if __name__ == "__main__"`` a second time.
    """
    main = sys.modules["__main__"]
    hidden = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    try:
        main.__spec__ = None
        if "__file__" in hidden:
            del main.__file__
        yield
    finally:
        for name, value in hidden.items():
            setattr(main, name, value)
