"""Patches on their way to the encoder, and a thread that makes them ahead of it.

A feed gives (number of the origin, item): a `Material` when an origin begins, `Block`s of its
patches in order, and its end: a `LedgerRow`, or the error that kept it from one. After a
`Material` that comes again what was given before does not count.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, nullcontext, suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import PathgenError
from pathgen.extract.outputs import Material
from pathgen.tiling.ledger import LedgerRow

T = TypeVar("T")

#: Batches that wait for the encoder.
AHEAD = 2

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]


class Block(NamedTuple):
    """Patches that are encoded together."""

    images: Images
    """RGB uint8 (H, W, 3) each; one array (n, H, W, 3) where all have one size"""
    coords: NDArray[np.int64]
    """level-0 (x, y), (n, 2), or (-1, -1) for image files, which have no place"""
    grid: NDArray[np.int32]
    """(row, column), (n, 2), or (-1, -1)"""
    label: NDArray[np.int32]
    """index into the classes, (n,), or -1"""


Item = Material | Block | LedgerRow | PathgenError
Feed = Generator[tuple[int, Item], None, None]


def as_it_is(item: T) -> T:
    return item


def pinned(block: Block) -> Block:
    """With pixels in memory that a GPU fetches by itself, where they are one array."""
    images = block.images
    if not isinstance(images, np.ndarray) or not len(images):
        return block
    held = unfilled(images.shape, pin=True)
    held[...] = images
    return block._replace(images=held)


def unfilled(shape: tuple[int, ...], pin: bool) -> NDArray[np.uint8]:
    """Room for pixels; with `pin`, in memory that a GPU fetches by itself."""
    if not pin:
        return np.empty(shape, np.uint8)
    import torch

    held: NDArray[np.uint8] = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return held


class _End:
    """What a thread says last."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(
    make: Callable[[], Iterable[T]], change: Callable[[T], T] = as_it_is, depth: int = AHEAD
) -> Generator[T, None, None]:
    """The items of ``make()``, made by a thread up to `depth` before they are asked for.

    An exception is raised where its item would have come. When the caller stops, so does the
    thread, after the item it is at.
    """
    waiting: queue.Queue[Any] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: Any) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            items = make()
            with closing(items) if isinstance(items, Generator) else nullcontext():
                for item in items:
                    put(change(item))
                    if stop.is_set():
                        return
            put(_End())
        except BaseException as error:  # raised in the thread that asks
            put(_End(error))

    thread = threading.Thread(target=work, name="pathgen-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = waiting.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        stop.set()
        thread.join()
