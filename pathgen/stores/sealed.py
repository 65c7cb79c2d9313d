"""What both back ends share: columns as flat arrays, read in spans, appended in whole chunks.

A back end adds how to open and to create arrays; everything that decides content is here, so
that HDF5 and zarr cannot drift apart.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pathgen import commit
from pathgen.errors import StorageError, StoreError
from pathgen.stores.seal import (
    DATA_CHUNK,
    FORMAT,
    FORMAT_VERSION,
    Array,
    ArraySeal,
    ColumnSeal,
    Seal,
    arrays_of,
    attrs_crc32,
    check_head,
    damaged,
    missing,
    plain,
)
from pathgen.stores.table import ALL, Column, Rows, pick, spans

#: Most bytes one read takes into memory beside its result.
SPAN = 32 * 1024 * 1024
#: Rows that pass to the columns together. Fixed, so that file bytes do not depend on batch sizes.
BLOCK = 64


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
        for group in spans(starts, stops, DATA_CHUNK, SPAN):
            first = int(starts[group][0])
            block = memoryview(self._range(data, first, int(stops[group][-1]))).cast("B")
            for row, start, stop in zip(rows[group], starts[group], stops[group], strict=True):
                value = bytes(block[int(start) - first : int(stop) - first])
                if zlib.crc32(value) != index.crc32[row]:
                    raise damaged(self.path, f"row {row} of {column} does not match its crc32")
                yield value

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
            found = zlib.crc32(_raw(self._range(array, start, stop)), found)
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
                if zlib.crc32(_raw(value)) != self._seal.arrays[array.name].crc32:
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


class SealedWriter(ABC):
    """A `TableWriter` over a back end's arrays."""

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, Column],
        attrs: Mapping[str, Any],
        notes: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.path = Path(path)
        self._columns = dict(columns)
        self._notes = notes
        self._attrs: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
        for name, value in attrs.items():
            self.set_attr(name, value)
        self._pending: dict[str, list[Any]] = {name: [] for name in columns}
        self._waiting = 0
        self._rows = 0
        self._place: Path | None = None  # of the draft, while there is one

    @abstractmethod
    def _start(self, draft: Path, attrs: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _unit(self, array: Array) -> int:
        """Rows of `array` that are written at a time."""

    @abstractmethod
    def _create_array(
        self, array: Array, chunk: int, unit: int, length: int, notes: Mapping[str, Any]
    ) -> Any: ...

    @abstractmethod
    def _write(self, flat: Any, start: int, values: NDArray[Any]) -> None: ...

    @abstractmethod
    def _finish(self, attrs: Mapping[str, Any]) -> None:
        """Write `attrs`, of which the seal comes last, and close."""

    @abstractmethod
    def _abandon(self) -> None: ...

    @abstractmethod
    def _reopen(self, draft: Path) -> SealedTable: ...

    def set_attr(self, name: str, value: Any) -> None:
        if name in ("format", "format_version", "seal"):
            raise ValueError(f"{name} is not yours to set")
        self._attrs[name] = plain(value)

    def __enter__(self) -> Self:
        with self._storing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._place = commit.draft_path(self.path)
        try:
            with self._storing():
                self._start(self._place, self._attrs)
            self._buffers = {
                array.name: _Buffer(self, array, self._notes.get(array.name, {}))
                for name, column in self._columns.items()
                for array in arrays_of(name, column)
            }
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None and self._place is not None:
                self._complete(self._place)
                with _uninterrupted():
                    commit.publish(self._place, self.path)
        finally:  # KeyboardInterrupt included
            self._discard()

    def _discard(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            with _uninterrupted():
                try:
                    self._abandon()
                finally:
                    commit.discard(place)

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Say that it was our writing that failed, not what else the block does."""
        try:
            with _uninterrupted():
                yield
        except OSError as error:
            raise commit.storage_error(error, self.path) from error

    def append(self, **columns: Any) -> None:
        if self._place is None:
            raise ValueError("a writer takes rows inside its with block")
        if set(columns) != set(self._columns):
            wrong = sorted(set(columns) ^ set(self._columns))
            raise ValueError(f"append takes every column once; missing or unknown: {wrong}")
        values = {name: _cast(name, self._columns[name], v) for name, v in columns.items()}
        counts = {name: len(value) for name, value in values.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"columns differ in rows: {counts}")
        count = next(iter(counts.values()), 0)
        start = 0
        while start < count:
            stop = min(count, start + BLOCK - self._waiting)
            for name, value in values.items():
                self._pending[name].append(value[start:stop])
            self._waiting += stop - start
            start = stop
            if self._waiting == BLOCK:
                with self._storing():
                    self._pass_on()

    def _pass_on(self) -> None:
        for name, column in self._columns.items():
            parts, self._pending[name] = self._pending[name], []
            if not parts:
                continue
            if column.is_bytes:
                self._push_bytes(name, [value for part in parts for value in part])
            else:
                self._buffers[name].push(np.concatenate(parts))
        self._rows += self._waiting
        self._waiting = 0

    def _push_bytes(self, name: str, values: Sequence[bytes]) -> None:
        data = self._buffers[f"{name}/data"]
        lengths = np.array([len(value) for value in values], dtype=np.int64)
        offsets = data.length + np.cumsum(lengths) - lengths
        data.push(np.frombuffer(b"".join(values), np.uint8))
        self._buffers[f"{name}/offset"].push(offsets)
        self._buffers[f"{name}/length"].push(lengths.astype("<u4"))
        self._buffers[f"{name}/crc32"].push(np.array([zlib.crc32(v) for v in values], "<u4"))

    def _complete(self, place: Path) -> None:
        """Flush, seal, close, and read the draft back through a fresh handle."""
        with self._storing():
            self._pass_on()
            for buffer in self._buffers.values():
                buffer.flush()
            self._finish({**dict(sorted(self._attrs.items())), "seal": self._sealed()})
        try:
            written = self._reopen(place)
            try:
                written.verify(deep=True)  # cheap beside making it: the pages are in memory
            finally:
                written.close()
        except StoreError as error:
            raise StorageError(
                "output does not read back as it was written", code="PG-O03", where=self.path,
                why=error.why, hint="check the disk and run the same command again",
            ) from error  # fmt: skip

    def _sealed(self) -> dict[str, Any]:
        seal = Seal(
            complete=True,
            rows=self._rows,
            columns=tuple(
                ColumnSeal(name=name, dtype=c.dtype, shape=c.shape, chunk=c.chunk)
                for name, c in self._columns.items()
            ),
            arrays={
                name: ArraySeal(length=buffer.length, crc32=buffer.crc32)
                for name, buffer in self._buffers.items()
            },
            attrs_crc32=attrs_crc32(self._attrs),
        )
        return seal.model_dump(mode="json")


class _Buffer:
    """Rows of one array that wait for a whole unit; the array is created with the first.

    A store shorter than one chunk so gets a chunk of its own length, not a mostly empty one.
    """

    def __init__(self, writer: SealedWriter, array: Array, notes: Mapping[str, Any]) -> None:
        self.writer, self.array, self.notes = writer, array, notes
        self.unit = writer._unit(array)
        self.parts: list[NDArray[Any]] = []
        self.waiting = 0
        self.written = 0
        self.crc32 = 0
        self.flat: Any = None

    @property
    def length(self) -> int:
        return self.written + self.waiting

    def push(self, values: NDArray[Any]) -> None:
        self.parts.append(values)
        self.waiting += len(values)
        if self.waiting < self.unit:
            return
        joined = np.concatenate(self.parts)
        whole = len(joined) // self.unit * self.unit
        for start in range(0, whole, self.unit):
            self._write(joined[start : start + self.unit])
        self.parts = [joined[whole:].copy()]  # a view would keep all of `joined`

    def flush(self) -> None:
        if self.waiting or self.flat is None:
            empty = np.empty((0, *self.array.shape), self.array.dtype)
            self._write(np.concatenate(self.parts) if self.parts else empty)
        self.parts = []

    def _write(self, values: NDArray[Any]) -> None:
        values = np.ascontiguousarray(values, self.array.dtype)
        self.crc32 = zlib.crc32(_raw(values), self.crc32)
        if self.flat is None:
            short = max(1, len(values))
            chunk = min(self.array.chunk, short)
            unit = min(self.unit, -(-short // chunk) * chunk)
            self.flat = self.writer._create_array(self.array, chunk, unit, len(values), self.notes)
        if len(values):
            self.writer._write(self.flat, self.written, values)
        self.written += len(values)
        self.waiting -= len(values)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put signals off until the block ends: h5py may lose an exception that is raised inside it."""
    if threading.current_thread() is not threading.main_thread():  # where no handler runs
        yield
        return
    before: dict[int, Any] = {}
    caught: dict[int, Any] = {}
    try:
        for number in sorted(signal.valid_signals(), reverse=True):
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, caught.__setitem__)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number, frame in caught.items():
            before[number](number, frame)


def _cast(name: str, column: Column, values: Any) -> Any:
    """`values` as the column stores them, or ValueError: nothing wraps or overflows silently."""
    if column.is_bytes:
        if isinstance(values, bytes) or not all(isinstance(v, bytes) for v in values):
            raise ValueError(f"{name} takes a list of bytes")
        return values
    array = np.asarray(values)
    dtype = np.dtype(column.dtype).newbyteorder("<")
    if array.ndim == 0 or array.shape[1:] != column.shape:
        raise ValueError(f"{name} takes shape (n, *{column.shape}); got {array.shape}")
    if array.size and not np.can_cast(array.dtype, dtype, "same_kind"):
        raise ValueError(f"{name} takes {column.dtype}; got {array.dtype}")
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)  # always a copy: the caller may use its buffer again
    if dtype.kind in "iu":
        holds = np.array_equal(cast, array)
    else:
        holds = np.array_equal(np.isinf(cast), np.isinf(array))
    if not holds:
        raise ValueError(f"{name} has values that {column.dtype} cannot hold")
    return cast


def _raw(values: NDArray[Any]) -> memoryview:
    return memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
