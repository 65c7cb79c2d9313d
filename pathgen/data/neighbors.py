"""Patches that touch on the slide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pathgen.data.counterparts import Lists
from pathgen.data.patches import PatchDataset
from pathgen.errors import ConfigError
from pathgen.stores.patches import PatchStore


class Neighbors:
    """For each item of `patches`, the items beside it in the same slide, corners included.

    Two patches are neighbors when their top left corners are no further apart, along x and along
    y, than one patch and the gap that the grid leaves: level-0 pixels. No label takes part.

    Raises:
        ConfigError: PG-C12, a source that is not a patch store knows no positions.
    """

    def __init__(self, patches: PatchDataset) -> None:
        pairs = [np.empty((0, 2), np.int64)]
        for source in patches.sources:
            if not isinstance(source, PatchStore):
                raise ConfigError(
                    "these patches have no neighbors", code="PG-C12", where=source.name,
                    why="views.neighbor_share needs positions on a slide; image files have none",
                    hint="set views.neighbor_share=0, or tile slides into patch stores",
                )  # fmt: skip
            pairs.append(patches.start_of(source.id) + _touching(source))
        both = np.concatenate(pairs)
        both = np.concatenate([both, both[:, ::-1]])
        self.lists = Lists(both[:, 0], np.arange(len(both)))
        self.others: NDArray[np.int64] = both[:, 1]

    def pick(self, items: NDArray[np.int64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        """A neighbor of each item, by `uniform` in [0, 1) among its own; -1 where it has none."""
        rows = self.lists.pick(items, uniform)
        return np.where(rows >= 0, self.others[rows] if len(self.others) else -1, -1)


def _touching(store: PatchStore) -> NDArray[np.int64]:
    """Pairs of rows of one slide whose patches touch, each pair once: (n, 2)."""
    if len(store) < 2:
        return np.empty((0, 2), np.int64)
    gap = max(0.0, -store.spec.overlap / store.spec.size)  # an overlap below 0 is one
    step = store.patch_size_level0 * (1 + gap)
    # Half a pixel: corners are rounded to whole level-0 pixels.
    pairs = cKDTree(store.coords()).query_pairs(step + 0.5, p=np.inf, output_type="ndarray")
    return np.asarray(pairs, np.int64).reshape(-1, 2)
