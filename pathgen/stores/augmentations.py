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
#: Columns ``<role>_store`` and ``<role>_row``; the third only in a store of three-way mixtures.
ROLES = ("primary", "secondary", "tertiary")


class Recipe(NamedTuple):
    """`alpha` is the primary's share. A generative augmentation has alpha = 1, secondary = primary.

    `seed` starts the noise of this one image. A three-way mixture has a third source, and `beta`
    is the secondary's share; the third has what is left. `noise_level`, 0 to 1000, says how much
    noise the embedding is given first (`pathgen.models.genview.noised`).
    """

    primary: PatchRef
    secondary: PatchRef
    alpha: float
    seed: int
    tertiary: PatchRef | None = None
    beta: float | None = None
    noise_level: float = 0.0

    @property
    def patches(self) -> tuple[PatchRef, ...]:
        """The sources, the primary first."""
        two = (self.primary, self.secondary)
        return two if self.tertiary is None else (*two, self.tertiary)

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of each of `patches`; they sum to 1."""
        if self.tertiary is None or self.beta is None:
            return self.alpha, 1 - self.alpha
        return self.alpha, self.beta, 1 - self.alpha - self.beta

    @classmethod
    def generative(cls, patch: PatchRef, seed: int) -> Recipe:
        """A variation of one patch."""
        return cls(patch, patch, 1.0, seed)


class SelfAugmentationStore(Store):
    """Self-augmentations (Gen-SIS): images drawn from embeddings of real patches.

    Columns: ``image`` (one PNG a row), ``primary_store`` and ``secondary_store`` int32 into
    attribute `sources`, ``primary_row`` and ``secondary_row`` int64, ``alpha`` float32, ``seed``
    int64, ``cosine`` float32 between the embedding asked for and the one the image has (nan
    where that was not measured), ``attempts`` int16, how often it was drawn until it stayed; of
    several, `seed` is that of the one that stayed, ``noise_level`` float32, how much noise its
    embedding was given, 0 none. A store of three-way mixtures also has
    ``tertiary_store``, ``tertiary_row`` and ``beta`` float32; a row of it that blends two or one
    has the secondary there too, and beta = 1 - alpha.

    A `PatchSource` as well, so that its images can be embedded like patches.
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
        mixed: int = 2,
    ) -> TableWriter:
        """A writer for ``append(image=[png], **recipe_columns(recipes, sources), cosine=(n,))``.

        Args:
            path: ends in ``.h5`` or ``.zarr``.
            size: side of an image in pixels.
            sources: ids of the patch stores that the recipes speak of.
            facts: encoder and LDM ids, guidance, steps, sampler: JSON-ready attributes.
            mixed: most sources of one image, 2 or 3; `recipe_columns` is told the same.
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
            "attempts": Column("int16"),
            "noise_level": Column("float32"),
        }
        if mixed > 2:
            columns |= {
                "tertiary_store": Column("int32"),
                "tertiary_row": Column("int64"),
                "beta": Column("float32"),
            }
        return create_table(path, columns, attrs)

    @property
    def name(self) -> str:
        """The file's, without suffix: that of the patches they are drawn from, or a part of it."""
        return self.path.stem

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

    def attempts(self, rows: Rows = ALL) -> NDArray[np.int16]:
        """How often each image was drawn, (n,), 1 or more; 1 in a store without that column."""
        if "attempts" not in self.table.columns:
            return np.ones(len(self.cosine(rows)), np.int16)
        return self.table.read("attempts", rows)

    def noise_levels(self, rows: Rows = ALL) -> NDArray[np.float32]:
        """How much noise each embedding was given, (n,); 0 in a store without that column."""
        if "noise_level" not in self.table.columns:
            return np.zeros(len(self.cosine(rows)), np.float32)
        return self.table.read("noise_level", rows)

    @property
    def mixed(self) -> int:
        """Most sources that one image of this store may have: 2, or 3."""
        return 3 if "tertiary_row" in self.table.columns else 2

    def shares(self, rows: Rows = ALL) -> NDArray[np.float32]:
        """Share of each source in each image, the primary first, float32 (n, `mixed`)."""
        alpha = self.table.read("alpha", rows)
        if self.mixed == 2:
            return np.stack([alpha, 1 - alpha], 1)
        beta = self.table.read("beta", rows)
        return np.stack([alpha, beta, np.clip(1 - alpha - beta, 0, 1)], 1)

    def recipes(self, rows: Rows = ALL) -> list[Recipe]:
        """How each image was made, in the order of `rows`."""
        columns = [f"{role}_{of}" for role in ROLES[: self.mixed] for of in ("store", "row")]
        names = ["alpha", "seed", *["beta"] * (self.mixed - 2), *columns]
        parts = [self.table.read(name, rows).tolist() for name in names]
        plain = [self._recipe(*values) for values in zip(*parts, strict=True)]
        levels = self.noise_levels(rows).tolist()
        return [r._replace(noise_level=level) for r, level in zip(plain, levels, strict=True)]

    def _recipe(self, alpha: float, seed: int, *rest: Any) -> Recipe:
        beta, places = (rest[0], rest[1:]) if self.mixed > 2 else (None, rest)
        pairs = zip(places[::2], places[1::2], strict=True)
        patches = [PatchRef(self.sources[store], row) for store, row in pairs]
        primary, secondary, third = [*patches, patches[1]][:3]
        if third == secondary:
            return Recipe(primary, secondary, alpha, seed)
        return Recipe(primary, secondary, alpha, seed, third, beta)

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
    recipes: Sequence[Recipe],
    sources: Sequence[str],
    attempts: Sequence[int] | None = None,
    *,
    mixed: int = 2,
) -> dict[str, NDArray[np.generic]]:
    """The columns of `recipes` to append: primary_store, primary_row, ..., alpha, seed, attempts.

    `mixed` is what the writer was made with; `attempts` how often each was drawn, None: once.

    Raises:
        KeyError: a recipe speaks of a store that is not in `sources`.
    """
    place = {source: i for i, source in enumerate(sources)}
    columns: dict[str, NDArray[np.generic]] = {
        "alpha": np.array([r.alpha for r in recipes], np.float32),
        "seed": np.array([r.seed for r in recipes], np.int64),
        "attempts": np.array(attempts or [1] * len(recipes), np.int16),
        "noise_level": np.array([r.noise_level for r in recipes], np.float32),
    }
    for number, role in enumerate(ROLES[:mixed]):
        patches = [(*r.patches, r.secondary)[number] for r in recipes]
        columns[f"{role}_store"] = np.array([place[patch.store] for patch in patches], np.int32)
        columns[f"{role}_row"] = np.array([patch.row for patch in patches], np.int64)
    if mixed > 2:
        columns["beta"] = np.array([r.shares[1] for r in recipes], np.float32)
    return columns
