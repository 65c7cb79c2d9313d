"""Some patches of a source, as a source: what is held out, and what is left."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pathgen.data.sources import Images, PatchSource, Rows
from pathgen.provenance import digest


class PatchSubset:
    """Rows `rows` of a source, in this order, counted anew from 0."""

    def __init__(self, source: PatchSource, rows: NDArray[np.int64]) -> None:
        self.source, self.rows = source, rows

    @property
    def id(self) -> str:
        """Of the source and the rows."""
        return digest([self.source.id, hashlib.blake2b(self.rows.tobytes()).hexdigest()])

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def path(self) -> Path:
        return self.source.path

    def __len__(self) -> int:
        return len(self.rows)

    def images(self, rows: Rows) -> Images:
        """As of the source: uint8 (H, W, 3) each, in the order of `rows`."""
        return self.source.images(self.rows[rows if isinstance(rows, slice) else np.asarray(rows)])


def evenly(total: int, count: int) -> NDArray[np.int64]:
    """`count` of the numbers below `total`, or all, evenly spaced from the first to the last."""
    return np.linspace(0, total - 1, min(count, total)).astype(np.int64)


def hold_out(
    sources: Sequence[PatchSource], count: int
) -> tuple[list[PatchSource], list[PatchSource]]:
    """The sources without `count` evenly spaced patches, and those patches.

    At most every second patch is held out. 0 gives the sources themselves, and none.
    """
    total = sum(map(len, sources))
    held = np.zeros(total, bool)
    held[evenly(total, min(count, total // 2))] = True
    if not held.any():
        return list(sources), []
    kept, out = [], []
    for source, own in zip(
        sources, np.split(held, np.cumsum([*map(len, sources)])[:-1]), strict=True
    ):
        kept.append(PatchSubset(source, np.flatnonzero(~own)))
        out.append(PatchSubset(source, np.flatnonzero(own)))
    return [s for s in kept if len(s)], [s for s in out if len(s)]
