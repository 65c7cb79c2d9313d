"""A CSV that people made by hand, as text.

The separator is a comma, semicolon or tab; the encoding UTF-8, UTF-16 with its mark, or
Windows-1252.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import NamedTuple

from pathgen.errors import DataError


class Cells(NamedTuple):
    """A CSV as text: `header` as written, and (line number, cells) of every row that has any."""

    header: list[str]
    rows: list[tuple[int, list[str]]]


def read_cells(path: Path) -> Cells:
    """A CSV with a header; cells stripped. Raises DataError (PG-N06) naming the line."""
    text = _text(path)
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    separator = max((",", ";", "\t"), key=lambda s: len(next(csv.reader([first], delimiter=s), [])))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        found = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except csv.Error as error:
        raise bad(path, "not a readable CSV", f"line {reader.line_num}: {error}") from error
    found = [(line, row) for line, row in found if any(row)]
    if len(found) < 2:
        what = "a header but no rows" if found else "nothing"
        raise bad(path, "no labels in this file", f"it has {what}")
    (_, header), rows = found[0], found[1:]
    while header and not header[-1]:  # a comma at the end of the header
        header = header[:-1]
    for line, row in rows:
        # Empty cells beyond the header (a comma at the end of each line) shift nothing.
        if len(row) < len(header) or any(row[len(header) :]):
            raise bad(
                path, "row does not fit the header",
                f"line {line} has {len(row)} cells, the header {len(header)}: {', '.join(row)}",
                "quote cells that hold the separator",
            )  # fmt: skip
        if broken := next((cell for cell in row if "\n" in cell or "\r" in cell), None):
            raise bad(
                path, "cell runs over several lines", f"it ends in line {line}: {broken[:40]!r}",
                "look for a quote that is not closed",
            )  # fmt: skip
    return Cells(header, [(line, row[: len(header)]) for line, row in rows])


def bad(path: Path, what: str, why: str, hint: str | None = None) -> DataError:
    """PG-N06, naming the file."""
    return DataError(what, code="PG-N06", where=path.name, why=why, hint=hint)


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            "labels cannot be read", where=path, why=error.strerror, hint="check the path"
        ) from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data or data[:2] == b"PK":
        raise bad(path, "not a CSV", "it is a binary file", "save the sheet as CSV")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")
