"""What an OME-Zarr image says of itself: versions 0.4 (zarr v2) and 0.5 (zarr v3). No pixels."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathgen.errors import SlideError
from pathgen.tiling.slide import Scale

#: Microns per unit, by the names of the specification and the short ones in use.
_MICRONS = {
    "angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4,
    "meter": 1e6, "inch": 25_400.0, "nm": 1e-3, "um": 1.0, "\u00b5m": 1.0, "\u03bcm": 1.0,
    "mm": 1e3, "cm": 1e4,
}  # fmt: skip
_METADATA = (".zattrs", ".zgroup", ".zarray", ".zmetadata", "zarr.json")
#: More metadata than this is no image's.
_MAX_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Multiscale:
    """One image: its levels as paths below `folder`, finest first."""

    folder: Path
    version: str
    axes: tuple[str, ...]
    levels: tuple[str, ...]
    scale: Scale | None


def is_ome_zarr(path: Path) -> bool:
    """Whether a folder is an OME-Zarr image."""
    if path.name.lower().endswith(".ome.zarr"):
        return True
    facts = _facts(path)
    return any(key in facts for key in ("multiscales", "bioformats2raw.layout", "plate"))


def read_multiscale(path: Path) -> Multiscale:
    """The image in a folder; of several that bioformats2raw wrote, the first.

    Raises:
        SlideError: PG-S02 no image there, PG-S05 metadata that make no sense, PG-S10 a plate.
    """
    facts, folder = _facts(path), path
    if "multiscales" not in facts and "bioformats2raw.layout" in facts:
        folder = path / "0"
        facts = _facts(folder)
    if "multiscales" not in facts:
        plate = "plate" in facts
        raise SlideError(
            "not a slide", code="PG-S10" if plate else "PG-S02", where=path.name,
            why="it is an OME-Zarr plate of many images" if plate
            else "no image (multiscales) in its .zattrs or zarr.json",
            hint="give one image of it" if plate else "check that it was copied whole",
        )  # fmt: skip
    try:
        return _parsed(folder, facts)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise SlideError(
            "OME-Zarr metadata make no sense", code="PG-S05", where=path.name,
            why=f"{type(error).__name__}: {error}", hint="get a fresh copy",
        ) from error  # fmt: skip


def zarr_files(folder: Path) -> Iterator[Path]:
    """Every file of a zarr folder, in a fixed order. Links to folders are not followed."""
    for here, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            yield Path(here, name)


def is_metadata(path: Path) -> bool:
    return path.name in _METADATA


def _facts(path: Path) -> Mapping[str, Any]:
    """The OME attributes of a group; {} where there are none."""
    group = _json(path / "zarr.json")
    if group:
        attributes = group.get("attributes")
        found = attributes.get("ome") if isinstance(attributes, dict) else None
        return found if isinstance(found, dict) else {}
    return _json(path / ".zattrs")


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            return {}
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _parsed(folder: Path, facts: Mapping[str, Any]) -> Multiscale:
    first = facts["multiscales"][0]
    axes = [{"name": a} if isinstance(a, str) else a for a in first.get("axes", ())]
    names = tuple(str(axis["name"]).lower() for axis in axes)
    if sorted(names[-3:]) != ["c", "x", "y"] and sorted(names[-2:]) != ["x", "y"]:
        raise ValueError(f"axes {names} do not end in an image")
    datasets = first["datasets"]
    levels = tuple(str(one["path"]) for one in datasets)
    for level in levels:
        if not level or level.startswith("/") or ".." in level.split("/") or "\\" in level:
            raise ValueError(f"a level at {level!r}")
    steps = _product(
        _steps(datasets[0].get("coordinateTransformations"), len(names)),
        _steps(first.get("coordinateTransformations"), len(names)),
    )
    sides = []
    for name in ("x", "y"):
        axis = names.index(name)
        unit = _MICRONS.get(str(axes[axis].get("unit", "")).lower())
        sides.append(steps[axis] * unit if unit and steps[axis] is not None else None)
    x, y = sides
    scale = None if x is None or y is None else Scale(x, y, "ome")
    version = str(facts.get("version") or first.get("version") or "")
    return Multiscale(folder, version, names, levels, scale)


def _steps(transformations: Any, count: int) -> list[float | None]:
    """The scale of each axis; None where no scale is given."""
    for one in transformations or ():
        if one["type"] == "scale":
            values = [float(value) for value in one["scale"]]
            if len(values) != count or not all(map(math.isfinite, values)):
                raise ValueError(f"a scale of {values} for {count} axes")
            return list(values)
    return [None] * count


def _product(own: list[float | None], shared: list[float | None]) -> list[Any]:
    """Scales of one level times those of all; a level without its own has no known scale."""
    return [a if a is None or b is None else a * b for a, b in zip(own, shared, strict=True)]
