"""What a folder holds, told by the files that mark each kind of output."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pathgen.commit import PREFIX
from pathgen.config import read_yaml
from pathgen.errors import ConfigError, NoInputError

#: Folders below the given one that are looked into.
DEPTH = 4
#: Stages of a pretraining run, in their order.
STAGES = ("dino", "autoencoder", "ldm", "augment", "gen-dino")
#: Files that say a folder is a stage of a run.
_STAGE_FILES = ("provenance.json", "log.jsonl", "done.json")
#: Folders inside outputs that hold nothing of their own to show.
_INNER = frozenset({"checkpoints", "thumbnails", "truth"})
#: No result is larger; what is was not written by pathgen.
_MAX_JSON = 64 * 2**20
KNN, MIL, GENERATION = "pathgen.knn", "pathgen.mil", "pathgen.generation"
COMPARISON = "pathgen.comparison"


class Unreadable(Exception):
    """A file cannot be used; the text says which and why, fit for the page."""


@dataclass
class Found:
    """Paths of outputs below `root`; `notes` name what was found damaged on the way."""

    root: Path
    tiles: list[Path] = field(default_factory=list)
    runs: list[Path] = field(default_factory=list)
    """folders with stages in them"""
    stages: list[Path] = field(default_factory=list)
    """stages that stand alone"""
    mil: list[Path] = field(default_factory=list)
    knn: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    generation: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    """synthetic images beside real ones"""
    predictions: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    """slide-level results that are single files"""
    comparisons: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    """two slide-level results on the same slides"""
    features: list[Path] = field(default_factory=list)
    pictures: list[Path] = field(default_factory=list)
    """tiles from elsewhere, for their thumbnails alone"""
    notes: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        kinds = (
            self.tiles, self.runs, self.stages, self.mil, self.knn, self.generation,
            self.predictions, self.comparisons,
        )  # fmt: skip
        return any(kinds) or bool(self.features)

    def name(self, path: Path) -> str:
        """`path` as seen from the given folder."""
        text = path.relative_to(self.root).as_posix()
        return self.root.name if text == "." else text


def collect(folder: Path) -> Found:
    """Find outputs in `folder`, down to `DEPTH`; drafts, hidden folders and links are passed over.

    Raises:
        NoInputError: PG-N01, no such folder, or nothing in it that pathgen wrote.
    """
    if not folder.is_dir():
        raise NoInputError(
            "no such folder", where=folder, hint="give a folder that a pathgen command wrote"
        )
    found = Found(folder.resolve())
    for place, names in _walk(found.root, found.notes):
        _look(found, place, names)
    if not found:
        raise NoInputError(
            "nothing to report on", where=folder,
            why="; ".join((*_others(folder), *found.notes))
            or "no tiles, run, features or evaluation in it",
            hint="it reports on slides.json of tile, import --slides and refilter; on runs of "
            "pretrain; on features; and on results of knn and train-mil; give such a folder, or "
            "one that holds several",
        )  # fmt: skip
    return found


def _others(folder: Path) -> list[str]:
    """Outputs of pathgen that have no section, and what shows them instead."""
    said = []
    if (folder / "pathgen-export.json").is_file():
        said.append("it is an export, which pathgen verify checks")
    if (folder / "doctor.html").is_file():
        said.append("it is a diagnosis: open its doctor.html")
    if not said and _holds_patches(folder):
        said.append("it holds patch stores without their ledger slides.json")
    return said


def _holds_patches(folder: Path) -> bool:
    from pathgen.stores import find_stores

    try:
        return bool(find_stores(folder, kind="patches"))
    except NoInputError:
        return False


def _look(found: Found, place: Path, names: set[str]) -> None:
    if "slides.json" in names:
        found.tiles.append(place)
    if _is_mil(names):
        found.mil.append(place)
    elif _holds_stages(place):
        found.runs.append(place)
    elif _is_stage(place):
        found.stages.append(place)
        return
    elif _holds_features(found, place, names):
        found.features.append(place)
    for name in sorted(names):
        if name.endswith(".json") and name not in ("slides.json", "commands.json"):
            _look_for_result(found, place / name)


def _look_for_result(found: Found, path: Path) -> None:
    if path.parent in found.mil and path.name == "metrics.json":
        return
    try:
        values = read_json(path, found.root)
    except Unreadable as problem:
        found.notes.append(str(problem))
        return
    if not isinstance(values, dict):
        return
    if values.get("format") == KNN or {"k", "temperature", "accuracy"} <= values.keys():
        found.knn.append((path, values))
    elif values.get("format") == GENERATION:
        found.generation.append((path, values))
    elif values.get("format") == COMPARISON:
        found.comparisons.append((path, values))
    elif values.get("format") == MIL or {"confusion", "classes"} <= values.keys():
        found.predictions.append((path, values))


def _holds_features(found: Found, place: Path, names: set[str]) -> bool:
    """Whether features begin here: a folder inside one of features, or of tiles, counts to that."""
    if not any(name.endswith((".h5", ".zarr")) for name in names):
        return False
    if any(place.is_relative_to(other) for other in (*found.features, *found.tiles)):
        return False
    from pathgen.stores import find_stores

    try:
        return bool(find_stores(place, kind="features"))
    except NoInputError:
        return False


def _is_mil(names: set[str]) -> bool:
    """Also one that has not come to its predictions yet."""
    folds = any(name.startswith(("fold-", "repeat-")) for name in names)
    return "predictions.csv" in names or ("provenance.json" in names and folds)


def _holds_stages(place: Path) -> bool:
    return any(_is_stage(place / stage) for stage in STAGES)


def _is_stage(place: Path) -> bool:
    return any((place / name).is_file() for name in _STAGE_FILES)


def _walk(
    folder: Path, notes: list[str], depth: int = 0, inside: str = ""
) -> Iterator[tuple[Path, set[str]]]:
    """Folders and the names in them, outer ones first; not those that their parent speaks for."""
    try:
        with os.scandir(folder) as entries:
            here = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        notes.append(f"{inside or 'the folder'} cannot be read ({error.strerror}).")
        return
    here = [entry for entry in here if not entry.name.startswith((".", PREFIX))]
    names = {entry.name for entry in here}
    yield folder, names
    holds_stages, is_mil = _holds_stages(folder), _is_mil(names)
    if depth == DEPTH or (_is_stage(folder) and not holds_stages and not is_mil):
        return
    for entry in here:
        if not entry.is_dir(follow_symlinks=False) or entry.name.endswith(".zarr"):
            continue
        spoken_for = (holds_stages and entry.name in STAGES) or (
            is_mil and entry.name.startswith(("fold-", "repeat-", "baselines"))
        )
        if entry.name not in _INNER and not spoken_for:
            yield from _walk(folder / entry.name, notes, depth + 1, f"{inside}{entry.name}/")


# --- reading ---------------------------------------------------------------------------------


def read_json(path: Path, root: Path) -> Any:
    """The value in a JSON file. Raises `Unreadable` when it is missing, too large or not JSON."""
    name = _name(path, root)
    try:
        if path.stat().st_size > _MAX_JSON:
            raise Unreadable(f"{name} is too large to be a result.")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise Unreadable(f"{name} is missing.") from error
    except OSError as error:
        raise Unreadable(f"{name} cannot be read ({error.strerror}).") from error
    except json.JSONDecodeError as error:
        raise Unreadable(f"{name} is not valid JSON (line {error.lineno}).") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(f"{name} is not valid JSON.") from error


def read_object(path: Path, root: Path) -> dict[str, Any]:
    """As `read_json`; `Unreadable` as well when the file holds no object."""
    value = read_json(path, root)
    if not isinstance(value, dict):
        raise Unreadable(f"{_name(path, root)} is not a JSON object.")
    return value


def read_settings(path: Path, root: Path) -> dict[str, Any]:
    """A config.yaml as a mapping. Raises `Unreadable`."""
    try:
        return read_yaml(path)
    except (ConfigError, yaml.YAMLError, UnicodeDecodeError) as error:
        state = "cannot be read as YAML" if path.is_file() else "is missing"
        raise Unreadable(f"{_name(path, root)} {state}.") from error


def read_log(path: Path, root: Path) -> list[dict[str, Any]]:
    """Lines of a log.jsonl, in order, each with a step; the last may be cut short by a stop.

    A log by epoch has the epoch as its step.

    Raises `Unreadable` when the file is missing or another line is broken.
    """
    name = _name(path, root)
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError as error:
        raise Unreadable(f"{name} is missing.") from error
    except OSError as error:
        raise Unreadable(f"{name} cannot be read ({error.strerror}).") from error
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            step = line["step"] if "step" in line else line["epoch"]
            lines.append({**line, "step": int(step)})
        except (ValueError, TypeError, KeyError) as error:
            if number == len(texts):
                break
            raise Unreadable(f"{name} is damaged (line {number}).") from error
    return lines


def read_rows(path: Path, root: Path) -> list[dict[str, str]]:
    """Rows of a CSV file with a header. Raises `Unreadable`."""
    name = _name(path, root)
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            return [
                {str(key): str(value or "") for key, value in row.items() if key is not None}
                for row in csv.DictReader(handle)
            ]
    except FileNotFoundError as error:
        raise Unreadable(f"{name} is missing.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Unreadable(f"{name} cannot be read.") from error


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the items, evenly spaced, in order."""
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
