"""One vector per patch, from one encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.provenance import Provenance
from pathgen.stores.seal import damaged
from pathgen.stores.store import Store, create_table
from pathgen.stores.table import ALL, Column, Rows, Table, TableWriter, pick

#: Bytes of vectors that lie together: a bag is read in few pieces, and a part of one does not
#: read all of it.
CHUNK_BYTES = 2**20
#: Facts of the source that the familiar attributes of `coords` repeat.
_FAMILIAR = ("patch_size", "patch_size_level0", "target_mpp", "level0_mpp", "overlap", "name")


class FeatureStore(Store):
    """Features of one source; row i belongs to row i of the patches it was made from.

    Columns: ``features`` float32 or float16 (dim,), ``coords`` int64 (x, y) in level-0 pixels
    (-1, -1 where a patch has no place), ``label`` int32, an index into `classes` or -1, and,
    where it is known, ``grid`` int32 (row, column), the place in the grid that was tiled.
    """

    kind = "features"

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        column = table.columns.get("features")
        if column is None or len(column.shape) != 1:
            raise damaged(table.path, "it has no column of vectors")
        self.dim = column.shape[0]

    @classmethod
    def create(
        cls,
        path: Path | str,
        dim: int,
        provenance: Provenance,
        *,
        encoder: Mapping[str, Any],
        source: Mapping[str, Any],
        classes: Sequence[str] = (),
        dtype: str = "float32",
        with_grid: bool = False,
    ) -> TableWriter:
        """A writer for ``append(features=(n, dim), coords=(n, 2), label=(n,))``.

        Args:
            path: ends in ``.h5`` or ``.zarr``.
            dim: length of a vector.
            encoder: name, id, dim and what else tells the encoder.
            source: id and name of the patches; label, patient, patch_size_level0 and the other
                facts of a patch store are copied when they are there.
            classes: names that `label` counts in.
            dtype: ``"float32"`` or ``"float16"``.
            with_grid: ``append`` takes ``grid=(n, 2)`` too, int32 (row, column).

        Raises:
            ValueError: `source` lacks id or name, or the type is another.
        """
        if dtype not in ("float32", "float16"):
            raise ValueError(f"features are float32 or float16, not {dtype!r}")
        if not {"id", "name"} <= set(source):
            raise ValueError("source takes at least id and name")
        attrs = {
            "kind": cls.kind,
            "provenance": provenance,
            "encoder": dict(encoder),
            "source": dict(source),
            "classes": list(classes),
        }
        columns = {
            "features": Column(dtype, (dim,), chunk_rows(dim, dtype)),
            "coords": Column("int64", (2,)),
            "label": Column("int32"),
            **({"grid": Column("int32", (2,))} if with_grid else {}),
        }
        notes = {name: source[name] for name in _FAMILIAR if source.get(name) is not None}
        return create_table(path, columns, attrs, notes={"coords": notes})

    @property
    def name(self) -> str:
        """Name of the slide or image folder the patches are from."""
        return str(self.source["name"])

    @property
    def source(self) -> Mapping[str, Any]:
        """id, name and facts of the patches."""
        source: Mapping[str, Any] = self.attrs["source"]
        return source

    @property
    def encoder(self) -> Mapping[str, Any]:
        """name, id and dim of the encoder."""
        encoder: Mapping[str, Any] = self.attrs["encoder"]
        return encoder

    @property
    def label(self) -> str | None:
        """Label of the slide, when it was known at tiling."""
        return self.source.get("label")

    @property
    def patient(self) -> str | None:
        """Patient of the slide, when it was known at tiling."""
        return self.source.get("patient")

    @property
    def patch_size_level0(self) -> float | None:
        """Side of a patch in level-0 pixels; None for an image folder."""
        return self.source.get("patch_size_level0")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the patch labels; empty when patches have none."""
        return tuple(self.attrs["classes"])

    def features(self, rows: Rows = ALL) -> NDArray[np.float32]:
        """(n, dim), float32 or float16 as stored, in the order of `rows`."""
        return self.table.read("features", rows)

    def coords(self, rows: Rows = ALL) -> NDArray[np.int64]:
        """Top left corners, level-0 (x, y), int64 (n, 2), in the order of `rows`."""
        return self.table.read("coords", rows)

    def grid(self, rows: Rows = ALL) -> NDArray[np.int32]:
        """Place in the grid, (row, column), int32 (n, 2), in the order of `rows`.

        (-1, -1) for all of a store that does not know, as an imported one.
        """
        if "grid" in self.table.columns:
            return self.table.read("grid", rows)
        picked = pick(rows, len(self))
        count = len(range(len(self))[picked]) if isinstance(picked, slice) else len(picked)
        return np.full((count, 2), -1, np.int32)

    def labels(self, rows: Rows = ALL) -> NDArray[np.int32]:
        """Index into `classes`, int32 (n,), -1 where unknown, in the order of `rows`."""
        return self.table.read("label", rows)


def chunk_rows(dim: int, dtype: str) -> int:
    """How many vectors lie together: about `CHUNK_BYTES`, a power of two from 16 to 1024."""
    rows = CHUNK_BYTES // (dim * np.dtype(dtype).itemsize)
    return int(np.clip(1 << max(rows, 1).bit_length() - 1, 16, 1024))
