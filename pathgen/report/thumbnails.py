"""Thumbnails that `tile` wrote, by slide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathgen.data.labels import slide_key
from pathgen.report.collect import Found, Unreadable, read_object


class Thumbnails:
    """Of all tiles folders of a report. A slide is known by its name, or by the end of its path
    where only one slide ends so."""

    def __init__(self, found: Found) -> None:
        self._by_end: dict[str, set[Path]] = {}
        for folder in (*found.tiles, *found.pictures):
            for name, path in _listed(folder, found.root):
                parts = slide_key(name).split("/")
                for i in range(len(parts)):
                    self._by_end.setdefault("/".join(parts[i:]), set()).add(path)

    def __bool__(self) -> bool:
        return bool(self._by_end)

    def of(self, slide: str) -> Path | None:
        """The thumbnail's file; None when it is not known, or of several slides."""
        parts = slide_key(slide).split("/")
        for i in range(len(parts)):
            fits = self._by_end.get("/".join(parts[i:]), set())
            if len(fits) == 1:
                return next(iter(fits))
        return None


def _listed(folder: Path, root: Path) -> list[tuple[str, Path]]:
    """Slides of a ledger and their thumbnails; none of a ledger that is damaged."""
    try:
        rows = read_object(folder / "slides.json", root).get("slides")
    except Unreadable:
        return []  # the section of these tiles says so
    found = []
    for row in rows if isinstance(rows, list) else []:
        path = _path(folder, row)
        if path is not None:
            found.append((str(row["slide"]), path))
    return found


def _path(folder: Path, row: Any) -> Path | None:
    if not isinstance(row, Mapping) or not isinstance(row.get("thumbnail"), str):
        return None
    path = (folder / row["thumbnail"]).resolve()
    return path if path.is_relative_to(folder.resolve()) and path.is_file() else None
