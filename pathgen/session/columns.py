"""Which columns of a table are numbers to learn from, and what a column of classes says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import DataError

if TYPE_CHECKING:
    import pandas


def vectors(table: pandas.DataFrame, but: Sequence[str | None] = ()) -> NDArray[np.float64]:
    """The columns of numbers, (rows, columns), without those named in `but`.

    Raises:
        DataError: PG-N06, there is none, or one of them lacks a value or holds infinity.
    """
    left = [name for name in table.columns if name not in but]
    numbers = table[left].select_dtypes("number")
    if not numbers.shape[1]:
        raise DataError(
            "no columns of numbers", where=", ".join(map(str, table.columns[:6])),
            hint='join a table of vectors, as pathgen.features("features/").slide_means()',
        )  # fmt: skip
    values = numbers.to_numpy(np.float64, na_value=np.nan)
    bad = ~np.isfinite(values)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataError(
            "a number is missing", where=str(table.index[row]),
            why=f"column {numbers.columns[column]!r}; {int(bad.any(axis=1).sum())} of "
            f"{len(table)} rows lack one", hint="leave these rows out with .dropna()",
        )  # fmt: skip
    return np.asarray(values)


def texts(table: pandas.DataFrame, name: str) -> list[str | None]:
    """A column as text, None where it is missing; a whole number has no ``.0``.

    Raises:
        DataError: PG-N06, no such column.
    """
    if name not in table.columns:
        raise DataError(
            f"no column {name!r}", where=", ".join(map(str, table.columns[-6:])),
            why=f"the table has {table.shape[1]:,} columns; the last ones stand above",
            hint="check the name",
        )  # fmt: skip
    column = table[name]
    gone = column.isna().to_list()
    return [
        None if missing else _text(value)
        for value, missing in zip(column.to_list(), gone, strict=True)
    ]


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
