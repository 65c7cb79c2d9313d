"""Progress that appears once there is something to wait for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pathgen.progress import Progress, Task, for_people

#: Seconds after which a person wants to know.
PATIENCE = 2.0


class AfterAWhile:
    """Silent for `PATIENCE` seconds, then as a command shows it, on stderr."""

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        with ExitStack() as stack:
            yield _Patient(stack, title, total, done)

    def say(self, text: str) -> None:
        for_people().say(text)


class _Patient:
    def __init__(self, stack: ExitStack, title: str, total: int, done: int) -> None:
        self.stack, self.title, self.total, self.done = stack, title, total, done
        self.since = time.monotonic()
        self.shown: Task | None = None

    def advance(self, count: int = 1, note: str = "") -> None:
        if self.shown is not None:
            self.shown.advance(count, note)
            return
        self.done += count
        if time.monotonic() - self.since >= PATIENCE and self.done < self.total:
            progress: Progress = for_people()
            self.shown = self.stack.enter_context(
                progress.task(self.title, self.total, self.done)
            )  # fmt: skip
