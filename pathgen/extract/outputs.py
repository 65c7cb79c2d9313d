"""One feature store: where it lies, what must stand in it, and the writing of it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pathgen.errors import DataError, StoreError
from pathgen.extract.encoding import Encoding
from pathgen.provenance import Provenance
from pathgen.stores.features import FeatureStore
from pathgen.stores.table import TableWriter
from pathgen.tiling.ledger import LedgerRow

#: How a store's writer may have been stopped, or its disk have failed: such a one is made anew.
BROKEN = {"PG-O04", "PG-O11"}


@dataclass(frozen=True)
class Material:
    """What patches are made from, as their feature stores say it.

    inputs, settings: of the provenance, besides those of the encoder. facts: id and name of the
    patches, and what else is known of them.
    """

    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Output:
    """The store of one source by one encoder, ``folder/<name>.h5``."""

    name: str
    folder: Path
    encoding: Encoding

    @property
    def path(self) -> Path:
        return self.folder / self.file

    @property
    def file(self) -> str:
        """Relative to the folder."""
        return f"{self.name}.h5"

    def check(self) -> None:
        """Raises DataError (PG-D11) when the name leads out of the folder."""
        if not self.path.resolve().is_relative_to(self.folder.resolve()):
            raise DataError(
                "name of the patches leads out of the output folder", code="PG-D11",
                where=self.name, hint="do not use stores from a source you do not trust",
            )  # fmt: skip

    def provenance(self, material: Material) -> Provenance:
        return Provenance(
            stage="extract",
            config={**self.encoding.settings, **material.settings},
            inputs={**material.inputs, "encoder": self.encoding.facts["id"]},
        )

    def found(self) -> FeatureStore | None:
        """The store that lies there; None where there is none, or one that is not whole.

        Raises:
            StoreError: PG-O16 and others, something else lies there.
        """
        if not self.path.exists():
            return None
        try:
            return FeatureStore.open(self.path)
        except StoreError as error:
            if error.code in BROKEN:
                return None
            raise

    def refuse(self, found: Provenance, asked: Provenance) -> StoreError:
        """The error (PG-O18) of a store that is not the one that is asked for."""
        return StoreError(
            "another feature store has this name",
            code="PG-O18",
            where=self.path,
            why=difference(found, asked),
            hint="choose another --out, or --overwrite",
        )

    def writer(self, material: Material) -> TableWriter:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FeatureStore.create(
            self.path,
            self.encoding.encoder.dim,
            self.provenance(material),
            encoder=self.encoding.facts,
            source=material.facts,
            classes=material.classes,
            dtype=self.encoding.dtype,
            with_grid=True,
        )


class Writing:
    """A store in the making. It appears when `finish` is called, or nothing does."""

    def __init__(self, output: Output, material: Material) -> None:
        self.output = output
        self._writer = output.writer(material)
        self._writer.__enter__()

    def append(self, features: NDArray[Any], **columns: NDArray[Any]) -> None:
        """Raises StorageError: the disk is full, or the like."""
        self._writer.append(features=features, **columns)

    def finish(self, row: LedgerRow) -> LedgerRow:
        """The store with its ledger row, which is returned; it names the store."""
        row = replace(row, store=self.output.file, thumbnail=None)
        # What the row says besides the store's own name, which it may be copied away from.
        self._writer.set_attr("ledger", {k: v for k, v in asdict(row).items() if k != "store"})
        self._writer.__exit__(None, None, None)
        return row

    def drop(self) -> None:
        """Leave nothing behind."""
        error = RuntimeError("given up")
        with suppress(RuntimeError):
            self._writer.__exit__(RuntimeError, error, None)


def row_of(output: Output, store: FeatureStore, name: str, file: str) -> LedgerRow:
    """The row of a store that an earlier run finished: the same as that run's."""
    known = dict(store.attrs.get("ledger") or {})
    if not known:  # of a store made before there were rows
        n = len(store)
        known = {"state": "done" if n else "empty", "reason": "ok" if n else "filtered",
                 "message": "", "candidates": n, "patches": n,
                 "label": store.label, "patient": store.patient}  # fmt: skip
    known |= {"slide": name, "file": file, "store": output.file}
    return LedgerRow(**{key: known[key] for key in LedgerRow.__dataclass_fields__ if key in known})


def difference(found: Provenance, asked: Provenance) -> str:
    """The first thing that differs, in words."""
    for what, old, new in (
        ("stage", found.stage, asked.stage),
        ("patches", found.inputs.get("patches"), asked.inputs.get("patches")),
        ("slide", found.inputs.get("slide"), asked.inputs.get("slide")),
        ("mask", found.inputs.get("mask"), asked.inputs.get("mask")),
        ("encoder", found.inputs.get("encoder"), asked.inputs["encoder"]),
        ("dtype", found.config.get("dtype"), asked.config["dtype"]),
        ("precision", *(one.config.get("precision", "fp32") for one in (found, asked))),
        ("normalization", *(_normalized(one.config) for one in (found, asked))),
        ("encoder settings", found.config.get("encoder"), asked.config["encoder"]),
    ):
        if old != new:
            return f"{what}: it has {old}, asked for {new}"
    for key, value in dict(asked.config.get("tile") or {}).items():
        old = dict(found.config.get("tile") or {}).get(key)
        if old != value:
            return f"{key}: it has {old}, asked for {value}"
    return f"it was made by pathgen {found.pathgen_version} in another way"


def _normalized(config: Mapping[str, Any]) -> str:
    return str((config.get("normalize") or {}).get("method", "none"))
