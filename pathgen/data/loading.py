"""Endless shuffled batches whose content depends on the seed and the step alone.

Neither the number of workers nor a restart changes what step s sees: the order of each epoch
comes from (seed, epoch), and everything else that is drawn from (seed, step, purpose).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pathgen.data.augmentation import crop, turn
from pathgen.data.patches import PatchDataset, as_tensor
from pathgen.data.sources import PatchSource
from pathgen.data.workers import deaf_children, start_worker
from pathgen.errors import NoInputError, PathgenError

Batch = TypeVar("Batch")

#: What a stream of chance is for; numbers are part of every result and never change.
ORDER, VIEWS, SYNTHETIC, BLEND, FLIPS, NEIGHBORS, SECOND, PICK = range(8)


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Full batches in one pass over n patches; the rest is dropped, but there is at least one."""
    return max(1, n // batch_size)


def generator(seed: int, *purpose: int) -> np.random.Generator:
    """A stream of chance of its own for each purpose."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *purpose])))


class Order:
    """Which patches each step takes: a new permutation every epoch, incomplete batches dropped.

    Fewer patches than a batch holds are repeated until it is full.
    """

    def __init__(self, n: int, batch_size: int, seed: int) -> None:
        self.n, self.batch_size, self.seed = n, batch_size, seed
        self._epoch = -1
        self._permutation: NDArray[np.int64] = np.empty(0, np.int64)

    def __call__(self, step: int) -> NDArray[np.int64]:
        """(batch_size,) int64 items of a step."""
        epoch, place = divmod(step, steps_per_epoch(self.n, self.batch_size))
        if epoch != self._epoch:
            self._permutation = generator(self.seed, ORDER, epoch).permutation(self.n)
            self._epoch = epoch
        if self.n < self.batch_size:
            return np.resize(self._permutation, self.batch_size)
        return self._permutation[place * self.batch_size : (place + 1) * self.batch_size]


class Steps(Dataset[Any], Generic[Batch]):
    """A dataset whose item is the whole batch of a step; subclasses say how it is made."""

    def batch(self, step: int) -> Batch:
        raise NotImplementedError

    def __getitem__(self, step: int) -> Batch | PathgenError:
        try:
            return self.batch(step)
        except PathgenError as error:  # torch would wrap it and lose the code and the hint
            return error


def stream(
    made: Steps[Batch], *, workers: int, start_step: int, steps: int, pin_memory: bool = False
) -> Iterator[Batch]:
    """Batches of the steps from `start_step` up to, not including, `steps`, in order.

    With `workers` they are made in that many spawned processes, else in this one. A PathgenError
    of a worker is raised here as it was there. `pin_memory` speeds up copies to a CUDA device.
    """
    if start_step >= steps:
        return
    loader: DataLoader[Any] = DataLoader(
        made,
        batch_size=None,
        sampler=range(start_step, steps),
        collate_fn=_as_made,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
        prefetch_factor=2 if workers else None,
        worker_init_fn=start_worker,
        pin_memory=pin_memory,
    )
    with deaf_children() if workers else nullcontext():
        batches = iter(loader)
    for item in batches:
        if isinstance(item, PathgenError):
            raise item
        yield item


def _as_made(batch: Any) -> Any:
    return batch


def numbered(
    sources: PatchSource | str | Path | Sequence[PatchSource | str | Path],
) -> PatchDataset:
    """The sources as one set. Raises NoInputError when they hold no patch at all."""
    patches = PatchDataset(sources)
    if not len(patches):
        raise NoInputError(
            "no patches to load",
            where=", ".join(source.name for source in patches.sources) or None,
            why="the stores are empty" if patches.sources else None,
            hint="tile slides with tissue, or lower the thresholds of `pathgen tile`",
        )
    return patches


class ImageBatch(NamedTuple):
    """Whole patches. `indices` are items of the `PatchDataset` over the same sources."""

    images: Tensor
    """float32 (B, 3, size, size) in [0, 1]"""
    indices: Tensor
    """int64 (B,)"""


class _Images(Steps[ImageBatch]):
    def __init__(
        self,
        patches: PatchDataset,
        size: int,
        batch_size: int,
        seed: int,
        flips: bool,
        rows: slice = slice(None),
    ) -> None:
        self.patches, self.size, self.seed, self.flips = patches, size, seed, flips
        self.order, self.rows = Order(len(patches), batch_size, seed), rows

    def batch(self, step: int) -> ImageBatch:
        everyone = self.order(step)
        indices = everyone[self.rows]
        squares = [center_square(image, self.size) for image in self.patches.images(indices)]
        images = torch.stack(squares)
        if self.flips:
            flags = generator(self.seed, FLIPS, step).random((len(everyone), 2)) < 0.5
            horizontal, vertical = torch.from_numpy(flags[self.rows].T.copy())
            images = turn(images, horizontal, vertical, torch.zeros(len(indices)))
        return ImageBatch(images.float().div_(255), torch.from_numpy(indices.copy()))


def center_square(image: NDArray[np.uint8], size: int) -> Tensor:
    """The largest centered square, resized: (H, W, 3) -> (3, size, size) uint8."""
    height, width = image.shape[:2]
    side = min(height, width)
    return crop(
        as_tensor(image), (height - side) // 2, (width - side) // 2, side, side, size
    ).contiguous()


def image_loader(
    sources: PatchSource | Sequence[PatchSource],
    size: int,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    start_step: int = 0,
    steps: int,
    flips: bool = False,
    rows: slice = slice(None),
) -> Iterator[ImageBatch]:
    """Shuffled whole patches, for the autoencoder and the E-LDM.

    Args:
        size: side in pixels to which the largest centered square of each patch is resized.
        flips: mirror each image left-right and up-down, each with probability 1/2.
        rows: which of the `batch_size` patches of a step are wanted, each as it is among all.

    Yields:
        ``(images float32 (B, 3, size, size) in [0, 1], indices int64 (B,))`` of each step from
        `start_step` on; step s is the same whatever `workers` and `start_step` are.

    Raises:
        NoInputError: the sources are empty.
        DataError: PG-D02, an image cannot be read.
    """
    made = _Images(numbered(sources), size, batch_size, seed, flips, rows)
    return stream(made, workers=workers, start_step=start_step, steps=steps)
