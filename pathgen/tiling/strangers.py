"""Files in an output folder that have the names of `tile`'s, and were not made by it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from pathgen.config import build, parse_yaml, to_yaml
from pathgen.errors import ConfigError, PathgenError
from pathgen.places import is_table, taken
from pathgen.tiling.task import TileConfig

SETTINGS, LEDGER, TABLE, EVENTS = "config.yaml", "slides.json", "slides.csv", "events.jsonl"
#: The columns of slides.csv that all versions begin with.
COLUMNS = ("slide", "state", "reason", "message", "file")


def spare_others(
    out: Path, thumbnails: Iterable[Path], is_settings: Callable[[bytes], bool]
) -> None:
    """Refuse to replace a file of someone else in `out`, before anything is written there.

    All is ours where a ledger of ours is. An earlier run that was stopped before it wrote one has
    left its settings first, and a run of several processes that goes on now, too.

    Args:
        thumbnails: those that would be written and do not belong to a store that is there.
        is_settings: whether the text of config.yaml is one that pathgen would write.

    Raises:
        ConfigError: PG-O19, names the first such file.
    """
    names = [*(out / name for name in (SETTINGS, TABLE, LEDGER, EVENTS)), *thumbnails]
    # Listed before the settings are looked at: another process may be writing them just now, and
    # whatever else it writes comes later.
    there = [path for path in names if os.path.lexists(path)]
    if not there or is_ledger(out / LEDGER):
        return
    settings = out / SETTINGS
    ours = os.path.lexists(settings) and is_settings(_bytes(settings))
    known: dict[str, Callable[[Path], bool]] = {
        SETTINGS: lambda path: ours,
        LEDGER: is_ledger,
        TABLE: lambda path: is_table(path, COLUMNS),
        EVENTS: _is_log,
    }
    for path in there:
        is_ours = known.get(path.name) if path.parent == out else None
        if not (is_ours(path) if is_ours else ours):
            raise taken(path)


def is_tile_settings(text: bytes) -> bool:
    """Whether `tile` wrote these settings: all of them, in its order and its form."""
    try:
        values = parse_yaml(text.decode(), where=SETTINGS)
        return to_yaml(build(TileConfig, values)) == text.decode()
    except (PathgenError, ValueError):
        return False


def spare_settings(given: Path, out: Path, config: TileConfig) -> None:
    """Refuse to write `config` over the file it was read from, where that is a person's.

    Raises:
        ConfigError: PG-O19.
    """
    path = out / SETTINGS
    if not path.exists() or given.resolve() != path.resolve() or is_ledger(out / LEDGER):
        return
    if _bytes(path) != to_yaml(config).encode():
        raise ConfigError(
            "the settings would take the place of the file they come from", code="PG-O19",
            where=given, hint="choose another --out, or another name for the file",
        )  # fmt: skip


def is_ledger(path: Path) -> bool:
    """Whether a file has the form of slides.json."""
    try:
        value = json.loads(_bytes(path))
        return {"counts", "slides"} <= value.keys() and isinstance(value["slides"], list)
    except (ValueError, AttributeError, RecursionError):
        return False


def _is_log(path: Path) -> bool:
    """By its first line; there is none where a process was stopped as it made the file."""
    line = _bytes(path).partition(b"\n")[0]
    try:
        return not line or "slide" in json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return False


def _bytes(path: Path) -> bytes:
    """The content; none of what is no file, or cannot be read."""
    try:
        return path.read_bytes()
    except OSError:
        return b""
