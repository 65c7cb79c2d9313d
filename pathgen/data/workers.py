"""Loader processes leave signals to the process that started them.

Ctrl-C and schedulers signal the whole process group. Workers that died of it would take down
the training in the middle of a step, before it has written the checkpoint it was asked for.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes started inside never receive SIGINT or SIGUSR1; for this one they wait."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        resource_tracker.ensure_running()  # which unblocks SIGINT when it starts one
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(number: int) -> None:
    """DataLoader's `worker_init_fn`: SIGTERM ends a worker quietly.

    It cannot be ignored, as that is how a worker that hangs is ended. With exit status 0 the
    loader says so at the next batch, where a training that is stopping expects it.
    """
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)
