"""Synthetic images by the real patch they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from pathgen.data.patches import PatchDataset
from pathgen.data.sources import PatchSource
from pathgen.errors import DataError
from pathgen.stores.augmentations import ROLES

if TYPE_CHECKING:
    from pathgen.stores.augmentations import SelfAugmentationStore


class Counterparts:
    """Rows of self-augmentation stores, found by item of the real `patches`.

    Rows are numbered through all stores. Further sources and their shares are what the stores
    say; nothing is drawn again. Rows whose primary is not among `patches` are passed over.

    Attributes:
        others: items of the second source, and of the third where any image has one, (n, S - 1).
        shares: share of each source, the primary first, float32 (n, S).

    Raises:
        DataError: PG-D04, no primary is among `patches`, or a secondary is not.
    """

    def __init__(
        self, patches: PatchDataset, augmentations: Sequence[SelfAugmentationStore]
    ) -> None:
        self.synthetic = PatchDataset([cast(PatchSource, store) for store in augmentations])
        sources = max(store.mixed for store in augmentations)
        parts = [_columns(store, patches, sources) for store in augmentations]
        items, shares = (np.concatenate(part) for part in zip(*parts, strict=True))
        primary: NDArray[np.int64] = items[:, 0]
        self.others: NDArray[np.int64] = items[:, 1:]
        self.shares: NDArray[np.float32] = shares
        known = primary >= 0
        if not known.any():
            raise DataError(
                "no synthetic image belongs to these patches",
                code="PG-D04",
                where=", ".join(str(store.path) for store in augmentations),
                hint="give the patches that the images were made from",
            )
        missing = int((self.others[known] < 0).any(axis=1).sum())
        if missing:
            raise DataError(
                "synthetic images blend patches that are not given",
                code="PG-D04",
                why=f"{missing} second sources are missing",
                hint="give all patches that the images were made from",
            )
        alone = (self.others == primary[:, None]).all(axis=1)
        self.generative = Lists(primary, np.flatnonzero(known & alone))
        self.interpolated = Lists(primary, np.flatnonzero(known & ~alone))


class Lists:
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
    store: SelfAugmentationStore, patches: PatchDataset, sources: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Sources as items (-1: not among `patches`), and their shares; each (n, sources)."""
    starts = np.array([patches.start_of(name) for name in store.attrs["sources"]] or [-1])

    def items(role: str) -> NDArray[np.int64]:
        start = starts[store.table.read(f"{role}_store").astype(np.int64)]
        row = store.table.read(f"{role}_row").astype(np.int64)
        return np.where(start < 0, -1, start + row)

    roles = ROLES[: store.mixed] + ROLES[1:2] * (sources - store.mixed)
    shares = store.shares()
    none = np.zeros((len(shares), sources - store.mixed), np.float32)
    return np.stack([items(role) for role in roles], 1), np.concatenate([shares, none], 1)
