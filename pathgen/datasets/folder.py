"""A cohort of one's own: the first folder is the class, or a CSV says it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pathgen.data.cells import Cells, bad, read_cells
from pathgen.data.labels import find_column, find_patient, known, slide_key
from pathgen.datasets.breast import PART_FOLDERS
from pathgen.datasets.cohort import PARTS, Cohort, Member
from pathgen.datasets.reading import (
    MISSING,
    Reading,
    check_files,
    file_digest,
    need_root,
    unknown_layout,
)
from pathgen.errors import NoInputError
from pathgen.progress import Progress, Silent
from pathgen.tiling.inputs import find_slides

#: Columns of a CSV that are taken as they are.
TAKEN = ("site", "group", "split")


def read_folder(
    root: Path | str,
    *,
    labels: Path | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    progress: Progress | None = None,
) -> Reading:
    """All slides below a folder.

    Without a CSV the first folder below `root` is the class, below folders train, valid and test
    (or val) the second is, and those are official parts. With one, its columns slide, label,
    patient, site, group and split count; slides without a row have no label.

    Raises:
        NoInputError: PG-N01, no such folder or no slide in it.
        DataError: PG-D20, a slide lies in no class folder; PG-N06, the CSV cannot be used.
    """
    root, progress = need_root(Path(root), "folder"), progress or Silent()
    slides, ignored = find_slides(root)
    paths = {
        slide.name: Path(os.path.relpath(slide.path, root)).as_posix()
        for slide in slides
        if isinstance(slide.path, Path)
    }
    if not paths:
        raise NoInputError("no slides found", where=root, hint="check the path")
    notes = [f"{count} {suffix} passed over" for suffix, count in ignored.items()]
    lists: dict[str, tuple[str, ...]] = {}
    if labels is None:
        members = [_by_folder(root, name, path) for name, path in paths.items()]
        notes.append("patients are not known: each slide counts as a patient of its own")
    else:
        rows = _rows(labels, label_column, patient_column)
        members, left = _by_rows(labels, paths, rows)
        if left:
            lists[MISSING] = tuple(left)
    checked, found_lists = check_files(root, members, progress)
    unlabeled = sum(not m.label for m in checked)
    if unlabeled:
        notes.append(f"{unlabeled} of {len(checked)} slides have no label")
    return Reading(
        "folder", root, Cohort(tuple(checked), root.name), {}, Counter(m.label for m in checked),
        {**found_lists, **lists}, tuple(notes),
        {} if labels is None else {"labels": file_digest(labels)},
    )  # fmt: skip


def _by_folder(root: Path, name: str, path: str) -> Member:
    folders = path.split("/")[:-1]
    part = next(
        (p for p, names in PART_FOLDERS.items() if folders and folders[0].casefold() in names), ""
    )
    classes = folders[1:] if part else folders
    if not classes:
        raise unknown_layout(
            "folder", root, f"{path} lies in no folder of a class",
            "make one folder a class, or give a CSV of slide and label with --labels",
        )  # fmt: skip
    return Member(name, path, classes[0], split=part)


def _rows(
    path: Path, label_column: str | None, patient_column: str | None
) -> dict[str, Mapping[str, str]]:
    """`slide_key` -> values."""
    table = read_cells(path)
    places = _places(path, table, label_column, patient_column)
    found: dict[str, Mapping[str, str]] = {}
    for line, row in table.rows:
        values = {name: known(row[i]) or "" for name, i in places.items()}
        values["part"] = _part(path, line, values.pop("split", ""))
        key = slide_key(row[places["slide"]])
        if not key:
            raise bad(path, "row without a slide", f"line {line}")
        if found.setdefault(key, values) != values:
            raise bad(path, "slide stands twice with different values", f"line {line}: {key!r}")
    return found


def _places(
    path: Path, table: Cells, label_column: str | None, patient_column: str | None
) -> dict[str, int]:
    places = {
        "slide": find_column(path, table.header, "slide")[0],
        "label": find_column(path, table.header, "label", label_column)[0],
    }
    patient = find_patient(path, table.header, patient_column)
    if patient:
        places["patient"] = patient[0]
    names = [name.casefold() for name in table.header]
    return places | {name: names.index(name) for name in TAKEN if name in names}


def _part(path: Path, line: int, value: str) -> str:
    if not value:
        return ""
    for part in PARTS:
        if value.casefold() in (part, *PART_FOLDERS[part]):
            return part
    raise bad(path, "not a part", f"line {line}: {value!r}", f"one of {', '.join(PARTS)}, or empty")


def _by_rows(
    table: Path, paths: Mapping[str, str], rows: Mapping[str, Mapping[str, str]]
) -> tuple[list[Member], list[str]]:
    """A member for each slide, and the rows that fit none.

    A row fits the slide of its name, or the only one whose path ends in it.
    """
    ends: dict[str, list[str]] = {}
    for name in paths:
        parts = slide_key(name).split("/")
        for i in range(len(parts)):
            ends.setdefault("/".join(parts[i:]), []).append(name)
    of: dict[str, Mapping[str, str]] = {}
    left = []
    for key, values in rows.items():
        fits = [name for name in ends.get(key, []) if slide_key(name) == key] or ends.get(key, [])
        if len(fits) > 1:
            raise bad(table, "a row fits several slides", f"{key!r}: {', '.join(fits[:3])}",
                      "write the folder too")  # fmt: skip
        if not fits:
            left.append(key)
            continue
        of[fits[0]] = values
    nothing: Mapping[str, str] = {}
    members = [
        Member(
            name, path, own.get("label", ""), own.get("patient", ""), own.get("site", ""),
            own.get("group", ""), own.get("part", ""),
        )
        for name, path in paths.items()
        for own in [of.get(name, nothing)]
    ]  # fmt: skip
    return members, left
