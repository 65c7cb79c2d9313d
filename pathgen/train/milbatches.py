"""Bags as padded batches, made while the step before is computed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathgen.data.bags import Bags
from pathgen.data.vectors import ChosenVectors, StoredVectors, Vectors
from pathgen.models.mil import Truth

#: Batches whose bags are sorted by length together: padding gets small, and the order stays chance.
POOL = 16
#: Patches that answering takes at once; a longer bag is a batch of its own.
ANSWERED = 8_192
#: Patches of a step that are computed together: as many as a CPU's cache likes; a GPU likes more.
TOGETHER = {"cpu": 2048}
TOGETHER_ELSEWHERE = 1 << 16
#: Batches made ahead.
AHEAD = 2
#: Bytes of a batch that is worth handing from one thread to another.
HEAVY = 1 << 19


class Batch(NamedTuple):
    """B bags padded to n patches."""

    rows: NDArray[np.int64]
    """(B,) which bags they are"""
    vectors: Tensor
    """(B, n, dim) float32, zeros where nothing is"""
    mask: Tensor
    """(B, n) bool, true where there is a patch"""
    coords: Tensor | None
    """(B, n, 2) int64"""

    def to(self, device: torch.device) -> Batch:
        """The tensors on a device."""
        if device.type == "cpu":
            return self
        there = [None if t is None else t.to(device, non_blocking=True) for t in self[1:]]
        return Batch(self.rows, *there)  # type: ignore[arg-type]


class Draw(NamedTuple):
    """Which patches of a bag one training step sees: at least one of them."""

    most: int
    """no more than these"""
    dropout: float
    """share left out"""

    def kept(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many of bags of `sizes`."""
        wanted = np.maximum(1, np.rint(sizes * (1 - self.dropout)).astype(np.int64))
        kept: NDArray[np.int64] = np.minimum(np.minimum(wanted, self.most), sizes)
        return kept

    def rows(self, n: int, rng: np.random.Generator) -> NDArray[np.int64] | slice:
        """Rising row numbers of a bag of n."""
        kept = int(self.kept(np.array([n]))[0])
        return slice(None) if kept >= n else np.sort(rng.choice(n, kept, replace=False))


def training_plan(
    sizes: NDArray[np.int64],
    batch_size: int,
    rng: np.random.Generator,
    events: NDArray[np.bool_] | None = None,
) -> list[NDArray[np.int64]]:
    """Every bag once, in batches of about equal length each, in an order that is chance.

    Args:
        sizes: (N,) patches that are drawn of each bag.
        events: (N,) of survival. Bags with and without an event are dealt out evenly in place of
            by length, since a batch without an event teaches nothing.
    """
    order = rng.permutation(len(sizes))
    if events is not None:
        batches = max(1, round(len(sizes) / batch_size))
        order = order[np.argsort(~events[order], kind="stable")]
        return [order[first::batches] for first in range(batches)]
    if batch_size == 1:
        return list(order[:, None])
    pools = [order[i : i + POOL * batch_size] for i in range(0, len(order), POOL * batch_size)]
    plan = []
    for pool in pools:
        pool = pool[np.argsort(sizes[pool], kind="stable")]
        plan += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [plan[i] for i in rng.permutation(len(plan))]


def pieces(
    rows: NDArray[np.int64], sizes: NDArray[np.int64], device: torch.device
) -> list[NDArray[np.int64]]:
    """The bags of a step as one batch after another, whose gradients add up to the step's."""
    most = TOGETHER.get(device.type, TOGETHER_ELSEWHERE)
    return [rows[piece] for piece in _runs(sizes[rows], most)]


def answering_plan(sizes: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Every bag once, those of like length together, as many as `ANSWERED` patches hold."""
    order = np.argsort(sizes, kind="stable")
    return [order[run] for run in _runs(sizes[order], ANSWERED)]


def _runs(sizes: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Neighbors that, padded to the longest, are no more than `most` patches; or one alone."""
    first, longest = 0, 0
    for i, size in enumerate(sizes.tolist()):
        longest = max(longest, size)
        if i > first and (i + 1 - first) * longest > most:
            yield slice(first, i)
            first, longest = i, size
    if len(sizes):
        yield slice(first, len(sizes))


def batches(
    bags: Bags,
    plan: Sequence[NDArray[np.int64]],
    draw: Draw | None = None,
    rng: np.random.Generator | None = None,
    *,
    places: bool = False,
    pinned: bool = False,
) -> Iterator[Batch]:
    """The batches of a plan, one after the other.

    Args:
        draw: which patches; default: all of them.
        rng: of the draws, in the order of the plan.
        places: read the coordinates too, where the bags have them.
        pinned: in memory that a GPU copies from by itself.
    """
    for rows in plan:
        kept = [_kept(bags.features, int(row), draw, rng) for row in rows]
        coords = None
        if places and bags.coords is not None:
            there = zip(rows, kept, strict=True)
            coords = _padded([bags.coords[int(row)][at] for row, (_, at) in there], torch.int64)
        vectors = _padded([vectors for vectors, _ in kept], torch.float32)
        lengths = torch.tensor([len(vectors) for vectors, _ in kept])
        mask = torch.arange(vectors.shape[1]) < lengths.unsqueeze(1)
        batch = Batch(rows, vectors, mask, coords)
        if pinned:
            batch = Batch(rows, *(None if t is None else t.pin_memory() for t in batch[1:]))  # type: ignore[arg-type]
        yield batch


def _kept(
    features: Sequence[Vectors], row: int, draw: Draw | None, rng: np.random.Generator | None
) -> tuple[Vectors, NDArray[np.int64] | slice]:
    vectors = features[row]
    at = slice(None) if draw is None or rng is None else draw.rows(len(vectors), rng)
    return vectors[at], at


def _padded(arrays: Sequence[NDArray[Any]], kind: torch.dtype) -> Tensor:
    """(n, c) arrays -> (B, longest, c), zeros where nothing is; the one copy that is made."""
    longest = max(len(array) for array in arrays)
    out = torch.empty((len(arrays), longest, arrays[0].shape[1]), dtype=kind)
    view = out.numpy()
    for i, array in enumerate(arrays):
        view[i, : len(array)] = array
        view[i, len(array) :] = 0
    return out


def truth_of(bags: Bags) -> Truth:
    """What is known of the bags, as a head's criterion takes it."""
    values = None if bags.values is None else torch.from_numpy(bags.values)
    if bags.target == "survival":
        events = bags.events if bags.events is not None else np.zeros(len(bags), bool)
        return Truth(time=values, event=torch.from_numpy(events))
    if bags.target == "regression":
        return Truth(values=values)
    return Truth(labels=torch.from_numpy(bags.labels))


class Ahead:
    """The batches of an iterator, made in a thread of their own where that is worth it.

    `waited` sums the seconds that whoever takes the batches stood still for them. Use it as a
    context: leaving ends the thread, however it is left.
    """

    def __init__(self, made: Iterator[Batch], threaded: bool) -> None:
        self.waited = 0.0
        self._made = made
        self._queue: queue.Queue[Batch | BaseException | None] | None = None
        if threaded:
            self._queue = queue.Queue(AHEAD)
            self._left = threading.Event()
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *_: object) -> None:
        if self._queue is not None:
            self._left.set()
            self._thread.join()

    def __iter__(self) -> Iterator[Batch]:
        while True:
            since = time.perf_counter()
            batch = next(self._made, None) if self._queue is None else self._queue.get()
            self.waited += time.perf_counter() - since
            if batch is None:
                return
            if isinstance(batch, BaseException):
                raise batch
            yield batch

    def _work(self) -> None:
        try:
            for batch in self._made:
                if not self._put(batch):
                    return
            self._put(None)
        except BaseException as error:  # raised again where the batches are taken
            self._put(error)

    def _put(self, item: Batch | BaseException | None) -> bool:
        """False when nobody takes batches any more."""
        assert self._queue is not None
        while not self._left.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False


def worth_a_thread(bags: Bags, plan: Sequence[NDArray[np.int64]]) -> bool:
    """Whether batches are large, or have to be read: else handing them over costs more."""
    features = bags.features
    source = features.source if isinstance(features, ChosenVectors) else features
    if isinstance(source, StoredVectors) and source.kept < len(source):
        return True
    return bool(plan) and int(bags.sizes.sum()) * bags.dim * 4 > HEAVY * len(plan)
