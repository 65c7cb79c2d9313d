"""Latents from their stores, batch by batch, as the diffusion model takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathgen.data.loading import FLIPS, Order, Steps, generator, stream
from pathgen.errors import NoInputError, RunError
from pathgen.stores.latents import LatentStore


class Latents:
    """Latents of many stores, numbered through as `PatchDataset` numbers their patches.

    Args:
        stores: as `prepare_latents` gives them.
        cache_gib: up to this size they are held in memory, else read from the stores.

    Attributes:
        shape: (C, h, w) of one latent.
        mirrors: kept of each patch, 1, 2 or 4.
        autoencoder_id: whose latents they are.

    Raises:
        RunError: PG-T04, the stores are of several autoencoders or shapes, or rows are missing.
    """

    def __init__(self, stores: Sequence[LatentStore], cache_gib: float = 4.0) -> None:
        _check_whole(stores)
        self.stores = list(stores)
        self.shape, self.mirrors = stores[0].shape, stores[0].mirrors
        self.autoencoder_id = str(stores[0].autoencoder["id"])
        self._starts = np.cumsum([0, *map(len, stores)])
        self._memory: Tensor | None = None
        if len(self) * self.mirrors * 2 * int(np.prod(self.shape)) <= cache_gib * 2**30:
            self._memory = self._load()

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def in_memory(self) -> bool:
        return self._memory is not None

    def batch(
        self,
        indices: NDArray[np.int64] | Tensor,
        mirrors: NDArray[np.int64] | Tensor | None = None,
    ) -> Tensor:
        """float16 (B, C, h, w) on the CPU of patches `indices` (B,), each in the mirror image
        that `mirrors` (B,) says, by default as it is; see `mirrored`."""
        wanted = np.asarray(indices, np.int64)
        chosen = np.zeros_like(wanted) if mirrors is None else np.asarray(mirrors, np.int64)
        if self._memory is not None:
            return self._memory[torch.from_numpy(chosen), torch.from_numpy(wanted)]
        found = torch.empty((len(wanted), *self.shape), dtype=torch.float16)
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1
        for number, mirror in sorted(set(zip(numbers.tolist(), chosen.tolist(), strict=True))):
            places = np.flatnonzero((numbers == number) & (chosen == mirror))
            rows = wanted[places] - self._starts[number]
            found[torch.from_numpy(places)] = torch.from_numpy(
                self.stores[number].latents(mirror, rows)
            )
        return found

    def _load(self) -> Tensor:
        memory = torch.empty((self.mirrors, len(self), *self.shape), dtype=torch.float16)
        for store, (start, stop) in zip(self.stores, pairwise(self._starts.tolist()), strict=True):
            for mirror in range(self.mirrors):
                memory[mirror, start:stop] = torch.from_numpy(store.latents(mirror))
        return memory


class LatentBatch(NamedTuple):
    """What the diffusion model is given in one step."""

    latents: Tensor
    """float16 (B, C, h, w), on the CPU"""
    indices: Tensor
    """int64 (B,), items of the `PatchDataset` over the same sources"""


def latent_loader(
    latents: Latents,
    *,
    batch_size: int,
    seed: int,
    flips: bool,
    start_step: int = 0,
    steps: int,
    workers: int = 0,
    rows: slice = slice(None),
) -> Iterator[LatentBatch]:
    """Batches of the steps from `start_step` up to `steps`, in an order drawn as `image_loader`'s.

    Args:
        batch_size: of all processes together.
        flips: draw one of the mirror images that `latents` keeps for each patch.
        workers: processes that read, where the latents are not in memory.
        rows: which of the `batch_size` patches of a step are wanted, each as it is among all.
    """
    made = LatentSteps(latents, batch_size, seed, flips=flips, rows=rows)
    workers = 0 if latents.in_memory else workers
    return stream(made, workers=workers, start_step=start_step, steps=steps)


class LatentSteps(Steps[LatentBatch]):
    """Step s is `rows` of the batch of that step."""

    def __init__(
        self,
        latents: Latents,
        batch_size: int,
        seed: int,
        *,
        flips: bool,
        rows: slice = slice(None),
    ) -> None:
        self.latents, self.seed, self.flips, self.rows = latents, seed, flips, rows
        self.order = Order(len(latents), batch_size, seed)

    def batch(self, step: int) -> LatentBatch:
        indices = self.order(step)
        mirrors = np.zeros_like(indices)
        if self.flips:
            mirrors = drawn_mirrors(self.seed, step, len(indices)) & (self.latents.mirrors - 1)
        indices, mirrors = indices[self.rows], mirrors[self.rows]
        return LatentBatch(self.latents.batch(indices, mirrors), torch.from_numpy(indices.copy()))


def drawn_mirrors(seed: int, step: int, count: int) -> NDArray[np.int64]:
    """How `image_loader` mirrors the images of a step, for `train.latents.mirrored`: (count,)."""
    flags = generator(seed, FLIPS, step).random((count, 2)) < 0.5
    return flags[:, 0] * np.int64(1) + flags[:, 1] * np.int64(2)


def _check_whole(stores: Sequence[LatentStore]) -> None:
    """Raise RunError PG-T04 unless the stores hold every row of their sources, one kind of."""
    if not stores:
        raise NoInputError("no latents", hint="prepare them first")
    kinds = {(str(s.autoencoder["id"]), s.shape, s.mirrors) for s in stores}
    if len(kinds) > 1:
        raise RunError(
            "latents do not belong together", where=stores[0].path,
            why="; ".join(f"{mirrors} of {shape} by {by}" for by, shape, mirrors in sorted(kinds)),
            hint="prepare them all with one autoencoder",
        )  # fmt: skip
    due = 0
    for store, following in zip(stores, [*stores[1:], None], strict=True):
        last = following is None or following.source["id"] != store.source["id"]
        if store.first_row != due or (last and due + len(store) != int(store.source["rows"])):
            raise RunError(
                "latents are missing", where=store.path,
                why=f"rows {store.first_row} to {store.first_row + len(store)} of "
                f"{store.source['rows']}, where row {due} was due",
                hint="prepare the latents again",
            )  # fmt: skip
        due = 0 if last else due + len(store)
