"""STAMP: features with positions in microns, a slide table and a clini table.

El Nahhas OSM et al. From whole-slide image to biomarker prediction: end-to-end weakly supervised
deep learning in computational pathology. Nat Protoc 2025;20:293-316.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pathgen.errors import DataError
from pathgen.exchange.entries import Entry, encoder_folders, folder_of, need_features
from pathgen.exchange.export import ExportConfig, Log
from pathgen.exchange.files import write_csv, write_h5
from pathgen.exchange.findings import Finding, over
from pathgen.exchange.geometry import without_scale
from pathgen.exchange.hdf5 import describe, read_array, read_counts
from pathgen.stores.features import FeatureStore

CONSUMER = "STAMP"


def write(entries: Sequence[Entry], folder: Path, config: ExportConfig, log: Log) -> None:
    """``<encoder>/<slide>.h5``, ``slide_table.csv``; ``clini_table.csv`` where labels are known."""
    folders = encoder_folders(entries)
    for entry in log.each(entries):
        need_features(entry)
        for store in entry.features:
            _write_one(entry, store, folder, folder_of(store, folders))
    unknown = sum(entry.patient is None for entry in entries)
    if unknown:
        log.note(f"{unknown} slides have no patient: each counts as a patient of its own")
    rows = [{"PATIENT": e.patient or e.id, "FILENAME": f"{e.id}.h5"} for e in entries]
    write_csv(folder / "slide_table.csv", rows, ["PATIENT", "FILENAME"])
    _write_clini(entries, folder)


def _write_one(entry: Entry, store: FeatureStore, folder: Path, name: str) -> None:
    geometry = entry.geometry
    if geometry.mpp is None or geometry.target_mpp is None:
        raise DataError(
            "pixel size of the slide is not known", code="PG-F02", where=entry.name,
            why="STAMP counts in microns", hint=without_scale(geometry),
        )  # fmt: skip
    features = store.features().astype(np.float32)
    largest = float(np.abs(features).max()) if len(features) else 0.0
    if largest > float(np.finfo(np.float16).max):
        raise DataError(
            "features do not fit into half precision", code="PG-F03", where=entry.name,
            why=f"STAMP stores float16, at most 65504; the largest is {largest:g}",
            hint="scale the features, or export as clam or trident",
        )  # fmt: skip
    microns = entry.coords * np.asarray(geometry.mpp)
    write_h5(
        folder / name / f"{entry.id}.h5",
        {"feats": features.astype(np.float16), "coords": microns.astype(np.float32)},
        {
            # No stamp_version: a reader refuses those newer than its own.
            "": {
                "extractor": name, "unit": "um", "feat_type": "tile",
                "tile_size_um": float(geometry.size * geometry.target_mpp),
                "tile_size_px": geometry.size,
            },
        },
    )  # fmt: skip


def _write_clini(entries: Sequence[Entry], folder: Path) -> None:
    """One label a patient."""
    labels: dict[str, str] = {}
    for entry in entries:
        if entry.label is None:
            continue
        patient = entry.patient or entry.id
        if labels.setdefault(patient, entry.label) != entry.label:
            raise DataError(
                "a patient with two labels", code="PG-F03", where=patient,
                why=f"{labels[patient]!r} and {entry.label!r}; STAMP has one label a patient",
                hint="give labels of patients with --labels",
            )  # fmt: skip
    if labels:
        rows = [{"PATIENT": p, "label": label} for p, label in sorted(labels.items())]
        write_csv(folder / "clini_table.csv", rows, ["PATIENT", "label"])


def check(folder: Path) -> Iterator[Finding]:
    """Every feature file, read as STAMP's bag reader does."""
    yield from over(sorted(folder.rglob("*.h5")), CONSUMER, _check_one)


def _check_one(path: Path) -> Iterator[Finding]:
    found = describe(path)
    attrs = found.attrs[""]
    counted = read_counts(path, CONSUMER, found, "feats")
    if counted.state != "ok":
        yield counted
    elif "stamp_version" in attrs:
        yield Finding.warning(
            path, CONSUMER, f"stamp_version {attrs['stamp_version']}",
            "an older STAMP than that refuses the file",
        )  # fmt: skip
    elif attrs.get("unit") != "um":
        yield Finding.error(
            path, CONSUMER, "unit is not um",
            "STAMP guesses the size of a tile from distances near 224, and fails otherwise",
        )  # fmt: skip
    elif not {"tile_size_um", "tile_size"} & attrs.keys():
        yield Finding.error(path, CONSUMER, "no tile_size_um")
    else:
        yield _check_stride(path, float(attrs.get("tile_size_um", attrs.get("tile_size", 0))))


def _check_stride(path: Path, microns: float) -> Finding:
    """Positions in microns lie about a tile apart; those in pixels do not."""
    coords = read_array(path, "coords").astype(np.float64)
    steps = np.diff(np.unique(np.round(coords[:, 0], 1))) if len(coords) else np.empty(0)
    if len(steps) and steps.min() > 1.5 * microns:
        return Finding.warning(
            path, CONSUMER, f"tiles of {microns:g} um lie {steps.min():g} apart",
            "coords may be pixels instead of microns",
        )  # fmt: skip
    return Finding.good(path, CONSUMER, f"{len(coords)} tiles of {microns:g} um")
