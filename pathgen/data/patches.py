"""Many patch sources as one numbered set of patches, and as a torch dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pathgen.data.sources import PatchSource, classes_of, labels_of, opened
from pathgen.errors import DataError
from pathgen.stores.patches import PatchRef, PatchStore


class PatchDataset(Dataset[Any]):
    """Patches of one or many sources, counted through in the order given.

    Item i is ``(tensor uint8 (3, H, W), PatchRef)``, or ``transform(tensor, ref)``. Stores of
    several patch sizes may be mixed; batches of them need a `transform` that makes them equal.

    Args:
        sources: patch stores or image folders, opened or as paths.
        transform: called on each item; must be picklable for workers that are spawned.

    Raises:
        NoInputError: nothing found at a path. DataError: a source given twice (PG-D03).
    """

    def __init__(
        self,
        sources: PatchSource | str | Path | Sequence[PatchSource | str | Path],
        transform: Callable[[Tensor, PatchRef], Any] | None = None,
    ) -> None:
        self.sources = opened(sources)
        self.transform = transform
        self._starts = np.cumsum([0, *map(len, self.sources)])
        self._number = {source.id: i for i, source in enumerate(self.sources)}
        if len(self._number) < len(self.sources):
            raise DataError(
                "the same patches are given twice",
                code="PG-D03",
                hint="name each store or folder once",
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> Any:
        ref = self.locate(index)
        image = as_tensor(self.images([index % len(self)])[0])
        return (image, ref) if self.transform is None else self.transform(image, ref)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """The items of a batch, read together: a DataLoader asks for them here.

        Raises:
            DataError: PG-D12, patch stores of several sizes and no `transform`.
        """
        self._check_sizes()
        refs = [self.locate(index) for index in indices]
        images = self.images([index % len(self) for index in indices])
        items = [(as_tensor(image), ref) for image, ref in zip(images, refs, strict=True)]
        return items if self.transform is None else [self.transform(*item) for item in items]

    def locate(self, index: int) -> PatchRef:
        """The patch behind item `index`; negative numbers count from the end."""
        n = len(self)
        if not -n <= index < n:
            raise IndexError(f"item {index} of {n}")
        number, row = self._place(index % n)
        return PatchRef(self.sources[number].id, row)

    def index_of(self, ref: PatchRef) -> int:
        """The item of a patch. Raises DataError (PG-D04) when it is not in this set."""
        number = self._number.get(ref.store)
        if number is None or not 0 <= ref.row < len(self.sources[number]):
            raise DataError(
                "patch is not among those given",
                code="PG-D04",
                where=f"store {ref.store} row {ref.row}",
                hint="give the patches that the other input was made from",
            )
        return int(self._starts[number]) + ref.row

    def start_of(self, source_id: str) -> int:
        """First item of a source; -1 when it is not in this set."""
        number = self._number.get(source_id)
        return -1 if number is None else int(self._starts[number])

    def images(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> list[NDArray[np.uint8]]:
        """uint8 (H, W, 3) of each item, in order; each source is read once."""
        wanted = np.asarray(indices, np.int64)
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1
        found: list[Any] = [None] * len(wanted)
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            rows = wanted[places] - self._starts[number]
            images = self.sources[number].images(rows)
            for place, image in zip(places, images, strict=True):
                found[place] = image
        return found

    @cached_property
    def store_sizes(self) -> dict[int, str]:
        """Pixels a side -> the first patch store that has such patches; image folders say none."""
        found: dict[int, str] = {}
        for source in self.sources:
            if isinstance(source, PatchStore) and len(source):
                found.setdefault(source.spec.size, source.name)
        return found

    def _check_sizes(self) -> None:
        sizes = self.store_sizes
        if self.transform is None and len(sizes) > 1:
            raise DataError(
                "patches of different sizes cannot be one batch",
                code="PG-D12",
                where=", ".join(sizes.values()),
                why=", ".join(f"{name}: {size} px" for size, name in sizes.items()),
                hint="import or tile all with one --patch-size, or give a transform that crops",
            )

    def batch(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.uint8]:
        """uint8 (n, H, W, 3) of items of one size, in order."""
        wanted = np.asarray(indices, np.int64)
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1
        if len(wanted) and (numbers == numbers[0]).all():
            images: NDArray[np.uint8] = self.sources[numbers[0]].images(
                wanted - self._starts[numbers[0]]
            )
            return images
        return np.stack(self.images(wanted))

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of every item, an index into `classes`; -1 is unknown."""
        classes = self.classes
        return np.concatenate(
            [_renumber(labels_of(s), classes_of(s), classes) for s in self.sources]
            or [np.empty(0, np.int64)]
        )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes of all sources, sorted."""
        return tuple(sorted({name for source in self.sources for name in classes_of(source)}))

    def close(self) -> None:
        """Close what is open; a later read opens it again."""
        for source in self.sources:
            _close(source)

    def _place(self, index: int) -> tuple[int, int]:
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return number, int(index - self._starts[number])


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) -> (3, H, W) uint8, sharing memory where the array may be written to."""
    if not image.flags.writeable:
        image = image.copy()
    return torch.from_numpy(image).permute(2, 0, 1)


def _renumber(
    labels: NDArray[np.int64], own: Sequence[str], shared: Sequence[str]
) -> NDArray[np.int64]:
    table = np.array([*(shared.index(name) for name in own), -1], np.int64)
    return table[labels]


def _close(source: PatchSource) -> None:
    close = getattr(source, "close", None)
    if close is not None:
        close()
