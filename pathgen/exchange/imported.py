"""The ledger of a folder of imported patches: a row a slide, as `pathgen tile` leaves it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pathgen.places import is_table, taken
from pathgen.tiling.ledger import LedgerRow, TileReport, write_ledger
from pathgen.tiling.strangers import COLUMNS, is_ledger
from pathgen.tiling.tiled import read_ledger


def spare_ledger(out: Path) -> None:
    """Raise ConfigError (PG-O19) when someone else's files have the names of the ledger."""
    for name, ours in (("slides.json", is_ledger), ("slides.csv", _is_ours)):
        path = out / name
        if os.path.lexists(path) and not ours(path):
            raise taken(path)


def _is_ours(path: Path) -> bool:
    return is_table(path, COLUMNS)


def add_to_ledger(out: Path, rows: Sequence[LedgerRow]) -> None:
    """Write ``slides.csv`` and ``slides.json``; rows of an earlier import into `out` stay.

    Raises:
        NoInputError: the ledger that is there cannot be read. StorageError.
    """
    every = {row.slide: row for row in (*read_ledger(out), *rows)}
    write_ledger(TileReport(tuple(every[name] for name in sorted(every)), out))
