"""Patches as an autoencoder's latents, made once for all epochs of the diffusion model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.provenance import Provenance
from pathgen.stores.seal import damaged
from pathgen.stores.store import Store, create_table
from pathgen.stores.table import ALL, Column, Rows, Table, TableWriter

#: Mirror images there can be: as it is; left-right too; upside down and both too.
MIRRORS = (1, 2, 4)
#: Bytes of a column that are read at once for one row drawn at random.
CHUNK_BYTES = 2**16


class LatentStore(Store):
    """Scaled latents of one source; row i is that of row `first_row` + i of its patches.

    Columns: ``latent0`` float16 (C, h, w) of the patch as it is; ``latent1`` of its left-right
    mirror image, ``latent2`` upside down and ``latent3`` both, as far as `mirrors` goes. A mirror
    image has a column of its own because its latent is not the mirrored latent.
    """

    kind = "latents"

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        column = table.columns.get("latent0")
        mirrors = sum(name.startswith("latent") for name in table.columns)
        if column is None or len(column.shape) != 3 or mirrors not in MIRRORS:
            raise damaged(table.path, "it has no columns of latents")
        self.shape: tuple[int, int, int] = (column.shape[0], column.shape[1], column.shape[2])
        self.mirrors = mirrors

    @classmethod
    def create(
        cls,
        path: Path | str,
        shape: tuple[int, int, int],
        provenance: Provenance,
        *,
        mirrors: int,
        autoencoder: Mapping[str, Any],
        source: Mapping[str, Any],
        first_row: int = 0,
    ) -> TableWriter:
        """A writer for ``append(latent0=(n, C, h, w), latent1=..., ...)``.

        Args:
            path: ends in ``.h5`` or ``.zarr``.
            shape: (channels, height, width) of one latent.
            mirrors: columns: 1, 2 or 4.
            autoencoder: id of its weights, and what else tells it.
            source: id, name and number of rows of the patches.
            first_row: row of the source that the first row here belongs to.

        Raises:
            ValueError: another number of mirrors, or `source` lacks id, name or rows.
        """
        if mirrors not in MIRRORS:
            raise ValueError(f"mirrors is one of {MIRRORS}, not {mirrors}")
        if not {"id", "name", "rows"} <= set(source) or "id" not in autoencoder:
            raise ValueError("source takes id, name and rows, autoencoder at least id")
        attrs = {
            "kind": cls.kind,
            "provenance": provenance,
            "autoencoder": dict(autoencoder),
            "source": dict(source),
            "first_row": first_row,
        }
        chunk = max(1, CHUNK_BYTES // (2 * int(np.prod(shape))))
        columns = {f"latent{i}": Column("float16", shape, chunk=chunk) for i in range(mirrors)}
        return create_table(path, columns, attrs)

    @property
    def source(self) -> Mapping[str, Any]:
        """id, name and number of rows of the patches."""
        source: Mapping[str, Any] = self.attrs["source"]
        return source

    @property
    def autoencoder(self) -> Mapping[str, Any]:
        """id, and what else tells the autoencoder."""
        autoencoder: Mapping[str, Any] = self.attrs["autoencoder"]
        return autoencoder

    @property
    def name(self) -> str:
        """Name of the slide or image folder the patches are from."""
        return str(self.source["name"])

    @property
    def first_row(self) -> int:
        """Row of the source that row 0 here belongs to."""
        return int(self.attrs["first_row"])

    def latents(self, mirror: int = 0, rows: Rows = ALL) -> NDArray[np.float16]:
        """(n, C, h, w) of one mirror image, in the order of `rows`. StoreError PG-O17: not kept."""
        return self.table.read(f"latent{mirror}", rows)
