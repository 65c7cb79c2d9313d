"""BRACS: breast slides of seven subtypes in three groups, with patients and official parts.

Brancati et al., "BRACS: A Dataset for BReAst Carcinoma Subtyping in H&E Histology Images",
Database 2022.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pathgen.columns import folded
from pathgen.data.cells import Cells, bad, read_cells
from pathgen.datasets.breast import GROUPS, SUBTYPES, Place, parts_of, slides_below
from pathgen.datasets.cohort import Cohort, Member
from pathgen.datasets.reading import (
    MISSING,
    Reading,
    check_files,
    child,
    file_digest,
    need_root,
    unknown_layout,
)
from pathgen.datasets.workbook import read_sheet
from pathgen.errors import DataError
from pathgen.progress import Progress, Silent

CLASS_OF: Mapping[str, str] = {"BT": "benign", "AT": "atypical", "MT": "malignant"}
SHEET = "WSI_Information"
#: As `pathgen.columns.folded` gives them.
COLUMNS: Mapping[str, str] = {
    "slide": "WSI Filename",
    "patient": "Patient Id",
    "subtype": "WSI label",
    "part": "Set",
}
PARTS: Mapping[str, str] = {
    "training": "train", "train": "train", "validation": "valid", "val": "valid",
    "testing": "test", "test": "test",
}  # fmt: skip
PUBLISHED: Mapping[str, int] = {
    "slides": 547, "patients": 189, "train": 395, "valid": 65, "test": 87,
    "N": 44, "PB": 147, "UDH": 74, "FEA": 41, "ADH": 48, "DCIS": 61, "IC": 132,
}  # fmt: skip


class Fact(NamedTuple):
    """A row of the summary."""

    patient: str
    subtype: str
    part: str
    line: int


def read_bracs(
    root: Path | str, *, summary: Path | None = None, progress: Progress | None = None
) -> Reading:
    """The cohort of BRACS: ``label`` benign, atypical or malignant, ``subtype``, patient, part.

    Args:
        root: folder with BRACS_WSI (or its train, val and test) and BRACS.xlsx.
        summary: BRACS.xlsx, or its first sheet as CSV, when it lies elsewhere. Without one the
            folders alone count, and patients are not known.

    Raises:
        NoInputError: PG-N01, no such folder. DataError: PG-D20, not BRACS's layout, or summary and
            folders disagree; PG-N06, a row that cannot be understood, with its line.
    """
    root, progress = need_root(Path(root), "bracs"), progress or Silent()
    path = summary or child(root, "BRACS.xlsx", "BRACS.csv")
    facts = _facts(path) if path is not None else {}
    slides = child(root, "BRACS_WSI") or root
    places = _places(root, slides)
    members = [_member(root, slide, part, place, facts) for slide, (part, place) in places.items()]
    members += [
        Member(
            slide, "", CLASS_OF[GROUPS[fact.subtype]], fact.patient, split=fact.part,
            flags=frozenset({MISSING}), more={"subtype": fact.subtype},
        )
        for slide, fact in facts.items()
        if slide not in places
    ]  # fmt: skip
    there = [m for m in members if m.path]
    checked, lists = check_files(root, there, progress)
    absent = [m for m in members if not m.path]
    if absent:
        lists[MISSING] = tuple(sorted(m.slide for m in absent))
    extra = tuple(sorted(m.slide for m in there if facts and m.slide not in facts))
    if extra:
        lists["extra"] = extra
    notes = []
    if not facts:
        notes.append("no BRACS.xlsx: patients are not known, the folders alone say class and part")
    found = {
        "slides": len(there), "patients": len({m.patient for m in there if m.patient}),
        **Counter(m.split for m in there), **Counter(m.more["subtype"] for m in there),
    }  # fmt: skip
    published = PUBLISHED if facts else {k: v for k, v in PUBLISHED.items() if k != "patients"}
    return Reading(
        "bracs", root, Cohort((*checked, *absent), "bracs"), published, found, lists,
        tuple(notes), {} if path is None else {"summary": file_digest(path)},
    )  # fmt: skip


def _places(root: Path, slides: Path) -> dict[str, tuple[str, Place]]:
    found: dict[str, tuple[str, Place]] = {}
    for part, folder in parts_of("bracs", slides).items():
        for place in slides_below("bracs", folder):
            before = found.setdefault(place.path.stem, (part, place))
            if before[1] is not place:
                raise unknown_layout(
                    "bracs", root, f"{place.path.stem} stands twice: in {before[0]} and {part}",
                    "remove one of them",
                )  # fmt: skip
            if not place.subtype:
                raise unknown_layout(
                    "bracs", root, f"{place.path.name} is in no folder of a subtype (Type_XX)"
                )
    return found


def _member(root: Path, slide: str, part: str, place: Place, facts: Mapping[str, Fact]) -> Member:
    fact = facts.get(slide)
    if fact is not None:
        for own, said in ((place.subtype, fact.subtype), (part, fact.part)):
            if own != said:
                raise DataError(
                    "folder and summary disagree", code="PG-D20", where=slide,
                    why=f"its folder says {own}, line {fact.line} of the summary says {said}",
                )  # fmt: skip
    return Member(
        slide, place.path.relative_to(root).as_posix(), CLASS_OF[place.group],
        fact.patient if fact else "", split=part, more={"subtype": place.subtype},
    )  # fmt: skip


def _facts(path: Path) -> dict[str, Fact]:
    """Slide -> its row of the summary."""
    table = _table(path)
    names = [folded(name) for name in table.header]
    lacking = [name for name in COLUMNS.values() if folded(name) not in names]
    if lacking:
        raise bad(
            path, f"no column {lacking[0]!r}", f"it has: {', '.join(table.header)}",
            f"the sheet {SHEET} has {', '.join(COLUMNS.values())}",
        )  # fmt: skip
    place = [names.index(folded(name)) for name in COLUMNS.values()]
    found: dict[str, Fact] = {}
    for line, row in table.rows:
        slide, patient, subtype, part = (row[i] for i in place)
        if not slide:
            continue
        if subtype.upper() not in SUBTYPES:
            raise bad(
                path, "not a subtype of BRACS",
                f"line {line}: {subtype!r} of {slide!r} is none of {', '.join(SUBTYPES)}",
            )  # fmt: skip
        if part.casefold() not in PARTS:
            raise bad(
                path, "not a part of BRACS",
                f"line {line}: {part!r} of {slide!r} is none of Training, Validation, Testing",
            )  # fmt: skip
        fact = Fact(patient, subtype.upper(), PARTS[part.casefold()], line)
        before = found.setdefault(slide.removesuffix(".svs"), fact)
        if before is not fact:
            raise bad(path, "slide stands twice", f"{slide!r} in lines {before.line} and {line}")
    return found


def _table(path: Path) -> Cells:
    if path.suffix.lower() != ".xlsx":
        return read_cells(path)
    return read_sheet(path, SHEET)
