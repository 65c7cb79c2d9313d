"""Tables as pandas has them; pandas is asked for when the first one is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathgen.extras import need

if TYPE_CHECKING:
    import pandas


def frame(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str], index: str | None = None
) -> pandas.DataFrame:
    """Rows as a DataFrame with these columns, whether there are rows or not.

    Raises:
        MissingExtraError: PG-E01, pandas is not installed.
    """
    need("pandas", "tables")
    import pandas

    table = pandas.DataFrame.from_records(list(rows), columns=list(columns))
    return table if index is None else table.set_index(index)


def labels(
    path: str | Path, id: str = "slide", columns: Sequence[str] | None = None
) -> pandas.DataFrame:
    """A CSV as text, indexed by slide: ``007`` stays ``007``.

    Cells that say that nothing is known (empty, NA, n/a, nan) are missing. Endings such as
    ``.svs`` are no part of a slide's id, so that the index agrees with that of
    `pathgen.features(...).slide_means()`.

    Args:
        path: separated by comma, semicolon or tab.
        id: name of the column with the slides.
        columns: the columns wanted, in that order; None: all others.

    Raises:
        DataError: PG-N06, not a CSV, a column is not there, or a slide stands twice.
        MissingExtraError: PG-E01, pandas is not installed.
    """
    from pathgen.data.cells import bad, read_cells
    from pathgen.data.labels import find_column, known, slide_key

    path = Path(path)
    table = read_cells(path)
    slide, name = find_column(path, table.header, "slide", id)
    if columns is None:
        places = {h: i for i, h in enumerate(table.header) if h and i != slide}
    else:
        places = {want: find_column(path, table.header, "label", want)[0] for want in columns}
    rows: dict[str, dict[str, Any]] = {}
    for line, cells in table.rows:
        key = slide_key(cells[slide])
        if not key:
            raise bad(path, "row without a slide", f"line {line}: {', '.join(cells)}")
        if key in rows:
            raise bad(
                path, "slide stands twice", f"{cells[slide]!r} in line {line} again",
                "keep one of the lines",
            )  # fmt: skip
        rows[key] = {name: key} | {column: known(cells[i]) for column, i in places.items()}
    return frame(rows.values(), [name, *places], index=name)
