"""A folder of image files: one folder a slide, and a CSV of places and measures."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pathgen.exchange.entries import Entry
from pathgen.exchange.export import ExportConfig, Log
from pathgen.exchange.files import spans, suffix_of, write_csv
from pathgen.exchange.findings import Finding, over
from pathgen.stores.codec import decode_patch

CONSUMER = "ImageFolder"
COLUMNS = ("file", "slide", "x", "y", "row", "column", "label", "patient")


def write(entries: Sequence[Entry], folder: Path, config: ExportConfig, log: Log) -> None:
    """``<slide>/<slide>_<x>_<y>.jpg`` with the bytes that are stored, and ``coords.csv``."""
    measures: dict[str, None] = {}
    for entry in entries:
        measures.update(dict.fromkeys(entry.need_patches().measures))
    rows: list[dict[str, Any]] = []
    for entry in log.each(entries):
        if not len(entry):
            log.skipped[entry.id] = "no patches"
            continue
        (folder / entry.id).mkdir()
        rows += _write_slide(entry, folder)
    write_csv(folder / "coords.csv", rows, [*COLUMNS, *measures])


def _write_slide(entry: Entry, folder: Path) -> Iterator[dict[str, Any]]:
    patches = entry.need_patches()
    seen: set[str] = set()
    for rows in spans(len(entry)):
        grid = patches.grid(rows).tolist()
        measures = {name: patches.measure(name, rows).tolist() for name in patches.measures}
        for i, data in enumerate(patches.encoded(rows)):
            x, y = entry.coords[rows.start + i].tolist()
            name = f"{entry.id}/{entry.id}_{x}_{y}.{suffix_of(data)}"
            if name in seen:  # two patches at one place
                name = f"{entry.id}/{entry.id}_{x}_{y}_{rows.start + i}.{suffix_of(data)}"
            seen.add(name)
            (folder / name).write_bytes(data)
            yield {
                "file": name, "slide": entry.name, "x": x, "y": y, "row": grid[i][0],
                "column": grid[i][1], "label": entry.label, "patient": entry.patient,
                **{key: f"{values[i]:.6g}" for key, values in measures.items()},
            }  # fmt: skip


def check(folder: Path) -> Iterator[Finding]:
    """Every line of coords.csv has its image, and the first images of each slide decode."""
    yield from over([folder / "coords.csv"], CONSUMER, _check)


def _check(path: Path) -> Iterator[Finding]:
    folder = path.parent
    with path.open(encoding="utf-8", newline="") as file:
        names = [row["file"] for row in csv.DictReader(file)]
    images = {p.relative_to(folder).as_posix() for p in folder.glob("*/*") if p.is_file()}
    missing = sorted(set(names) - images)
    if missing:
        yield Finding.error(path, CONSUMER, f"{len(missing)} images are not there", missing[0])
    slides: dict[str, list[Path]] = {}
    for name in sorted(images & set(names)):
        slides.setdefault(name.partition("/")[0], []).append(folder / name)
    for slide, found in slides.items():
        bad = list(over(found[:8], CONSUMER, _check_image))
        yield from bad
        if not bad:
            yield Finding.good(folder / slide, CONSUMER, f"{len(found)} images")


def _check_image(path: Path) -> Iterator[Finding]:
    decode_patch(path.read_bytes())
    yield from ()
