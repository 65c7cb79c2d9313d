"""CSV lists of slides, with the column names that other tools use.

slide: wsi, slide, slide_id, image_path, filename, sample_id · mpp: mpp, spacing,
spacing_at_level_0, mpp_x · label · patient: patient, case_id, patient_id. Case does not matter;
the separator is a comma, semicolon or tab; paths are relative to the list's folder.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pathgen.errors import DataError, PathgenError, SlideError
from pathgen.tiling.readers.check import missing

LIST_SUFFIXES = frozenset({".csv", ".tsv"})
ALIASES = {
    "slide": ("image_path", "wsi", "slide", "filename", "slide_id", "sample_id"),
    "mpp": ("mpp", "spacing_at_level_0", "spacing", "mpp_x"),
    "label": ("label",),
    "patient": ("patient", "patient_id", "case_id"),
}


@dataclass(frozen=True)
class ListedSlide:
    """One row of a list."""

    path: Path
    mpp: float | None = None
    label: str | None = None
    patient: str | None = None
    problem: PathgenError | None = None
    """PG-N02 when the file is not there"""


def read_list(path: Path) -> list[ListedSlide]:
    """The slides a CSV lists, in its order; a slide listed twice with the same values once.

    Raises:
        DataError: PG-N06 without a slide column, with a value that is no number, or with a slide
            listed twice with different values.
    """
    header, rows = _table(path)
    columns = {
        role: next((header.index(name) for name in names if name in header), None)
        for role, names in ALIASES.items()
    }
    if columns["slide"] is None:
        raise DataError(
            "no column of slides", where=path.name, why=f"it has: {', '.join(header) or 'nothing'}",
            hint=f"name one of: {', '.join(ALIASES['slide'])}",
        )  # fmt: skip
    found: dict[str, ListedSlide] = {}
    for line, row in rows:
        cells = {
            role: (row[i].strip() or None) if i is not None and i < len(row) else None
            for role, i in columns.items()
        }
        if cells["slide"] is None:
            continue
        slide = _row(path, line, cells["slide"], cells)
        key = os.path.abspath(slide.path)
        if key in found and _values(found[key]) != _values(slide):
            raise DataError(
                "slide listed twice with different values", where=path.name,
                why=f"line {line}: {cells['slide']}", hint="keep one of the lines",
            )  # fmt: skip
        found.setdefault(key, slide)
    return list(found.values())


def _values(slide: ListedSlide) -> tuple[object, ...]:
    return slide.mpp, slide.label, slide.patient


def _table(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = path.read_text(encoding="cp1252", errors="replace")
    except OSError as error:
        raise DataError("list cannot be read", where=path, why=str(error.strerror)) from error
    first = text.partition("\n")[0]
    separator = max((";", "\t", ","), key=lambda s: (first.count(s), s == ","))
    reader = csv.reader(text.splitlines(), delimiter=separator)
    rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    if not rows:
        return [], []
    header = [cell.strip().lower() for cell in rows[0][1]]
    for line, row in rows[1:]:
        if len(row) > len(header) and any(cell.strip() for cell in row[len(header) :]):
            raise DataError(
                "row has more cells than the header", where=path.name, why=f"line {line}",
                hint="quote cells that hold the separator",
            )  # fmt: skip
    return header, rows[1:]


def _row(path: Path, line: int, text: str, cells: dict[str, str | None]) -> ListedSlide:
    slide = _resolved(path.parent, text)
    problem: PathgenError | None = None
    if not os.path.lexists(slide):
        there = missing(slide)
        problem = SlideError(
            "listed slide is not there", code="PG-N02", where=text, why=f"{path.name}, line {line}",
            hint=there.hint if "did you mean" in (there.hint or "") else "check the path",
        )  # fmt: skip
    mpp = _number(path, line, cells["mpp"])
    return ListedSlide(slide, mpp, cells["label"], cells["patient"], problem)


def _resolved(folder: Path, text: str) -> Path:
    """The listed path; without a suffix, the one file that has that stem."""
    path = folder / Path(text.replace("\\", "/") if os.sep == "/" else text)
    if os.path.lexists(path) or not path.parent.is_dir():
        return path
    fits: Sequence[Path] = sorted(
        entry for entry in path.parent.iterdir()
        if entry.name.startswith(f"{path.name}.") and entry.suffix.lower() not in LIST_SUFFIXES
        and (entry.stem == path.name or entry.name.lower().startswith(f"{path.name.lower()}.ome."))
    )  # fmt: skip
    return fits[0] if len(fits) == 1 else path


def _number(path: Path, line: int, text: str | None) -> float | None:
    if text is None or text.lower() in ("na", "nan", "none"):
        return None
    try:
        value = float(text.replace(",", "."))
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            "mpp is not a number", where=path.name, why=f"line {line}: {text!r}",
            hint="microns per pixel, such as 0.25",
        )  # fmt: skip
    return value
