"""PANDA: ISUP grades of prostate biopsies from two providers, as the competition distributes them.

Bulten et al., "Artificial intelligence for diagnosis and Gleason grading of prostate cancer: the
PANDA challenge", Nature Medicine 28 (2022).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pathgen.data.cells import Cells, bad, read_cells
from pathgen.datasets.cohort import Cohort, Member
from pathgen.datasets.reading import (
    MISSING,
    Reading,
    check_files,
    extra_files,
    file_digest,
    need_root,
    unknown_layout,
)
from pathgen.errors import DataError
from pathgen.progress import Progress, Silent

COLUMNS = ("image_id", "data_provider", "isup_grade", "gleason_score")
PROVIDERS = ("karolinska", "radboud")
#: ISUP grade of each Gleason score that occurs; Karolinska writes 0+0, Radboud negative.
ISUP_OF: Mapping[str, str] = {
    "0+0": "0", "negative": "0", "3+3": "1", "3+4": "2", "4+3": "3",
    "4+4": "4", "3+5": "4", "5+3": "4", "4+5": "5", "5+4": "5", "5+5": "5",
}  # fmt: skip
PUBLISHED: Mapping[str, int] = {
    "slides": 10_616, "karolinska": 5_456, "radboud": 5_160, "masks": 10_516,
    "isup 0": 2_892, "isup 1": 2_666, "isup 2": 1_343, "isup 3": 1_242, "isup 4": 1_249,
    "isup 5": 1_224,
}  # fmt: skip
#: What the values of a mask's first channel mean. 0 is background or not known, everywhere.
LEGENDS: Mapping[str, Mapping[str, int]] = {
    "radboud": {"stroma": 1, "benign": 2, "gleason 3": 3, "gleason 4": 4, "gleason 5": 5},
    "karolinska": {"benign": 1, "cancer": 2},
}
#: The same two classes for both; Radboud's stroma counts as benign, as Karolinska's does.
CANCER: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "radboud": {"benign": (1, 2), "cancer": (3, 4, 5)},
    "karolinska": {"benign": (1,), "cancer": (2,)},
}
SUFFIXES = frozenset({".tiff", ".tif"})
#: Of the public list of all slides: 1 where a slide is kept when the tenth with the most doubtful
#: labels is left out, 0 where it is left out. Its name suggests the reverse.
KEPT = "noise_ratio_10"


class Lists(NamedTuple):
    """Lists that others made of PANDA; see `pathgen.datasets.guides`."""

    duplicates: Path | None = None
    noisy: Path | None = None
    clean: Path | None = None
    suspicious: Path | None = None


def read_panda(
    root: Path | str,
    *,
    labels: Path | None = None,
    lists: Lists = Lists(),
    progress: Progress | None = None,
) -> Reading:
    """The cohort of PANDA's training slides; slides whose file is missing stay in it, flagged.

    Flags: ``noisy`` and ``suspicious`` by the lists, ``no_mask``, and those of the file check.

    Args:
        root: folder with train.csv, train_images and perhaps train_label_masks.
        labels: another CSV with the columns of train.csv.
        lists: see `Lists`.

    Raises:
        NoInputError: PG-N01, no such folder. DataError: PG-D20, not PANDA's layout; PG-N06, a row
            that cannot be understood, with its line.
    """
    root, progress = need_root(Path(root), "panda"), progress or Silent()
    table_path = labels or root / "train.csv"
    if not table_path.is_file():
        raise unknown_layout("panda", root, f"no {table_path.name}")
    if not (root / "train_images").is_dir():
        raise unknown_layout("panda", root, "no folder train_images")
    members, problems = _rows(table_path)
    members = _with_masks(root, _flagged(members, lists))
    members, found_lists = check_files(root, members, progress)
    known = {member.slide for member in members}
    extra = extra_files(root / "train_images", known, SUFFIXES)
    files = {"train.csv": table_path, **{k: v for k, v in lists._asdict().items() if v is not None}}
    lists_found = {**found_lists, "problems": tuple(problems), "extra": extra}
    return Reading(
        "panda", root, Cohort(tuple(members), "panda"), PUBLISHED, _counts(members),
        {name: entries for name, entries in lists_found.items() if entries},
        tuple(_notes(members, lists)),
        {name: file_digest(path) for name, path in files.items()},
        {"lists": sorted(name for name in files if name != "train.csv")},
    )  # fmt: skip


def mask_settings(provider: str, legend: str = "native") -> dict[str, object]:
    """Settings of `tile` for the masks of a provider, so that patches get the share of each class.

    Args:
        provider: karolinska or radboud.
        legend: ``native``, all values of the provider; ``cancer``, benign and cancer for both.

    Returns:
        The section ``masks`` of a config file of `tile`; see `pathgen.tiling.masks.MaskConfig`.

    Raises:
        DataError: PG-D21, no such provider or legend.
    """
    tables: Mapping[str, Mapping[str, Mapping[str, object]]] = {"native": LEGENDS, "cancer": CANCER}
    if legend not in tables or provider not in tables[legend]:
        raise DataError(
            "no such legend", code="PG-D21", where=f"{provider} {legend}",
            why=f"providers are {', '.join(PROVIDERS)}, legends {', '.join(tables)}",
        )  # fmt: skip
    values = tables[legend][provider]
    classes = {
        name: list(value) if isinstance(value, tuple) else [value] for name, value in values.items()
    }
    # A hundred slides have no mask: they are tiled by their tissue alone.
    return {"use": "classes", "missing": "tissue", "classes": classes}


def _rows(path: Path) -> tuple[list[Member], list[str]]:
    """The rows of train.csv, and what is odd about some."""
    table = read_cells(path)
    place = _columns(path, table)
    members, problems, lines = [], [], dict[str, int]()
    for line, row in table.rows:
        slide, provider, grade, gleason = (row[i] for i in place)
        for what, value, known in (
            ("data_provider", provider, PROVIDERS),
            ("isup_grade", grade, tuple("012345")),
            ("gleason_score", gleason, tuple(ISUP_OF)),
        ):
            if value not in known:
                raise bad(
                    path, f"not a {what} of PANDA",
                    f"line {line}: {value!r} of {slide!r} is none of {', '.join(known)}",
                )  # fmt: skip
        if not slide:
            raise bad(path, "row without an image_id", f"line {line}")
        if slide in lines:
            raise bad(path, "slide stands twice", f"{slide!r} in lines {lines[slide]} and {line}")
        lines[slide] = line
        if ISUP_OF[gleason] != grade:
            problems.append(
                f"line {line}: {slide} is ISUP {grade}, but Gleason {gleason} is {ISUP_OF[gleason]}"
            )
        members.append(
            Member(
                slide,
                f"train_images/{slide}.tiff",
                grade,
                site=provider,
                more={"gleason": gleason},
            )
        )
    return members, problems


def _columns(path: Path, table: Cells) -> list[int]:
    lacking = [name for name in COLUMNS if name not in table.header]
    if lacking:
        raise bad(
            path, f"no column {lacking[0]!r}", f"it has: {', '.join(table.header)}",
            f"PANDA's train.csv has {', '.join(COLUMNS)}",
        )  # fmt: skip
    return [table.header.index(name) for name in COLUMNS]


def _flagged(members: list[Member], lists: Lists) -> list[Member]:
    if lists.noisy and lists.clean:
        raise DataError(
            "both a noisy and a clean list", code="PG-D21",
            why="one names the slides to leave out, the other those to keep", hint="give one",
        )  # fmt: skip
    known = {member.slide for member in members}
    groups = {s: f"dup-{g}" for s, g in _listed(lists.duplicates, known, "group_id").items()}
    noisy = set(_listed(lists.noisy, known, keep="0"))
    if lists.clean:
        noisy = known - set(_listed(lists.clean, known, keep="1"))
    reasons = _listed(lists.suspicious, known, "reason")
    found = []
    for m in members:
        names = {"noisy": m.slide in noisy, "suspicious": m.slide in reasons}
        flags = frozenset(name for name, has in names.items() if has)
        more = {**m.more, "suspicion": reasons.get(m.slide, "")} if reasons else m.more
        found.append(replace(m, group=groups.get(m.slide, ""), flags=flags, more=more))
    return found


def _listed(
    path: Path | None, known: set[str], column: str | None = None, keep: str | None = None
) -> dict[str, str]:
    """Slide -> its value in a column (empty without one), of the rows of a list.

    With `keep` and a column `KEPT` only rows where that is `keep` count.
    """
    if path is None:
        return {}
    table = read_cells(path)
    wanted = ["image_id", *([column] if column else [])]
    lacking = [name for name in wanted if name not in table.header]
    if lacking:
        raise bad(path, f"no column {lacking[0]!r}", f"it has: {', '.join(table.header)}")
    name, value = table.header.index("image_id"), table.header.index(wanted[-1])
    ratio = table.header.index(KEPT) if keep is not None and KEPT in table.header else None
    found = {}
    for line, row in table.rows:
        if row[name] not in known:
            raise bad(
                path, "a slide that is not in train.csv", f"line {line}: {row[name]!r}",
                "is the list of this data set?",
            )  # fmt: skip
        said = keep if ratio is None else row[ratio].removesuffix(".0")
        if said not in (None, "0", "1"):
            raise bad(path, f"neither 0 nor 1 in {KEPT}", f"line {line}: {row[ratio or 0]!r}")
        if said == keep:
            found[row[name]] = row[value] if column else ""
    return found


def _with_masks(root: Path, members: list[Member]) -> list[Member]:
    folder = root / "train_label_masks"
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    found = []
    for m in members:
        name = f"{m.slide}_mask.tiff"
        if name in there:
            found.append(replace(m, annotation=f"train_label_masks/{name}"))
        else:  # without the folder nothing is known of masks
            found.append(replace(m, flags=m.flags | {"no_mask"}) if there else m)
    return found


def _counts(members: list[Member]) -> dict[str, int]:
    there = [m for m in members if MISSING not in m.flags]
    grades, sites = Counter(m.label for m in there), Counter(m.site for m in there)
    return {
        "slides": len(there), **sites, "masks": sum(bool(m.annotation) for m in there),
        **{f"isup {grade}": count for grade, count in grades.items()},
    }  # fmt: skip


def _notes(members: list[Member], lists: Lists) -> list[str]:
    notes = ["PANDA names no patients: each slide counts as a patient of its own"]
    groups = Counter(m.group for m in members if m.group)
    if lists.duplicates:
        notes.append(
            f"{sum(groups.values()):,} slides in {len(groups):,} groups of duplicates; the largest "
            f"has {max(groups.values(), default=0)}"
        )
    else:
        notes.append("near-duplicates are not known without --duplicates")
    noisy = sum("noisy" in m.flags for m in members)
    if lists.noisy or lists.clean:
        notes.append(f"{noisy:,} slides are marked noisy, {len(members) - noisy:,} are left")
    return notes
