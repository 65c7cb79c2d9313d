"""CAMELYON16: lymph nodes with and without metastases.

Ehteshami Bejnordi et al., "Diagnostic Assessment of Deep Learning Algorithms for Detection of
Lymph Node Metastases in Women With Breast Cancer", JAMA 318 (2017).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pathgen.data.cells import bad, read_cells
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
from pathgen.progress import Progress, Silent

#: normal_086 was mislabeled and is tumor_111 now; test_049, a duplicate, was removed.
PUBLISHED: Mapping[str, int] = {
    "slides": 399, "train": 270, "test": 129, "train normal": 159, "train tumor": 111,
    "test normal": 80, "test tumor": 49,
}  # fmt: skip
LABELS = ("normal", "tumor")
_NAME = re.compile(r"(normal|tumor|test)_\d{3}$")


def read_camelyon16(root: Path | str, *, progress: Progress | None = None) -> Reading:
    """The cohort of CAMELYON16, in the layout of the challenge or of its copy on AWS.

    ``annotation`` is the XML of ASAP that outlines the metastases; normal slides have none.
    ``metastasis`` is Macro, Micro or None, for test slides.

    Raises:
        NoInputError: PG-N01, no such folder. DataError: PG-D20, neither layout; PG-N06, a row of
            reference.csv that cannot be understood, with its line.
    """
    root, progress = need_root(Path(root), "camelyon16"), progress or Silent()
    files = _files(root)
    reference = _reference_path(root)
    targets = _reference(reference) if reference else {}
    outlines = _outlines(root)
    members = []
    for slide, path in files.items():
        kind = slide.partition("_")[0]
        label, size = targets.get(slide, ("", "")) if kind == "test" else (kind, "")
        members.append(
            Member(
                slide,
                path.relative_to(root).as_posix(),
                label,
                split="test" if kind == "test" else "train",
                annotation=outlines[slide].relative_to(root).as_posix()
                if slide in outlines
                else "",
                more={"metastasis": size},
            )
        )
    there, lists = check_files(root, members, progress)
    absent = sorted(set(targets) - set(files))
    if absent:
        lists[MISSING] = tuple(absent)
    lacking = [m.slide for m in there if m.label == "tumor" and not m.annotation]
    notes = ["CAMELYON16 names no patients: each slide counts as a patient of its own"]
    if reference is None:
        notes.append("no reference.csv: test slides have no label")
    if unknown := [m.slide for m in there if reference is not None and not m.label]:
        lists["unlabeled"] = tuple(unknown)
    if lacking:
        notes.append(f"{len(lacking)} slides with metastases have no outlines, first {lacking[0]}")
    found = {
        "slides": len(there), **Counter(m.split for m in there),
        **Counter(f"{m.split} {m.label}" for m in there if m.label),
    }  # fmt: skip
    missing_members = tuple(
        Member(s, "", targets[s][0], split="test", flags=frozenset({MISSING}),
               more={"metastasis": targets[s][1]})
        for s in absent
    )  # fmt: skip
    return Reading(
        "camelyon16", root, Cohort((*there, *missing_members), "camelyon16"), PUBLISHED, found,
        lists, tuple(notes), {} if reference is None else {"reference.csv": file_digest(reference)},
    )  # fmt: skip


def _files(root: Path) -> dict[str, Path]:
    """Slide -> file, of either layout."""
    folders = [
        root / "training" / "normal", root / "training" / "tumor", root / "testing" / "images",
        root / "images",
    ]  # fmt: skip
    there = [folder for folder in folders if folder.is_dir()]
    if not there:
        raise unknown_layout(
            "camelyon16", root, "neither training/normal, training/tumor, testing/images nor images"
        )
    found: dict[str, Path] = {}
    for folder in there:
        for path in sorted(folder.glob("*.tif")):
            if not _NAME.match(path.stem):
                raise unknown_layout(
                    "camelyon16", folder, f"{path.name} is no slide of it",
                    "slides are called normal_NNN.tif, tumor_NNN.tif, test_NNN.tif; move other "
                    "files, such as masks, away",
                )  # fmt: skip
            if path.stem in found:
                raise unknown_layout(
                    "camelyon16", root, f"{path.stem} stands twice", "remove one of them"
                )
            if folder.name in LABELS and not path.stem.startswith(folder.name):
                raise unknown_layout(
                    "camelyon16", folder, f"{path.name} is in the folder {folder.name}",
                    "move it where it belongs",
                )  # fmt: skip
            found[path.stem] = path
    if not found:
        raise unknown_layout("camelyon16", root, "no slide (*.tif) in its folders")
    return found


def _outlines(root: Path) -> dict[str, Path]:
    folders = [
        root / "training" / "lesion_annotations", root / "testing" / "lesion_annotations",
        root / "annotations",
    ]  # fmt: skip
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.xml"))}


def _reference_path(root: Path) -> Path | None:
    places = [root / "testing", root / "testing" / "evaluation", root, root / "evaluation"]
    return next((f for f in (child(p, "reference.csv") for p in places) if f is not None), None)


def _reference(path: Path) -> dict[str, tuple[str, str]]:
    """Test slide -> label and size of the metastases; the file has no header."""
    table = read_cells(path)
    rows = [(1, table.header), *table.rows]
    if len(table.header) > 1 and table.header[1].casefold() not in LABELS:
        rows = rows[1:]
    found: dict[str, tuple[str, str]] = {}
    for line, row in rows:
        slide = Path(row[0]).stem
        if len(row) < 2 or row[1].casefold() not in LABELS:
            raise bad(
                path, "not a label of CAMELYON16",
                f"line {line}: {', '.join(row)}; the second cell is Normal or Tumor",
            )  # fmt: skip
        if slide in found:
            raise bad(path, "slide stands twice", f"line {line}: {slide!r}")
        found[slide] = row[1].casefold(), row[3] if len(row) > 3 else ""
    return found
