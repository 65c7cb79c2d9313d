"""Progress with an ETA on a terminal, and plain lines without one.

Library functions take a `Progress`; the default says nothing. Only the command line makes one
that talks, to stderr, so that stdout stays clean for results.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TextIO


class Task(Protocol):
    """One bar, or one series of lines."""

    def advance(self, count: int = 1, note: str = "") -> None: ...


class Progress(Protocol):
    """Where a long function says how far it is."""

    def task(self, title: str, total: int, done: int = 0) -> Any:
        """A context manager that yields a `Task`; `done` of `total` were there before."""

    def say(self, text: str) -> None: ...


class _Nothing:
    def advance(self, count: int = 1, note: str = "") -> None: ...


class Silent:
    """Says nothing: the default of library functions, and ``--quiet``."""

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        yield _Nothing()

    def say(self, text: str) -> None: ...


class _Line:
    def __init__(self, owner: Lines, title: str, total: int, done: int) -> None:
        self.owner, self.title, self.total, self.done = owner, title, total, done
        self.last = time.monotonic()
        self.since, self.first, self.calls = self.last, done, 0

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        self.calls += 1
        now = time.monotonic()
        since, first = self.since, self.first
        if self.calls == 1:  # what comes before the first step is no measure of the others
            self.since, self.first = now, self.done
        if now - self.last < self.owner.every and self.done < self.total:
            return
        self.last = now
        left = (now - since) / max(self.done - first, 1) * (self.total - self.done)
        tail = f"  {note}" if note else ""
        self.owner.say(f"{self.title}: {self.done}/{self.total}  eta {clock(left)}{tail}")


class Lines:
    """Plain lines, for logs and schedulers: one now and then, and the last one."""

    def __init__(self, stream: TextIO | None = None, every: float = 15.0) -> None:
        self.stream, self.every = stream or sys.stderr, every

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        yield _Line(self, title, total, done)

    def say(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class JsonLines(Lines):
    """One JSON object per event on stdout: ``--json``."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)

    def say(self, text: str) -> None:
        print(json.dumps({"event": "progress", "text": text}), file=self.stream, flush=True)


class Bars:
    """Rich bars, for a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False),
        )  # fmt: skip
        with RichProgress(*columns, console=self.console, transient=False) as bars:
            number = bars.add_task(title, total=total, completed=done, note="")

            class _Bar:
                def advance(self, count: int = 1, note: str = "") -> None:
                    bars.update(number, advance=count, note=note)

            yield _Bar()

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)


def for_people(*, quiet: bool = False, as_json: bool = False) -> Progress:
    """Bars on a terminal, lines elsewhere, JSON or nothing on request."""
    if as_json:
        return JsonLines()
    if quiet:
        return Silent()
    return Bars() if sys.stderr.isatty() else Lines()


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 slide``, ``2,000 slides``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def clock(seconds: float) -> str:
    """``75`` -> ``1:15``; hours appear when there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
