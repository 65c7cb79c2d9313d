"""BRIGHT: the ISBI 2022 challenge on breast slides, three classes and six subtypes.

Classes come from the folders above a slide or from label files such as the challenge's
``validation_targets.csv``; where both say something they must agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pathgen.data.cells import bad, read_cells
from pathgen.datasets.breast import GROUPS, parts_of, slides_below
from pathgen.datasets.cohort import Cohort, Member
from pathgen.datasets.definitions import BRIGHT3, BRIGHT6
from pathgen.datasets.reading import (
    MISSING,
    Reading,
    check_files,
    file_digest,
    need_root,
    unknown_layout,
)
from pathgen.errors import DataError
from pathgen.progress import Progress, Silent

COLUMNS = ("image_name", "Task1-target", "Task2-target")
#: Class of each group of BRACS.
CLASS_OF: Mapping[str, str] = {"BT": "Noncancerous", "AT": "Precancerous", "MT": "Cancerous"}
#: How the other 623 divide into training and test is in no public source.
PUBLISHED: Mapping[str, int] = {"slides": 703, "valid": 80}


class Target(NamedTuple):
    """A row of a label file."""

    label: str
    subtype: str
    where: str


def read_bright(
    root: Path | str, *, labels: Sequence[Path] = (), progress: Progress | None = None
) -> Reading:
    """The cohort of BRIGHT: ``label`` of three classes, ``subtype`` of six, official parts.

    Slides of the test part have no label, as the challenge hides them.

    Args:
        root: folder with train, validation and test.
        labels: label files with the challenge's columns, for slides whose folders do not say.

    Raises:
        NoInputError: PG-N01, no such folder. DataError: PG-D20, not BRIGHT's layout, or folder and
            label file disagree; PG-N06, a row that cannot be understood, with its line.
    """
    root, progress = need_root(Path(root), "bright"), progress or Silent()
    targets = _targets(labels)
    members = []
    seen: dict[str, Path] = {}
    for part, folder in parts_of("bright", root).items():
        for place in slides_below("bright", folder):
            slide = place.path.stem
            if slide in seen:
                raise unknown_layout(
                    "bright", root, f"{slide} stands twice: {_below(seen[slide], root)} and "
                    f"{_below(place.path, root)}", "remove one of them",
                )  # fmt: skip
            seen[slide] = place.path
            label, subtype = _class(root, slide, place.group, place.subtype, targets.get(slide))
            members.append(
                Member(
                    slide, _below(place.path, root), label, split=part, more={"subtype": subtype}
                )
            )
    members += [
        Member(
            slide, "", target.label, flags=frozenset({MISSING}), more={"subtype": target.subtype}
        )
        for slide, target in targets.items()
        if slide not in seen
    ]
    unlabeled = [m for m in members if not m.label and m.split != "test"]
    if len(unlabeled) == sum(m.split != "test" for m in members):
        raise unknown_layout(
            "bright", root, "no slide has a class: neither by its folders nor by a label file",
            "give the label files: --labels validation_targets.csv",
        )  # fmt: skip
    there = [m for m in members if m.path]
    checked, lists = check_files(root, there, progress)
    absent = [m for m in members if not m.path]
    if absent:
        lists[MISSING] = tuple(m.slide for m in absent)
    notes = ["BRIGHT names no patients: each slide counts as a patient of its own"]
    if unlabeled:
        notes.append(
            f"{len(unlabeled)} slides outside of the test part have no class, first "
            f"{unlabeled[0].slide!r}: give --labels"
        )
    found = {"slides": len(there), **Counter(m.split for m in there)}
    return Reading(
        "bright", root, Cohort((*checked, *absent), "bright"), PUBLISHED, found, lists,
        tuple(notes), {f"labels {i}": file_digest(path) for i, path in enumerate(labels)},
    )  # fmt: skip


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _targets(paths: Sequence[Path]) -> dict[str, Target]:
    """Slide -> its classes by the label files."""
    found: dict[str, Target] = {}
    for path in paths:
        table = read_cells(path)
        lacking = [name for name in COLUMNS if name not in table.header]
        if lacking:
            raise bad(
                path, f"no column {lacking[0]!r}", f"it has: {', '.join(table.header)}",
                f"BRIGHT's label files have {', '.join(COLUMNS)}",
            )  # fmt: skip
        place = [table.header.index(name) for name in COLUMNS]
        for line, row in table.rows:
            slide, first, second = (row[i] for i in place)
            target = Target(
                _coded(path, line, COLUMNS[1], first, BRIGHT3),
                _coded(path, line, COLUMNS[2], second, BRIGHT6), f"{path.name}, line {line}",
            )  # fmt: skip
            if CLASS_OF[GROUPS[target.subtype]] != target.label:
                raise bad(
                    path, "the two targets of a slide disagree",
                    f"line {line}: {target.subtype} of {slide!r} is not {target.label}",
                )  # fmt: skip
            before = found.setdefault(slide, target)
            if before[:2] != target[:2]:
                raise bad(
                    path, "slide stands twice with different targets",
                    f"{slide!r}: {before.where} and {target.where}",
                )  # fmt: skip
    return found


def _coded(path: Path, line: int, column: str, value: str, classes: Sequence[str]) -> str:
    if value in classes:
        return value
    if not value.isdigit() or int(value) >= len(classes):
        raise bad(
            path, f"not a class of {column}",
            f"line {line}: {value!r} is none of 0 to {len(classes) - 1} ({', '.join(classes)})",
        )  # fmt: skip
    return classes[int(value)]


def _class(
    root: Path, slide: str, group: str, subtype: str, target: Target | None
) -> tuple[str, str]:
    """Class and subtype by folders and label file."""
    if subtype == "N":
        raise unknown_layout(
            "bright", root, f"{slide} is in a folder of normal tissue, which BRIGHT does not have",
            "is this BRACS? Then use `pathgen datasets bracs`",
        )  # fmt: skip
    label = CLASS_OF.get(group, "")
    if target is None:
        return label, subtype
    for own, said in ((label, target.label), (subtype, target.subtype)):
        if own and own != said:
            raise DataError(
                "folder and label file disagree", code="PG-D20", where=slide,
                why=f"its folder says {own}, {target.where} says {said}",
            )  # fmt: skip
    return target.label, target.subtype
