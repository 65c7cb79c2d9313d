"""HDF5 files of other tools: what is in them, without trusting any of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import DataError
from pathgen.exchange.findings import Finding

_DAMAGE = (OSError, ValueError, KeyError, TypeError, RuntimeError)


@dataclass(frozen=True)
class Described:
    """Datasets of a file, and attributes by dataset; those of the file stand under ``""``."""

    arrays: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    attrs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def shapes(self) -> str:
        return ", ".join(f"{name} {shape}" for name, shape in self.arrays.items()) or "no arrays"


def describe(path: Path) -> Described:
    """The datasets in the root of an HDF5 file. Raises DataError (PG-F04)."""
    import h5py

    found = Described(attrs={"": {}})
    try:
        with h5py.File(path, "r") as file:
            found.attrs[""] = _plain(file.attrs)
            for name, item in file.items():
                if isinstance(item, h5py.Dataset):
                    found.arrays[name] = tuple(item.shape)
                    found.dtypes[name] = str(item.dtype)
                    found.attrs[name] = _plain(item.attrs)
    except _DAMAGE as error:
        raise unreadable(path, error) from error
    return found


def read_array(path: Path, name: str) -> NDArray[Any]:
    """One dataset. Raises DataError (PG-F04) when it is not there or damaged."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            values: NDArray[Any] = file[name][()]
            return values
    except _DAMAGE as error:
        raise unreadable(path, error) from error


def read_counts(path: Path, reader: str, found: Described, name: str = "features") -> Finding:
    """Whether `name` and `coords` are of one length."""
    features, coords = found.arrays.get(name), found.arrays.get("coords")
    if features is None or coords is None or len(features) != 2 or len(coords) != 2:
        return Finding.error(path, reader, f"lacks {name} (N, D) or coords (N, 2)", found.shapes)
    if features[0] != coords[0]:
        return Finding.error(path, reader, f"{features[0]} {name} for {coords[0]} coords")
    values = read_array(path, name)
    if not np.isfinite(values).all():
        rows = int((~np.isfinite(values).all(axis=1)).sum())
        return Finding.error(path, reader, f"{rows} rows are not finite")
    return Finding.good(path, reader, f"{features[0]} x {features[1]} {found.dtypes[name]}")


def unreadable(path: Path, error: Exception) -> DataError:
    text = str(error).strip().splitlines()
    return DataError(
        "file cannot be read as HDF5", code="PG-F04", where=path,
        why=text[0][:200] if text else type(error).__name__, hint="get a fresh copy",
    )  # fmt: skip


def _plain(attrs: Any) -> dict[str, Any]:
    return {
        str(name): value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        for name, value in attrs.items()
    }
