"""Writing, for both back ends: rows are gathered into whole chunks, sealed, read back, renamed.

A back end adds how arrays are created; everything that decides content is here, so that HDF5 and
zarr cannot drift apart.
"""

from __future__ import annotations

import signal
import threading
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pathgen import commit
from pathgen.errors import StorageError, StoreError
from pathgen.stores.reading import SealedTable
from pathgen.stores.seal import (
    FORMAT,
    FORMAT_VERSION,
    Array,
    ArraySeal,
    ColumnSeal,
    Seal,
    arrays_of,
    attrs_crc32,
    plain,
    raw_bytes,
)
from pathgen.stores.table import Column

#: Rows that pass to the columns together. Fixed, so that file bytes do not depend on batch sizes.
BLOCK = 64


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
        self._buffers: dict[str, _Buffer] = {}
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
                self._buffers = {}
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
        self.crc32 = zlib.crc32(raw_bytes(values), self.crc32)
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
        for number in sorted(map(int, signal.valid_signals()), reverse=True):
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
