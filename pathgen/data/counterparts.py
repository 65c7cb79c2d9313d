"""Synthetic images by the real patch they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from pathgen.data.patches import PatchDataset
from pathgen.data.sources import PatchSource
from pathgen.errors import DataError

if TYPE_CHECKING:
    from pathgen.stores.augmentations import SelfAugmentationStore


class Counterparts:
    """Rows of self-augmentation stores, found by item of the real `patches`.

    Rows are numbered through all stores. Secondary and alpha are what the stores say; nothing
    is drawn again. Rows whose primary is not among `patches` are passed over.

    Raises:
        DataError: PG-D04, no primary is among `patches`, or a secondary is not.
    """

    def __init__(
        self, patches: PatchDataset, augmentations: Sequence[SelfAugmentationStore]
    ) -> None:
        self.synthetic = PatchDataset([cast(PatchSource, store) for store in augmentations])
        parts = [_columns(store, patches) for store in augmentations]
        primary, secondary, alpha = (np.concatenate(part) for part in zip(*parts, strict=True))
        self.secondary: NDArray[np.int64] = secondary
        self.alpha: NDArray[np.float32] = alpha
        known = primary >= 0
        if not known.any():
            raise DataError(
                "no synthetic image belongs to these patches",
                code="PG-D04",
                where=", ".join(str(store.path) for store in augmentations),
                hint="give the patches that the images were made from",
            )
        if (secondary[known] < 0).any():
            raise DataError(
                "synthetic images blend patches that are not given",
                code="PG-D04",
                why=f"{int((secondary[known] < 0).sum())} second sources are missing",
                hint="give all patches that the images were made from",
            )
        alone = secondary == primary
        self.generative = _Lists(primary, np.flatnonzero(known & alone))
        self.interpolated = _Lists(primary, np.flatnonzero(known & ~alone))


class _Lists:
    """Rows by primary, as one sorted array."""

    def __init__(self, primary: NDArray[np.int64], rows: NDArray[np.int64]) -> None:
        self.rows = rows[np.argsort(primary[rows], kind="stable")]
        self.keys = primary[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def pick(self, items: NDArray[np.int64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """One row for each item, by `uniform` in [0, 1) among its own; -1 where it has none."""
        first = np.searchsorted(self.keys, items, side="left")
        count = np.searchsorted(self.keys, items, side="right") - first
        found = count > 0
        rows = np.full(len(items), -1, np.int64)
        rows[found] = self.rows[(first + np.floor(uniform * count).astype(np.int64))[found]]
        return rows


def _columns(
    store: SelfAugmentationStore, patches: PatchDataset
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Primary and secondary as items (-1: not among `patches`), and alpha; each (n,)."""
    starts = np.array([patches.start_of(name) for name in store.attrs["sources"]] or [-1])

    def items(role: str) -> NDArray[np.int64]:
        start = starts[store.table.read(f"{role}_store").astype(np.int64)]
        row = store.table.read(f"{role}_row").astype(np.int64)
        return np.where(start < 0, -1, start + row)

    return items("primary"), items("secondary"), store.table.read("alpha").astype(np.float32)
