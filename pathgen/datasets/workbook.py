"""One sheet of an Excel workbook as text; formulas give the value they were saved with."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from xml.etree import ElementTree

from pathgen.data.cells import Cells, bad
from pathgen.errors import DataError

#: A sheet of labels is small; what unpacks to more is not read.
MAX_BYTES = 64 * 2**20
#: Of Excel; a cell that claims to lie beyond would be filled up to.
MAX_COLUMNS = 16_384
UNREADABLE = (
    OSError, zipfile.BadZipFile, zlib.error, KeyError, ValueError, IndexError,
    ElementTree.ParseError,
)  # fmt: skip
_SHEETS = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_LINKS = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}id"
_TARGETS = "{http://schemas.openxmlformats.org/package/2006/relationships}Relationship"


def read_sheet(path: Path, name: str) -> Cells:
    """The sheet of that name, or the only one: its first row is the header.

    Numbers that are whole lose their ``.0``. Rows without any text are left out.

    Raises:
        DataError: PG-N06, not a workbook, no such sheet, or nothing in it.
    """
    try:
        with zipfile.ZipFile(path) as book:
            target = _target(path, book, name)
            shared = _shared(path, book)
            rows = _rows(_xml(path, book, target), shared)
    except DataError:
        raise
    except UNREADABLE as error:
        raise bad(path, "not a readable workbook", str(error), "save the sheet as CSV") from error
    if len(rows) < 2:
        raise bad(path, "no rows in this sheet", name)
    (_, header), rest = rows[0], rows[1:]
    while header and not header[-1]:
        header = header[:-1]
    width = len(header)
    return Cells(header, [(line, (row + [""] * width)[:width]) for line, row in rest if any(row)])


def _xml(path: Path, book: zipfile.ZipFile, member: str) -> ElementTree.Element:
    if book.getinfo(member).file_size > MAX_BYTES:
        raise bad(path, "sheet too large", f"{member} has more than {MAX_BYTES // 2**20} MiB")
    data = book.read(member).decode("utf-8")
    if "<!DOCTYPE" in data:  # which may hold entities that grow without end
        raise bad(path, "a workbook with a DOCTYPE", member, "save it again with Excel")
    return ElementTree.fromstring(data)


def _target(path: Path, book: zipfile.ZipFile, name: str) -> str:
    """Archive member of the sheet."""
    sheets = _xml(path, book, "xl/workbook.xml").findall(f"{_SHEETS}sheets/{_SHEETS}sheet")
    links = {
        link.get("Id"): link.get("Target", "")
        for link in _xml(path, book, "xl/_rels/workbook.xml.rels").iter(_TARGETS)
    }
    names = [sheet.get("name", "") for sheet in sheets]
    fits = [sheet for sheet in sheets if sheet.get("name") == name]
    if not fits and len(sheets) == 1:
        fits = sheets
    if not fits:
        raise bad(path, f"no sheet {name!r}", f"it has: {', '.join(names)}")
    target = links[fits[0].get(_LINKS)]
    return target.lstrip("/") if target.startswith("/") else f"xl/{target}"


def _shared(path: Path, book: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in book.namelist():
        return []
    entries = _xml(path, book, "xl/sharedStrings.xml").iter(f"{_SHEETS}si")
    return [_text(entry) for entry in entries]


def _text(entry: ElementTree.Element) -> str:
    return "".join(part.text or "" for part in entry.iter(f"{_SHEETS}t"))


def _rows(sheet: ElementTree.Element, shared: list[str]) -> list[tuple[int, list[str]]]:
    found = []
    for number, row in enumerate(sheet.iter(f"{_SHEETS}row"), 1):
        cells: list[str] = []
        for cell in row.iter(f"{_SHEETS}c"):
            place = _column(cell.get("r", ""), len(cells))
            cells += [""] * (place + 1 - len(cells))
            cells[place] = _value(cell, shared).strip()
        if any(cells):
            found.append((int(row.get("r", number)), cells))
    return found


def _column(reference: str, following: int) -> int:
    """``AB12`` -> 27; cells without a reference follow each other."""
    letters = re.match(r"[A-Z]+", reference)
    if letters is None:
        return following
    place = 0
    for letter in letters.group():
        place = place * 26 + ord(letter) - ord("A") + 1
    if place > MAX_COLUMNS:
        raise ValueError(f"no sheet has a column {letters.group()}")
    return place - 1


def _value(cell: ElementTree.Element, shared: list[str]) -> str:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        return _text(cell)
    value = cell.find(f"{_SHEETS}v")
    text = "" if value is None else value.text or ""
    if kind == "s" and text:
        return shared[int(text)]
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text) if kind == "n" else text
