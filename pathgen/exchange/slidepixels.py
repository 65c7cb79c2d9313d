"""Formats of coordinates alone: their reader takes the pixels from the slide itself."""

from __future__ import annotations

from pathgen.exchange.entries import Entry
from pathgen.exchange.export import Log
from pathgen.exchange.geometry import Geometry

#: Tolerances of a scale that are worth giving up for patches read as they stand.
TOLERANCES = (0.01, 0.02, 0.05)


def exact(geometry: Geometry) -> str:
    """How patches come to lie on whole pixels of a level that is not quite at their scale."""
    mean = sum(geometry.side) / 2 / geometry.size
    off = min(abs(step / mean - 1) for step in geometry.downsamples)
    enough = next((one for one in TOLERANCES if off <= one), None)
    if enough is None or geometry.native_level is not None:
        return ""
    return f"; patches tiled with --set mpp_tolerance={enough:g} are pixels of a level"


def note_normalized(entry: Entry, consumer: str, log: Log) -> None:
    """Say so where the stored pixels are not those of the slide."""
    if entry.patches is None or entry.features:
        return
    found = entry.patches.attrs.get("normalization") or {}
    if found.get("method") not in (None, "none"):
        log.most(
            f"{consumer} reads the pixels of the slide, not the stain-normalized ones of the store",
            0, entry.id,
        )  # fmt: skip
