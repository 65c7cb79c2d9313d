"""Many tasks in worker processes, any of which may die without taking the run along."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Crashed(Generic[T]):
    """Stands for the result of a task whose process died twice, the second time alone."""


CRASHED: Crashed[object] = Crashed()


def default_workers() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_all(
    function: Callable[[T], R], tasks: Sequence[T], workers: int
) -> Iterator[tuple[int, R | Crashed[object]]]:
    """``function(task)`` of each task, as they finish: (index, result).

    With `workers` 0 all is done in this process. Otherwise each worker holds one task at a time;
    when one dies, the tasks then in work are tried again alone, and one that kills its process
    again gives `CRASHED`. An exception that `function` raises ends the run. When the caller stops
    iterating, or is interrupted, the workers are stopped at once.
    """
    if workers == 0:
        for index, task in enumerate(tasks):
            yield index, function(task)
        return
    waiting = deque(range(len(tasks)))
    suspects: deque[int] = deque()
    while waiting or suspects:
        alone = bool(suspects)
        source = suspects if alone else waiting
        size = 1 if alone else min(workers, len(waiting))
        with _Pool(size) as pool:
            running: dict[Future[R], int] = {}
            broken: list[int] = []
            while (source and not broken) or running:
                while source and not broken and len(running) < size:
                    index = source.popleft()
                    running[pool.submit(function, tasks[index])] = index
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    index = running.pop(future)
                    try:
                        result = future.result()
                    except BrokenProcessPool:
                        broken.append(index)
                    else:
                        yield index, result
        if alone:
            yield from ((index, CRASHED) for index in broken)
        else:
            suspects.extend(sorted(broken))


class _Pool:
    """A ProcessPoolExecutor whose workers die with it, whatever ends it."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(size, mp_context=context, initializer=_prepare_worker)

    def submit(self, function: Callable[[T], R], task: T) -> Future[R]:
        with _main_hidden():
            try:
                return self.pool.submit(function, task)
            except BrokenProcessPool as error:
                failed: Future[R] = Future()
                failed.set_exception(error)
                return failed

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for process in list((getattr(self.pool, "_processes", None) or {}).values()):
                process.terminate()
        self.pool.shutdown(wait=True, cancel_futures=True)


def _prepare_worker() -> None:
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
