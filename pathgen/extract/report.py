"""How an extraction went: of each encoder a row a source, and its ledger."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pathgen import commit
from pathgen.errors import PathgenError, StoreError
from pathgen.extract.encoding import Encoding
from pathgen.extract.outputs import difference
from pathgen.places import spare_table, taken
from pathgen.provenance import Provenance
from pathgen.stores.features import FeatureStore
from pathgen.tiling.ledger import LedgerRow, to_csv

#: Of the ledger, beside the stores.
LEDGER = "features"


@dataclass(frozen=True)
class EncoderReport:
    """What one encoder made; `rows` are in the order of the sources."""

    name: str
    dim: int
    path: Path
    """folder of its stores and their ledger"""
    rows: tuple[LedgerRow, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Sources by state, which add up, and vectors."""
        states = [row.state for row in self.rows]
        return {
            "sources": len(self.rows),
            **{state: states.count(state) for state in ("done", "empty", "failed")},
            "features": sum(row.patches for row in self.rows if row.store),
        }

    @property
    def stores(self) -> list[Path]:
        """Those that exist after the run, empty ones included, in the order of the sources."""
        return [self.path / row.store for row in self.rows if row.store]

    @property
    def failed(self) -> list[LedgerRow]:
        return [row for row in self.rows if row.state == "failed"]


@dataclass(frozen=True)
class ExtractReport:
    """An `EncoderReport` each, and what went wrong."""

    path: Path
    encoders: tuple[EncoderReport, ...]
    errors: tuple[PathgenError, ...] = ()

    @property
    def stores(self) -> list[Path]:
        """Of all encoders, one after the other."""
        return [path for one in self.encoders for path in one.stores]

    @property
    def failed(self) -> list[LedgerRow]:
        """One row for each source and encoder that failed."""
        return [row for one in self.encoders for row in one.failed]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "encoders": [
                {"name": one.name, "dim": one.dim, "out": one.path, **one.counts}
                for one in self.encoders
            ],
            "failed": [asdict(row) for row in self.failed],
        }


def spare_ledgers(folders: Sequence[Path]) -> None:
    """Raise ConfigError (PG-O19) when files of another have the names of a ledger."""
    for folder in folders:
        spare_table(folder / f"{LEDGER}.csv", ("slide", "state", "reason"))
        path = folder / f"{LEDGER}.json"
        if path.exists() and _content(path) is None:
            raise taken(path)


def refuse_mixing(folder: Path, encoding: Encoding, given: Collection[str]) -> None:
    """Raise StoreError (PG-O18) where stores of sources not given now are another encoder's.

    One of them speaks for all: none came beside another kind.
    """
    others = [row for row in _written(folder) if row.store and row.slide not in given]
    for row in others[:1]:
        with FeatureStore.open(folder / str(row.store)) as store:
            found = store.provenance
        asked = Provenance(
            stage="extract",
            config={**found.config, **encoding.settings},
            inputs={**found.inputs, "encoder": encoding.facts["id"]},
        )
        alike = {"precision": "fp32"} | found.config == {"precision": "fp32"} | asked.config
        if not alike or found.inputs.get("encoder") != encoding.facts["id"]:
            raise StoreError(
                "features of another kind are in this folder", code="PG-O18",
                where=folder / str(row.store), why=difference(found, asked),
                hint="choose another --out: one folder holds the features of one encoder",
            )  # fmt: skip


def write_ledgers(reports: Sequence[EncoderReport]) -> None:
    """``features.csv`` and ``features.json`` of each; rows of sources not given now stay.

    Nothing is written where it would be what is there.

    Raises:
        StorageError: a folder cannot be written to.
    """
    for report in reports:
        every = {row.slide: row for row in (*_written(report.path), *report.rows)}
        rows = [every[name] for name in sorted(every)]
        whole = EncoderReport(report.name, report.dim, report.path, tuple(rows))
        values = {
            "encoder": report.name, "dim": report.dim, "counts": whole.counts,
            "sources": [asdict(row) for row in rows],
        }  # fmt: skip
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        for path, content in (
            (report.path / f"{LEDGER}.csv", to_csv(rows)),
            (report.path / f"{LEDGER}.json", text),
        ):
            if not path.is_file() or path.read_text(encoding="utf-8") != content:
                commit.write_text(path, content)


def _written(folder: Path) -> list[LedgerRow]:
    """Rows of an earlier run whose stores are still there, or that say why there is none."""
    values = _content(folder / f"{LEDGER}.json") or {}
    rows = [LedgerRow(**row) for row in values.get("sources", ())]
    return [row for row in rows if row.store is None or (folder / row.store).exists()]


def _content(path: Path) -> dict[str, Any] | None:
    """Of a ledger of ours; None of anything else."""
    try:
        values = commit.read_json(path)
        found = [LedgerRow(**row) for row in values["sources"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return values if found else None
