"""The seal: what a finished store says of itself, written last and checked first."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pathgen.errors import StoreError
from pathgen.stores.table import Column

FORMAT = "pathgen"
FORMAT_VERSION = "1.0"


class _Part(BaseModel):
    # What a newer minor version adds is left unread.
    model_config = ConfigDict(frozen=True, extra="ignore")


class ColumnSeal(_Part):
    """One column, as it was declared; a list of them keeps their order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunk: int = Field(ge=1)


class ArraySeal(_Part):
    """One array: its length along the first axis, and the crc32 of all its bytes."""

    length: int = Field(ge=0)
    crc32: int = Field(ge=0)


class Seal(_Part):
    """Says that a store is complete, and how to tell that it still is."""

    complete: Literal[True]
    rows: int = Field(ge=0)
    columns: tuple[ColumnSeal, ...]
    arrays: dict[str, ArraySeal]
    attrs_crc32: int

    def table_columns(self) -> dict[str, Column]:
        return {c.name: Column(c.dtype, c.shape, c.chunk) for c in self.columns}


class Array:
    """How one array of a column lies on disk: its name, type, shape of one row, rows a chunk."""

    def __init__(self, name: str, dtype: str, shape: tuple[int, ...], chunk: int) -> None:
        self.name, self.shape, self.chunk = name, shape, chunk
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.row_bytes = int(self.dtype.itemsize * np.prod(shape, dtype=np.int64))


#: Bytes of a `<column>/data` array that lie together.
DATA_CHUNK = 256 * 1024


def arrays_of(name: str, column: Column) -> list[Array]:
    """The arrays that hold one column: itself, or data, offset, length and crc32."""
    if not column.is_bytes:
        return [Array(name, column.dtype, column.shape, column.chunk)]
    return [
        Array(f"{name}/data", "uint8", (), DATA_CHUNK),
        Array(f"{name}/offset", "int64", (), column.chunk),
        Array(f"{name}/length", "uint32", (), column.chunk),
        Array(f"{name}/crc32", "uint32", (), column.chunk),
    ]


def raw_bytes(values: NDArray[Any]) -> memoryview:
    """The bytes of an array in row order, as checksums take them."""
    return memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def plain(value: Any) -> Any:
    """`value` as JSON gives it back. Raises TypeError or ValueError for what JSON cannot hold."""
    return json.loads(dumps(value))


def dumps(value: Any) -> str:
    """Canonical JSON in ASCII: equal values, equal text."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_from_numpy
    )


def _from_numpy(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"an attribute cannot be a {type(value).__name__}")


def attrs_crc32(attrs: Mapping[str, Any]) -> int:
    """Checksum of every attribute but the seal."""
    return zlib.crc32(dumps({k: v for k, v in attrs.items() if k != "seal"}).encode())


def check_head(path: Path, attrs: Mapping[str, Any]) -> Seal:
    """The seal among `attrs`, once format, version and checksum are right. Raises StoreError."""
    if attrs.get("format") != FORMAT:
        raise StoreError(
            "not a pathgen store", code="PG-O15", where=path,
            why="it lacks the attribute format = pathgen",
            hint="make stores with pathgen tile or pathgen extract-features",
        )  # fmt: skip
    _check_version(path, attrs.get("format_version"))
    if "seal" not in attrs:
        raise unfinished(path)
    try:
        seal = Seal.model_validate(attrs["seal"])
        columns = seal.table_columns()
        wanted = {a.name for name, c in columns.items() for a in arrays_of(name, c)}
    except (ValidationError, TypeError, ValueError) as error:
        raise damaged(path, "its seal cannot be read") from error
    if not wanted <= set(seal.arrays):
        raise damaged(path, "its seal does not cover every column")
    if attrs_crc32(attrs) != seal.attrs_crc32:
        raise damaged(path, "its attributes do not match their checksum")
    return seal


def _check_version(path: Path, version: Any) -> None:
    major = str(version).partition(".")[0]
    if not major.isdigit():
        raise damaged(path, f"format_version is {version!r}")
    if int(major) > int(FORMAT_VERSION.partition(".")[0]):
        raise StoreError(
            "store needs a newer pathgen", code="PG-O12", where=path,
            why=f"its format is {version}; this pathgen reads {FORMAT_VERSION}",
            hint="run: pip install -U pathgen",
        )  # fmt: skip


def missing(path: Path) -> StoreError:
    """There is nothing at `path`."""
    return StoreError("no store here", code="PG-O15", where=path, hint="check the path")


def unfinished(path: Path) -> StoreError:
    """Its writer was stopped before the seal."""
    return StoreError(
        "store is not finished", code="PG-O04", where=path, why="its writer was stopped",
        hint="delete it and run the command that makes it again",
    )  # fmt: skip


def damaged(path: Path, why: str) -> StoreError:
    """Its bytes are not those that were written."""
    return StoreError(
        "store is damaged", code="PG-O11", where=path, why=why,
        hint="delete it and make it again, or restore it from a copy",
    )  # fmt: skip
