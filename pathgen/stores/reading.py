"""Reading, for both back ends: columns as flat arrays that are read in spans and checked.

A back end adds how arrays are opened; everything that decides content is here, so that HDF5 and
zarr cannot drift apart.
"""

from __future__ import annotations

import errno
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import StoreError
from pathgen.stores.seal import (
    DATA_CHUNK,
    Array,
    arrays_of,
    check_head,
    damaged,
    missing,
    raw_bytes,
)
from pathgen.stores.table import ALL, Column, Rows, pick, spans

#: Most bytes one read takes into memory beside its result.
SPAN = 32 * 1024 * 1024


class FlatArray(Protocol):
    """What h5py and zarr arrays have in common."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __getitem__(self, rows: slice, /) -> Any: ...


class SealedTable(ABC):
    """A `Table` over a back end's arrays. The seal is checked when it is made."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._forget()
        with self._reading("its head"):
            attrs = self._read_attrs()
        self._seal = check_head(self.path, attrs)
        self.attrs: Mapping[str, Any] = {k: v for k, v in attrs.items() if k != "seal"}
        self.columns: Mapping[str, Column] = self._seal.table_columns()

    @abstractmethod
    def _read_attrs(self) -> dict[str, Any]: ...

    @abstractmethod
    def _open_array(self, name: str) -> FlatArray: ...

    def _forget(self) -> None:
        self._arrays: dict[str, FlatArray] = {}
        self._index: dict[str, _Index] = {}
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        # An open file cannot go to another process.
        hidden = ("_arrays", "_index", "_pid", "_handle")
        return {k: v for k, v in self.__dict__.items() if k not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def __len__(self) -> int:
        return self._seal.rows

    def read(self, column: str, rows: Rows = ALL) -> NDArray[Any]:
        array = arrays_of(column, self._column(column, is_bytes=False))[0]
        picked = pick(rows, len(self))
        if isinstance(picked, slice):
            return self._range(array, picked.start, picked.stop)
        unique, back = np.unique(picked, return_inverse=True)
        result = np.empty((len(unique), *array.shape), array.dtype)
        limit = max(1, SPAN // max(1, array.row_bytes))
        for group in spans(unique, unique + 1, array.chunk, limit):
            wanted = unique[group]
            found = self._range(array, int(wanted[0]), int(wanted[-1]) + 1)
            result[group] = found[wanted - wanted[0]]
        return result[back]

    def read_bytes(self, column: str, rows: Rows = ALL) -> list[bytes]:
        index = self._bytes_index(column)
        picked = pick(rows, len(self))
        if isinstance(picked, slice):
            picked = np.arange(picked.start, picked.stop, dtype=np.int64)
        unique, back = np.unique(picked, return_inverse=True)
        values = list(self._checked_rows(column, index, unique))
        return [values[i] for i in back]

    def _checked_rows(self, column: str, index: _Index, rows: NDArray[np.int64]) -> Iterator[bytes]:
        data = arrays_of(column, self.columns[column])[0]
        starts = index.offset[rows]
        stops = starts + index.length[rows]
        groups = spans(starts, stops, DATA_CHUNK, SPAN)
        # Lists: a number of an array costs as much as a small read.
        begin, end, sums = starts.tolist(), stops.tolist(), index.crc32[rows].tolist()
        for group in groups:
            first = begin[group.start]
            block = self._block(data, first, end[group.stop - 1])
            for i in range(group.start, group.stop):
                value = bytes(block[begin[i] - first : end[i] - first])
                if zlib.crc32(value) != sums[i]:
                    raise damaged(self.path, f"row {rows[i]} of {column} does not match its crc32")
                yield value

    def _block(self, data: Array, start: int, stop: int) -> bytes | memoryview:
        """Bytes of a bytes column."""
        return memoryview(self._range(data, start, stop)).cast("B")

    def verify(self, deep: bool = False) -> None:
        for name, column in self.columns.items():
            for array in arrays_of(name, column):
                if deep or array.name != f"{name}/data":
                    self._check_array(array, name)
            if column.is_bytes and len(self):
                index = self._bytes_index(name)
                few = np.unique(np.linspace(0, len(self) - 1, 3, dtype=np.int64))
                for _ in self._checked_rows(name, index, few):
                    pass

    def _check_array(self, array: Array, column: str) -> None:
        expected = self._seal.arrays[array.name]
        step = max(1, SPAN // max(1, array.row_bytes) // array.chunk) * array.chunk
        found = 0
        for start in range(0, expected.length, step):
            stop = min(start + step, expected.length)
            found = zlib.crc32(raw_bytes(self._range(array, start, stop)), found)
        if found == expected.crc32:
            return
        if array.name == f"{column}/data":  # name the row, if rows tell
            index = self._bytes_index(column)
            for _ in self._checked_rows(column, index, np.arange(len(self), dtype=np.int64)):
                pass
        raise damaged(self.path, f"{array.name} does not match its checksum")

    def close(self) -> None:
        self._forget()

    def _column(self, name: str, *, is_bytes: bool) -> Column:
        column = self.columns.get(name)
        if column is None or column.is_bytes != is_bytes:
            known = [n for n, c in self.columns.items() if c.is_bytes == is_bytes]
            raise StoreError(
                f"store has no column {name!r}", code="PG-O17", where=self.path,
                why=f"it has {', '.join(known) or 'none'}",
                hint="make the store again with the pathgen that needs this column",
            )  # fmt: skip
        return column

    def _bytes_index(self, column: str) -> _Index:
        declared = self._column(column, is_bytes=True)
        self._own_process()
        if column not in self._index:
            data, *parts = arrays_of(column, declared)
            values = []
            for array in parts:
                value = self._range(array, 0, len(self))
                if zlib.crc32(raw_bytes(value)) != self._seal.arrays[array.name].crc32:
                    raise damaged(self.path, f"{array.name} does not match its checksum")
                values.append(value)
            index = _Index(*values)
            if not index.covers(self._seal.arrays[data.name].length):
                raise damaged(self.path, f"the rows of {column} do not cover its data")
            self._index[column] = index
        return self._index[column]

    def _range(self, array: Array, start: int, stop: int) -> NDArray[Any]:
        """Rows start to stop of one array, whose length and type are first held to the seal."""
        with self._reading(array.name):
            self._own_process()
            flat = self._arrays.get(array.name)
            if flat is None:
                flat = self._open_array(array.name)
                shape = (self._seal.arrays[array.name].length, *array.shape)
                if tuple(flat.shape) != shape or np.dtype(flat.dtype) != array.dtype:
                    raise damaged(self.path, f"{array.name} has another shape or type")
                self._arrays[array.name] = flat
            if start == stop:
                return np.empty((0, *array.shape), array.dtype)
            values: NDArray[Any] = np.ascontiguousarray(flat[start:stop])
            return values

    def _own_process(self) -> None:
        if self._pid != os.getpid():  # forked: the parent's file is not ours to use
            self.close()

    @contextmanager
    def _reading(self, part: str) -> Iterator[None]:
        """What h5py and zarr raise on damaged files, said once: PG-O11."""
        try:
            yield
        except StoreError:
            raise
        except OSError as error:
            if not self.path.exists():
                raise missing(self.path) from error
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM):
                raise StoreError(
                    "store cannot be opened", code="PG-O15", where=self.path,
                    why=str(error.strerror or error), hint="check permissions and open files",
                ) from error  # fmt: skip
            raise damaged(self.path, f"{part} cannot be read ({_first_line(error)})") from error
        except self._damage as error:
            raise damaged(self.path, f"{part} cannot be read ({_first_line(error)})") from error

    _damage: ClassVar[tuple[type[Exception], ...]] = (
        ValueError, KeyError, TypeError, RuntimeError, IndexError, AttributeError, OverflowError,
        EOFError, MemoryError, ArithmeticError, AssertionError,
    )  # fmt: skip


class _Index:
    """Where each row of a bytes column lies: offset, length and crc32, in memory."""

    def __init__(
        self, offset: NDArray[np.int64], length: NDArray[np.uint32], crc32: NDArray[np.uint32]
    ) -> None:
        self.offset, self.length, self.crc32 = offset, length.astype(np.int64), crc32

    def covers(self, total: int) -> bool:
        """Whether the rows lie one after the other over `total` bytes."""
        ends = np.cumsum(self.length)
        starts = np.concatenate([np.zeros(1, np.int64), ends])[: len(self.offset)]
        return bool(np.array_equal(starts, self.offset)) and total == (ends[-1] if len(ends) else 0)


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
