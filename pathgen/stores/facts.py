"""What a store is, in a few lines for a person."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from pathgen.errors import StoreError
from pathgen.stores.seal import FORMAT
from pathgen.stores.store import SUFFIXES, back_end, open_store

#: Attributes shown as they are, where a store has them.
_SHOWN = (
    "spec", "codec", "target_mpp", "level0_mpp", "label", "patient", "encoder", "autoencoder",
    "source", "first_row", "classes", "size", "guidance", "steps", "sampler", "counts",
)  # fmt: skip


def is_store(path: Path) -> bool:
    """Whether to read a path as a store: any HDF5 file, and zarr folders that pathgen made."""
    if path.suffix not in SUFFIXES or not path.exists():
        return False
    if path.suffix == ".h5":
        return True  # no slide has this suffix
    try:
        attrs: Mapping[str, Any] = import_module(back_end(path)[0]).read_attrs(path)
    except (StoreError, OSError, ValueError, AttributeError):
        return False  # an OME-Zarr slide, perhaps
    return attrs.get("format") == FORMAT


def store_facts(path: Path | str) -> dict[str, Any]:
    """Kind, rows, id, what it was made from, columns, and the attributes of its kind.

    Raises StoreError as `open_store`.
    """
    with open_store(path) as store:
        columns = {
            name: "bytes" if c.is_bytes else f"{c.dtype} {' x '.join(map(str, c.shape))}".strip()
            for name, c in store.table.columns.items()
        }
        slide = store.attrs.get("slide")
        named = {"slide": slide.get("name")} if isinstance(slide, dict) else {}
        shown = {name: store.attrs[name] for name in _SHOWN if store.attrs.get(name) is not None}
        return {
            "kind": store.kind,
            "rows": len(store),
            "id": store.id,
            "stage": store.provenance.stage,
            "inputs": dict(store.provenance.inputs),
            **named,
            **{name: _brief(value) for name, value in shown.items()},
            "columns": columns,
        }


def _brief(value: Any) -> Any:
    """Nested settings stay in the store; here one level of plain values is enough."""
    if not isinstance(value, dict):
        return value
    return {name: inner for name, inner in value.items() if not isinstance(inner, dict)}
