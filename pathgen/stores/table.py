"""The one storage idea: named columns over the same rows, written once, read many times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

Rows = slice | Sequence[int] | NDArray[np.integer[Any]]
ALL = slice(None)


@dataclass(frozen=True)
class Column:
    """Type and shape of one row; `chunk` rows lie together on disk.

    Args:
        dtype: a numpy name such as ``"float32"``, or ``"bytes"`` for rows of any length.
        shape: shape of one row; empty for a number a row.
        chunk: rows read at once; a short store has a shorter chunk.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    chunk: int = 1024

    @property
    def is_bytes(self) -> bool:
        """Whether a row is a byte string of any length."""
        return self.dtype == "bytes"


#: Byte strings of any length, each with its length and crc32.
BYTES = Column("bytes")


class Table(Protocol):
    """A finished table. Picklable: the file is opened on first use in each process."""

    @property
    def path(self) -> Path: ...
    @property
    def attrs(self) -> Mapping[str, Any]: ...
    @property
    def columns(self) -> Mapping[str, Column]: ...

    def __len__(self) -> int: ...

    def read(self, column: str, rows: Rows = ALL) -> NDArray[Any]:
        """Rows of a fixed column, (n, *shape), in the order asked; repeats are allowed.

        Raises:
            IndexError: a row is negative or past the end.
            StoreError: PG-O11 when the data is damaged, PG-O17 when there is no such column.
        """

    def read_bytes(self, column: str, rows: Rows = ALL) -> list[bytes]:
        """Rows of a bytes column, each checked against its crc32; order and errors as `read`."""

    def verify(self, deep: bool = False) -> None:
        """Check seal, row counts, fixed columns and a few byte rows; `deep`: every byte.

        Raises:
            StoreError: PG-O11, naming the column and, for byte rows, the row.
        """

    def close(self) -> None:
        """Let go of the file; the next read opens it again."""


class TableWriter(Protocol):
    """A table being made. Nothing is at `path` until the `with` block ends without an error."""

    @property
    def path(self) -> Path: ...

    def append(self, **columns: Any) -> None:
        """Add rows: an array per fixed column, a list of bytes per bytes column.

        Raises:
            ValueError: a column is missing, unknown, of another length, shape or type.
        """

    def set_attr(self, name: str, value: Any) -> None:
        """Set a JSON-ready attribute, any time before the block ends."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def pick(rows: Rows, count: int) -> slice | NDArray[np.int64]:
    """`rows` as a forward slice or as row numbers, checked against `count` rows."""
    if isinstance(rows, slice):
        if any(bound is not None and bound < 0 for bound in (rows.start, rows.stop)):
            raise IndexError(f"rows count from 0; got {rows}")
        start, stop, step = rows.indices(count)
        if step == 1:
            return slice(start, max(start, stop))
        return np.arange(start, stop, step, dtype=np.int64)
    numbers = np.asarray(rows)
    if numbers.size == 0 and numbers.dtype.kind == "f":  # np.asarray([]) is float
        numbers = numbers.astype(np.int64)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise TypeError("rows are a slice or row numbers; of a mask take np.flatnonzero(mask)")
    if numbers.size and (int(numbers.min()) < 0 or int(numbers.max()) >= count):
        wrong = int(numbers.min()) if int(numbers.min()) < 0 else int(numbers.max())
        raise IndexError(f"row {wrong} of {count}")
    return numbers.astype(np.int64)


def spans(starts: NDArray[np.int64], stops: NDArray[np.int64], gap: int, limit: int) -> list[slice]:
    """Group rising ranges into few reads: those closer than `gap` join, up to `limit` in length.

    Each slice selects ranges, not positions: ``starts[s][0]`` to ``stops[s][-1]`` is one read.
    """
    cuts = np.flatnonzero(starts[1:] - stops[:-1] > gap) + 1
    groups: list[slice] = []
    for first, last in pairwise([0, *cuts.tolist(), len(starts)]):
        if last - first == 1:  # as most are when rows are drawn at random
            groups.append(slice(first, last))
            continue
        while first < last:
            fit = int(np.searchsorted(stops[first:last], starts[first] + limit, side="right"))
            groups.append(slice(first, first + max(1, fit)))
            first += max(1, fit)
    return groups
