"""Pieces by several processes at a time, each with its share of the cores."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import traceback
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from arms import StudyConfig
from pieces import Piece, Place, do

from pathgen.errors import RunError, Stopped
from pathgen.progress import Silent, clock


@dataclass
class Worker:
    """A process and what it does now."""

    process: Any
    pipe: Connection
    piece: Piece | None = None
    since: float = 0.0


@dataclass
class Crew:
    """Does pieces, `jobs` at a time, each as soon as what it needs is finished."""

    study: StudyConfig
    place: Place
    jobs: int = 1
    minutes: float | None = None
    took: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def work(self, pieces: Sequence[Piece]) -> float:
        """Do what is not done yet; the seconds it took.

        Raises Stopped (exit code 85) when `minutes` are over or on Ctrl-C, once every process has
        its checkpoint; RunError with the traceback when a piece fails.
        """
        start = time.monotonic()
        self.todo = [p for p in pieces if not p.marker(self.place.out).exists()]
        self.total, self.left = len(pieces), len(self.todo)
        waited = {p.name for p in self.todo}
        workers = [self._hire() for _ in range(min(self.jobs, len(self.todo)))]
        try:
            while self.left:
                for worker in workers:
                    if worker.piece is None:
                        self._give(worker, waited)
                busy = [worker for worker in workers if worker.piece]
                if not busy:
                    raise RunError(
                        "nothing can be done", why=f"{self.todo[0].name} needs what is not there",
                        hint="do the pieces it needs first; --list names them",
                    )  # fmt: skip
                for pipe in wait([worker.pipe for worker in busy], self._seconds_left(start)):
                    worker = next(w for w in busy if w.pipe is pipe)
                    waited.discard(self._took_over(worker))
                if self._seconds_left(start) == 0 and self.left:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            self._stop(workers)
            raise Stopped(
                f"stopped with {self.left} of {self.total} pieces left", where=self.place.out,
                hint="run the same command again to go on",
            ) from None  # fmt: skip
        finally:
            for worker in workers:
                worker.process.terminate()
                worker.process.join()
        return time.monotonic() - start

    def _hire(self) -> Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        process = context.Process(target=_serve, args=(there, self.study, self.place, threads))
        process.start()
        there.close()
        return Worker(process, here)

    def _give(self, worker: Worker, waited: set[str]) -> None:
        for piece in self.todo:
            if not waited.intersection(piece.needs):
                self.todo.remove(piece)
                worker.piece, worker.since = piece, time.monotonic()
                worker.pipe.send(piece)
                return

    def _took_over(self, worker: Worker) -> str:
        """What a worker says it has done: the piece's name. Raises what went wrong there."""
        piece, seconds = worker.piece, time.monotonic() - worker.since
        assert piece is not None
        try:
            error = worker.pipe.recv()
        except EOFError:
            error = f"the process ended with code {worker.process.exitcode}"
        if error == "stopped":
            raise KeyboardInterrupt
        if error:
            raise RunError(f"{piece.name} failed", where=self.place.out, why=error)
        worker.piece = None
        self.left -= 1
        self.took[piece.what].append(seconds)
        with (self.place.out / "times.jsonl").open("a") as handle:
            handle.write(json.dumps({"piece": piece.name, "seconds": round(seconds, 1)}) + "\n")
        done = f"[{self.total - self.left}/{self.total}] {piece.name} {clock(seconds)}"
        print(f"{done}; eta {clock(self._eta())}", flush=True)
        return piece.name

    def _eta(self) -> float:
        """Seconds left if pieces of one kind take alike; a kind not seen yet counts as the mean."""
        seen = {what: sum(times) / len(times) for what, times in self.took.items()}
        usual = sum(seen.values()) / len(seen)
        return sum(seen.get(piece.what, usual) for piece in self.todo) / self.jobs

    def _seconds_left(self, start: float) -> float | None:
        if self.minutes is None:
            return None
        return max(0.0, start + 60 * self.minutes - time.monotonic())

    def _stop(self, workers: Sequence[Worker]) -> None:
        """Ask for checkpoints and wait for them."""
        for worker in workers:
            if worker.piece and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGTERM)
        for worker in workers:
            if worker.piece:
                wait([worker.pipe, worker.process.sentinel])


def _serve(pipe: Connection, study: StudyConfig, place: Place, threads: int) -> None:
    """Do one piece after another, until the process is ended."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the crew, which asks for a stop
    torch.set_num_threads(threads)
    while True:
        piece = pipe.recv()
        try:
            do(piece, study, place, Silent())
            pipe.send("")
        except Stopped:
            pipe.send("stopped")
        except Exception:  # handed over whole: the other side raises it
            pipe.send(traceback.format_exc())
