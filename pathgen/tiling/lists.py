"""CSV lists of slides, with the column names that other tools use.

slide: path, image_path, wsi, slide, filename, slide_id, sample_id · mpp: mpp, spacing,
spacing_at_level_0, mpp_x · mask: mask, mask_path · label · patient: see `pathgen.columns`. Case,
spaces, hyphens and underscores in these names do not matter; the separator is a comma, semicolon
or tab; paths are relative to the list's folder; URLs are taken too.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pathgen.columns import PATIENT, folded
from pathgen.errors import DataError, PathgenError, SlideError
from pathgen.tiling.readers.check import (
    IMAGE_SUFFIXES,
    SLIDE_SUFFIXES,
    missing,
    without_suffix,
)
from pathgen.tiling.readers.remote import SlidePath, is_url, path_key, slide_path

LIST_SUFFIXES = frozenset({".csv", ".tsv"})
ALIASES = {
    "slide": ("path", "image_path", "wsi", "slide", "filename", "slide_id", "sample_id"),
    "mpp": ("mpp", "spacing_at_level_0", "spacing", "mpp_x"),
    "mask": ("mask", "mask_path"),
    "label": ("label",),
    "patient": PATIENT,
}


@dataclass(frozen=True)
class ListedSlide:
    """One row of a list."""

    path: SlidePath
    mpp: float | None = None
    label: str | None = None
    patient: str | None = None
    problem: PathgenError | None = None
    """PG-N02 when the file is not there"""
    mask: Path | None = None


def read_list(path: Path) -> list[ListedSlide]:
    """The slides a CSV lists, in its order; a slide listed twice with the same values once.

    Raises:
        DataError: PG-N06 without a slide column, with a value that is no number, or with a slide
            listed twice with different values.
    """
    header, rows = _table(path)
    known = [folded(name) for name in header]
    columns = {
        role: next((known.index(name) for name in map(folded, names) if name in known), None)
        for role, names in ALIASES.items()
    }
    if columns["slide"] is None:
        raise DataError(
            "no column of slides", where=path.name, why=f"it has: {', '.join(header) or 'nothing'}",
            hint=f"name one of: {', '.join(ALIASES['slide'])}",
        )  # fmt: skip
    found: dict[str, ListedSlide] = {}
    folders = _Folders()
    for line, row in rows:
        cells = {
            role: (row[i].strip() or None) if i is not None and i < len(row) else None
            for role, i in columns.items()
        }
        if cells["slide"] is None and "slide" in known:  # a cohort knows no path of a lost slide
            cells["slide"] = row[known.index("slide")].strip() or None
        if cells["slide"] is None:
            continue
        slide = _row(path, line, cells["slide"], cells, folders)
        key = path_key(slide.path)
        if key in found and _values(found[key]) != _values(slide):
            raise DataError(
                "slide listed twice with different values", where=path.name,
                why=f"line {line}: {cells['slide']}", hint="keep one of the lines",
            )  # fmt: skip
        found.setdefault(key, slide)
    return list(found.values())


def _values(slide: ListedSlide) -> tuple[object, ...]:
    return slide.mpp, slide.label, slide.patient, slide.mask


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


def _row(
    path: Path, line: int, text: str, cells: dict[str, str | None], folders: _Folders
) -> ListedSlide:
    problem: PathgenError | None = None
    slide = slide_path(text) if is_url(text) else folders.resolved(path.parent, text)
    if isinstance(slide, Path) and not os.path.lexists(slide):
        problem = SlideError(
            "listed slide is not there", code="PG-N02", where=text,
            why=f"{path.name}, line {line}: looked for {_tried(path, text)}",
            hint=folders.advice(slide),
        )  # fmt: skip
    mpp = _number(path, line, cells["mpp"])
    mask = cells["mask"]
    return ListedSlide(
        slide, mpp, cells["label"], cells["patient"], problem,
        None if mask is None else path.parent / Path(mask.replace("\\", "/")),
    )  # fmt: skip


def _tried(path: Path, text: str) -> str:
    """Where a listed slide was looked for, from the list's folder on: a ledger has no place for
    what is above."""
    return (Path(path.absolute().parent.name) / text.replace("\\", "/")).as_posix()


def doubtful_columns(path: Path) -> list[str]:
    """Of a list's columns that are not read, those that look like a known one that is missing:
    ``column 'lable' of list.csv is not read; did you mean 'label'?``."""
    header, _ = _table(path)
    given = {folded(name): name for name in header}
    missing_names = {
        folded(name): name
        for names in ALIASES.values()
        if not any(folded(name) in given for name in names)
        for name in names
    }
    known = {folded(name) for names in ALIASES.values() for name in names}
    found = []
    for key, name in given.items():
        close = difflib.get_close_matches(key, missing_names, n=1, cutoff=0.8)
        if key not in known and close:
            found.append(
                f"column {name!r} of {path.name} is not read; did you mean "
                f"{missing_names[close[0]]!r}?"
            )
    return found


class _Folders:
    """The folders a list speaks of, each looked through once."""

    def __init__(self) -> None:
        self.by_stem: dict[Path, dict[str, list[tuple[int, str]]]] = {}
        self.advised = 0

    def resolved(self, folder: Path, text: str) -> Path:
        """The listed path; without a suffix, the one slide of that stem: a file before a folder,
        a slide before a plain image."""
        path = folder / Path(text.replace("\\", "/") if os.sep == "/" else text)
        if path.is_file():
            return path
        fits = self._stems(path.parent).get(path.name, [])
        if os.path.lexists(path):  # a folder: of a DICOM slide, or the data of an MRXS
            fits = [one for one in fits if one[0] == _SLIDE]
        best = [name for rank, name in fits if rank == fits[0][0]]
        return path.with_name(best[0]) if len(best) == 1 else path

    def _stems(self, folder: Path) -> dict[str, list[tuple[int, str]]]:
        """Stem -> (rank, name) of the slides in a folder, the lowest rank first."""
        if folder not in self.by_stem:
            stems: dict[str, list[tuple[int, str]]] = {}
            for rank, name in sorted(_slides_in(folder)):
                stems.setdefault(without_suffix(name), []).append((rank, name))
            self.by_stem[folder] = stems
        return self.by_stem[folder]

    def advice(self, slide: Path) -> str:
        """What may have been meant: looked up for the first few, as it takes a while."""
        self.advised += 1
        hint = missing(slide).hint or "" if self.advised <= ADVISED else ""
        return hint if "did you mean" in hint else "check the path"


_SLIDE, _IMAGE, _FOLDER = range(3)
#: Missing slides of a list that get a hint at a similar name.
ADVISED = 3


def _slides_in(folder: Path) -> Iterator[tuple[int, str]]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()
                if entry.is_dir():
                    if suffix in SLIDE_SUFFIXES | {".zarr"}:
                        yield _FOLDER, entry.name
                elif suffix in SLIDE_SUFFIXES | IMAGE_SUFFIXES:
                    yield _SLIDE if suffix in SLIDE_SUFFIXES else _IMAGE, entry.name
    except OSError:
        return  # its slides are then not there


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
