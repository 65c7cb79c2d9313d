"""Files that pathgen has not made are neither replaced nor followed out of their folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pathgen.errors import ConfigError, StoreError

#: In the head of every page that pathgen writes.
PAGE = b"pathgen report</title>"


def inside(folder: Path, name: Any, said_in: Path) -> Path:
    """Where the file `said_in` says that something lies, relative to `folder`.

    Raises:
        StoreError: PG-O20, it is no path, or would lead out of the folder.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise astray(name, said_in)
    path = Path(name)
    if path.anchor or not path.parts or ".." in path.parts:
        raise astray(name, said_in)
    return folder / path


def astray(name: Any, said_in: Path) -> StoreError:
    """PG-O20."""
    return StoreError(
        "a path leads out of its folder", code="PG-O20", where=said_in, why=f"it names {name!r}",
        hint="pathgen writes no such files: do not use it, or make it anew",
    )  # fmt: skip


def taken(path: Path, hint: str = "move it away, or choose another --out") -> ConfigError:
    """PG-O19 for a file that would be replaced, and was not made by pathgen."""
    return ConfigError(
        "a file of yours would be replaced", code="PG-O19", where=path,
        why="pathgen has not made it", hint=hint,
    )  # fmt: skip


def spare_page(path: Path) -> None:
    """Raise ConfigError (PG-O19) when an HTML page of another program is there."""
    if os.path.lexists(path) and PAGE not in _bytes(path):
        raise taken(path)


def spare_table(path: Path, columns: Sequence[str]) -> None:
    """Raise ConfigError (PG-O19) when a file that does not begin with `columns` is there."""
    if os.path.lexists(path) and not is_table(path, columns):
        raise taken(path)


def is_table(path: Path, columns: Sequence[str]) -> bool:
    """Whether a CSV file has these columns first; versions of pathgen differ in the others."""
    line = _bytes(path).partition(b"\n")[0].decode("utf-8", "replace").rstrip("\r")
    return line.split(",")[: len(columns)] == list(columns)


def _bytes(path: Path) -> bytes:
    """The content; none of what is no file, or cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
