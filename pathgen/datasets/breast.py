"""What BRACS and BRIGHT share: lesion subtypes, their groups, and folders named by them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pathgen.datasets.reading import child, unknown_layout

SUBTYPES = ("N", "PB", "UDH", "FEA", "ADH", "DCIS", "IC")
#: Group of each subtype, as BRACS names its folders.
GROUPS: Mapping[str, str] = {
    "N": "BT",
    "PB": "BT",
    "UDH": "BT",
    "FEA": "AT",
    "ADH": "AT",
    "DCIS": "MT",
    "IC": "MT",
}
#: Official part -> names that its folder has.
PART_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "valid": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
_GROUP_NAMES: Mapping[str, str] = {
    "bt": "BT", "groupbt": "BT", "benign": "BT", "noncancerous": "BT",
    "at": "AT", "groupat": "AT", "atypical": "AT", "precancerous": "AT",
    "mt": "MT", "groupmt": "MT", "malignant": "MT", "cancerous": "MT",
}  # fmt: skip


class Place(NamedTuple):
    """A slide file and what its folders say; empty where they say nothing."""

    path: Path
    group: str
    subtype: str


def parts_of(dataset: str, root: Path) -> dict[str, Path]:
    """Official part -> its folder. Raises DataError (PG-D20) without a training folder."""
    found = {part: child(root, *names) for part, names in PART_FOLDERS.items()}
    there = {part: folder for part, folder in found.items() if folder and folder.is_dir()}
    if "train" not in there:
        raise unknown_layout(dataset, root, "no folder train")
    return there


def slides_below(dataset: str, folder: Path) -> Iterator[Place]:
    """Slides (.svs) below a part's folder, with the classes that the folders between name.

    Raises:
        DataError: PG-D20, a folder above a slide is no class, or group and subtype disagree.
    """
    for here, names, files in os.walk(folder):
        names.sort()
        names[:] = [name for name in names if name.casefold() not in ("rois", "roi")]
        slides = sorted(name for name in files if name.lower().endswith(".svs") and name[0] != ".")
        if not slides:
            continue
        group, subtype = _classes(dataset, folder, Path(here).relative_to(folder).parts)
        for name in slides:
            yield Place(Path(here) / name, group, subtype)


def _classes(dataset: str, folder: Path, parts: Sequence[str]) -> tuple[str, str]:
    group = subtype = ""
    for part in parts:
        key = _folded(part)
        if key in _SUBTYPE_NAMES:
            subtype = _SUBTYPE_NAMES[key]
        elif key in _GROUP_NAMES:
            group = _GROUP_NAMES[key]
        elif key not in ("wsis", "wsi"):
            raise unknown_layout(
                dataset, folder, f"folder {part!r} is no class: {', '.join(SUBTYPES)}, "
                "groups BT, AT, MT (benign, atypical, malignant; non-cancerous, pre-cancerous, "
                "cancerous)",
                "move other files away, or rename the folder",
            )  # fmt: skip
    if group and subtype and GROUPS[subtype] != group:
        raise unknown_layout(
            dataset, folder, f"{'/'.join(parts)}: {subtype} is of group {GROUPS[subtype]}",
            "the slide is in the wrong folder",
        )  # fmt: skip
    return group or GROUPS.get(subtype, ""), subtype


def _folded(name: str) -> str:
    """``Type_PB``, ``1_PB`` and ``pb`` alike."""
    key = "".join(c for c in name.casefold() if c.isalnum())
    return key.lstrip("0123456789").removeprefix("type")


_SUBTYPE_NAMES = {_folded(name): name for name in SUBTYPES}
