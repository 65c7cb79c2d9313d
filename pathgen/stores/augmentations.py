"""Synthetic patches, each with the recipe that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import StoreError
from pathgen.provenance import Provenance
from pathgen.stores.codec import decode_patches
from pathgen.stores.patches import PatchRef
from pathgen.stores.seal import damaged
from pathgen.stores.store import Store, create_table
from pathgen.stores.table import ALL, BYTES, Column, Rows, Table, TableWriter

_NONE = np.empty(0, np.int64)


class Recipe(NamedTuple):
    """`alpha` is the primary's share. A generative augmentation has alpha = 1, secondary = primary.

    `seed` starts the noise of this one image.
    """

    primary: PatchRef
    secondary: PatchRef
    alpha: float
    seed: int

    @classmethod
    def generative(cls, patch: PatchRef, seed: int) -> Recipe:
        """A variation of one patch."""
        return cls(patch, patch, 1.0, seed)


class SelfAugmentationStore(Store):
    """Self-augmentations (Gen-SIS): images drawn from embeddings of real patches.

    Columns: ``image`` (one PNG a row), ``primary_store`` and ``secondary_store`` int32 into
    attribute `sources`, ``primary_row`` and ``secondary_row`` int64, ``alpha`` float32, ``seed``
    int64, ``cosine`` float32 between the embedding asked for and the one the image has (nan
    where that was not measured).
    """

    kind = "augmentations"

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        self.sources: tuple[str, ...] = tuple(table.attrs.get("sources", ()))
        if "size" not in table.attrs:
            raise damaged(table.path, "it does not say the size of its images")
        self.size = int(table.attrs["size"])
        self._place = {source: i for i, source in enumerate(self.sources)}
        self._index: dict[bool, _RowsByPatch] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_index": {}}  # quicker to build than to send

    @classmethod
    def create(
        cls,
        path: Path | str,
        size: int,
        provenance: Provenance,
        *,
        sources: Sequence[str],
        facts: Mapping[str, Any],
    ) -> TableWriter:
        """A writer for ``append(image=[png], **recipe_columns(recipes, sources), cosine=(n,))``.

        Args:
            path: ends in ``.h5`` or ``.zarr``.
            size: side of an image in pixels.
            sources: ids of the patch stores that the recipes speak of.
            facts: encoder and LDM ids, guidance, steps, sampler: JSON-ready attributes.
        """
        attrs = {
            **facts,
            "kind": cls.kind,
            "provenance": provenance,
            "size": size,
            "sources": list(sources),
        }
        columns = {
            "image": BYTES,
            "primary_store": Column("int32"),
            "primary_row": Column("int64"),
            "secondary_store": Column("int32"),
            "secondary_row": Column("int64"),
            "alpha": Column("float32"),
            "seed": Column("int64"),
            "cosine": Column("float32"),
        }
        return create_table(path, columns, attrs)

    def images(self, rows: Rows = ALL) -> NDArray[np.uint8]:
        """RGB, uint8 (n, size, size, 3), in the order of `rows`. Raises StoreError (PG-O11)."""
        encoded = self.encoded(rows)
        try:
            return decode_patches(encoded, self.size)
        except StoreError as error:
            raise damaged(self.path, f"{error.what}: {error.why}") from error

    def encoded(self, rows: Rows = ALL) -> list[bytes]:
        """The image files as stored, in the order of `rows`."""
        return self.table.read_bytes("image", rows)

    def cosine(self, rows: Rows = ALL) -> NDArray[np.float32]:
        """Likeness of the image's own embedding to its condition, (n,); nan = not measured."""
        return self.table.read("cosine", rows)

    def recipes(self, rows: Rows = ALL) -> list[Recipe]:
        """How each image was made, in the order of `rows`."""
        names = ("primary_store", "primary_row", "secondary_store", "secondary_row")
        parts = [self.table.read(name, rows).tolist() for name in (*names, "alpha", "seed")]
        return [
            Recipe(
                PatchRef(self.sources[first], first_row),
                PatchRef(self.sources[second], second_row),
                alpha,
                seed,
            )
            for first, first_row, second, second_row, alpha, seed in zip(*parts, strict=True)
        ]

    def generative(self, patch: PatchRef) -> NDArray[np.int64]:
        """Rows that vary this real patch, rising; empty when none was made."""
        return self._rows(patch, generative=True)

    def interpolated(self, primary: PatchRef) -> NDArray[np.int64]:
        """Rows that blend this real patch, as the primary, with another, rising."""
        return self._rows(primary, generative=False)

    def _rows(self, patch: PatchRef, *, generative: bool) -> NDArray[np.int64]:
        if generative not in self._index:
            columns = ("primary_store", "primary_row", "secondary_store", "secondary_row")
            first, first_row, second, second_row = map(self.table.read, columns)
            itself = (first == second) & (first_row == second_row)
            chosen = np.flatnonzero(itself == generative)
            self._index[generative] = _RowsByPatch(chosen, first[chosen], first_row[chosen])
        place = self._place.get(patch.store)
        return _NONE if place is None else self._index[generative].find(place, patch.row)


class _RowsByPatch:
    """Rows sorted by (store, row) of their primary; a look-up is two binary searches."""

    def __init__(
        self, rows: NDArray[np.int64], store: NDArray[np.int32], row: NDArray[np.int64]
    ) -> None:
        order = np.lexsort((rows, row, store))
        self.rows = rows[order]
        # Of the type that is looked up: else each look-up would copy the column.
        self.stores = store[order].astype(np.int64)
        self.sources = row[order].astype(np.int64)

    def find(self, store: int, row: int) -> NDArray[np.int64]:
        first, last = np.searchsorted(self.stores, [store, store + 1])
        block = self.sources[first:last]
        start, stop = np.searchsorted(block, [row, row + 1])
        return self.rows[first + start : first + stop]


def recipe_columns(
    recipes: Sequence[Recipe], sources: Sequence[str]
) -> dict[str, NDArray[np.generic]]:
    """The columns of `recipes` to append: primary_store, primary_row, ..., alpha, seed.

    Raises:
        KeyError: a recipe speaks of a store that is not in `sources`.
    """
    place = {source: i for i, source in enumerate(sources)}
    return {
        "primary_store": np.array([place[r.primary.store] for r in recipes], np.int32),
        "primary_row": np.array([r.primary.row for r in recipes], np.int64),
        "secondary_store": np.array([place[r.secondary.store] for r in recipes], np.int32),
        "secondary_row": np.array([r.secondary.row for r in recipes], np.int64),
        "alpha": np.array([r.alpha for r in recipes], np.float32),
        "seed": np.array([r.seed for r in recipes], np.int64),
    }
