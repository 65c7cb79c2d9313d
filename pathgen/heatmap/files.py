"""The folder of one slide.

attention.png  evidence-<class>.png     pictures for people
heatmap.geojson[.gz]                    tiles for QuPath
heatmap.ome.tiff  heatmap.dzi           for viewers
top.jpg  bottom.jpg                     the patches that weigh most and least
prediction.json                         what was said, by which heads, and what the files are
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pathgen import commit
from pathgen.errors import StorageError
from pathgen.heatmap.result import ATTENTION, Heatmap
from pathgen.heatmap.sheets import contact_sheet
from pathgen.provenance import digest

FACTS = "prediction.json"


def heatmap_id(heatmap: Heatmap) -> str:
    """16 hex digits of all that the files depend on, besides the pixels of the slide."""
    return digest([
        heatmap.slide, heatmap.source, heatmap.voices.ids, heatmap.pixels.kind, len(heatmap),
        heatmap.config.model_dump(mode="json", exclude={"batch_size"}),
        digest(heatmap.attention.tolist()),
    ])  # fmt: skip


def write_folder(heatmap: Heatmap, folder: Path, *, overwrite: bool = False) -> Path:
    """All that the config asks for, whole or not at all. Equal heatmaps give equal bytes.

    Raises:
        StorageError: PG-H07, something else has that name.
    """
    found = heatmap_id(heatmap)
    if folder.exists() and not (overwrite and is_ours(folder)):
        if known(folder) == found:
            return folder
        raise StorageError(
            "another heatmap has this name" if is_ours(folder) else "the folder is not a heatmap",
            code="PG-H07", where=folder,
            hint="--overwrite replaces it, or choose another --out" if is_ours(folder)
            else "choose another --out",
        )  # fmt: skip
    with commit.draft(folder) as draft:
        draft.mkdir()
        pictures: dict[str, Any] = {}
        for what, name in picture_names(heatmap).items():
            picture, panel = heatmap.picture(what)
            picture.save(draft / name, "PNG")
            pictures[name] = {"shows": what, **panel.facts()}
        _write_files(heatmap, draft)
        facts = {"kind": "heatmap", "id": found, **heatmap.facts(), "pictures": pictures}
        facts["files"] = sorted(path.name for path in draft.iterdir())
        commit.write_json(draft / FACTS, facts)
    return folder


def _write_files(heatmap: Heatmap, folder: Path) -> None:
    config = heatmap.config
    if config.qupath:
        heatmap.to_qupath(folder / "heatmap.geojson")
    if config.ome != "none":
        heatmap.to_ome_tiff(folder / "heatmap.ome.tiff")
    if config.deepzoom:
        heatmap.to_deepzoom(folder / "heatmap.dzi")
    if config.top and heatmap.pixels.patches(heatmap.place, []) is not None:
        for name, rows, words in (
            ("top.jpg", heatmap.top(config.top), "highest"),
            ("bottom.jpg", heatmap.bottom(config.top), "lowest"),
        ):
            title = f"{heatmap.slide}: {words} attention (level-0 x, y below)"
            contact_sheet(heatmap, rows, title=title).save(folder / name, quality=90)


def picture_names(heatmap: Heatmap) -> dict[str, str]:
    """Map -> file name, each one's own whatever the classes are called."""
    names: dict[str, str] = {}
    for what in heatmap.maps:
        name = "attention.png" if what == ATTENTION else f"evidence-{_safe(what)}.png"
        taken = {other.casefold() for other in names.values()}
        fitting = (n for n in _numbered(name) if n.casefold() not in taken)
        names[what] = next(fitting)
    return names


def _numbered(name: str) -> Iterator[str]:
    stem, _, suffix = name.rpartition(".")
    yield name
    number = 2
    while True:
        yield f"{stem}-{number}.{suffix}"
        number += 1


def _safe(name: str) -> str:
    """Of a class name, what every file system takes."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("._")[:80] or "class"


def is_ours(folder: Path) -> bool:
    """Whether a folder is a heatmap."""
    return known(folder) is not None


def known(folder: Path) -> str | None:
    """The id of the heatmap that a folder holds; None of anything else."""
    try:
        facts = commit.read_json(folder / FACTS)
    except (OSError, ValueError):
        return None
    ours = isinstance(facts, dict) and facts.get("kind") == "heatmap"
    return str(facts.get("id")) if ours else None
