"""TRIDENT: a job folder with coordinates, features and tissue contours.

Zhang A et al. Accelerating data processing and benchmarking of AI models for pathology (TRIDENT).
arXiv 2502.06750, 2025.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pathgen.exchange.contours import mask_of, trident_geojson
from pathgen.exchange.entries import Entry, encoder_folders, folder_of
from pathgen.exchange.export import ExportConfig, Log
from pathgen.exchange.files import write_csv, write_h5, write_json
from pathgen.exchange.findings import Finding, over
from pathgen.exchange.geometry import TridentSize, grid_of
from pathgen.exchange.hdf5 import describe, read_array, read_counts
from pathgen.exchange.slidepixels import exact, note_normalized
from pathgen.exchange.torchmil import edges
from pathgen.tiling.tracing import pieces

CONSUMER = "TRIDENT"
TORCHMIL = "torchmil TridentWSIDataset"
NEEDED = ("patch_size", "level0_magnification", "target_magnification")


def job_folder(size: TridentSize, overlap: int) -> str:
    """``20x_256px_0px_overlap``."""
    return f"{size.nominal:g}x_{size.size}px_{overlap}px_overlap"


def write(entries: Sequence[Entry], folder: Path, config: ExportConfig, log: Log) -> None:
    """``<mag>x_<px>px_<overlap>px_overlap/`` with patches and features; ``contours_geojson/``."""
    encoders = encoder_folders(entries)
    for entry in log.each(entries):
        geometry = entry.geometry
        size = geometry.trident(entry.name)
        _say(entry, size, log)
        note_normalized(entry, CONSUMER, log)
        job = job_folder(size, geometry.overlap)
        attrs = _attrs(entry, size, job)
        coords = entry.coords
        write_h5(
            folder / job / "patches" / f"{entry.id}_patches.h5", {"coords": coords},
            {"coords": attrs},
        )  # fmt: skip
        for store in entry.features:
            name = folder_of(store, encoders)
            place = f"{job}/features_{name}"
            write_h5(
                folder / place / f"{entry.id}.h5",
                {"features": store.features().astype(np.float32), "coords": coords},
                {
                    "features": {"name": entry.id, "savetodir": place, "encoder": name},
                    "coords": attrs,
                },
            )  # fmt: skip
        mask = mask_of(entry)
        if mask is None:
            log.note("the stores hold no tissue contours, so contours_geojson/ is left out")
        else:
            write_json(
                folder / "contours_geojson" / f"{entry.id}.geojson", trident_geojson(pieces(mask))
            )
    labeled = [entry for entry in entries if entry.label is not None]
    if labeled:
        write_csv(
            folder / "labels.csv",
            [{"wsi": e.id, "label": e.label, "patient": e.patient} for e in labeled],
            ["wsi", "label", "patient"],
        )  # fmt: skip


def _attrs(entry: Entry, size: TridentSize, job: str) -> dict[str, Any]:
    slide = entry.geometry.slide
    target = size.target
    known = {"level0_width": slide.width, "level0_height": slide.height} if slide else {}
    return {
        "patch_size": size.size, "patch_size_level0": size.size_level0,
        "level0_magnification": size.level0,
        "target_magnification": int(target) if target == int(target) else target,
        "overlap": entry.geometry.overlap, "name": entry.id, "savetodir": f"{job}/patches",
        **known,
    }  # fmt: skip


def _say(entry: Entry, size: TridentSize, log: Log) -> None:
    if size.rounded > 0.01:
        cut = f"{entry.id}: {size.size_level0} for {entry.geometry.side[0]:.2f}"
        text = f"TRIDENT reads whole level-0 pixels a side{exact(entry.geometry)}"
        log.most(text, size.rounded, cut)
    if size.target != size.nominal:
        nominal = round(size.size * size.level0 / size.nominal)
        log.most(
            f"target_magnification is not quite {size.nominal:g}, with which TRIDENT would read "
            f"another number of pixels than was cut{exact(entry.geometry)}",
            abs(nominal - size.size_level0),
            f"{entry.id}: {size.target:.6g} for {size.size_level0} pixels instead of {nominal}",
        )  # fmt: skip


def check(folder: Path) -> Iterator[Finding]:
    """Every file of every job in `folder`, read as TRIDENT and torchmil do."""
    jobs = sorted(p.parent for p in folder.glob("*/patches") if p.is_dir())
    if (folder / "patches").is_dir():
        jobs.append(folder)
    for job in jobs:
        yield from over(sorted((job / "patches").glob("*.h5")), CONSUMER, _check_coords)
        yield from over(sorted(job.glob("features_*/*.h5")), CONSUMER, _check_features)


def _check_features(path: Path) -> Iterator[Finding]:
    found = describe(path)
    yield read_counts(path, CONSUMER, found)
    if "patch_size_level0" not in found.attrs.get("coords", {}):
        yield Finding.warning(
            path, "TITAN, GigaPath, Patho-Bench", "coords lack patch_size_level0",
            "these slide encoders need it",
        )  # fmt: skip


def _check_coords(path: Path) -> Iterator[Finding]:
    found = describe(path)
    coords, attrs = found.arrays.get("coords"), found.attrs.get("coords", {})
    if coords is None or len(coords) != 2 or coords[1] != 2:
        yield Finding.error(path, CONSUMER, "no coords (N, 2)", f"it has {found.shapes}")
        return
    missing = [name for name in NEEDED if name not in attrs]
    if missing and "patch_level" in attrs:
        yield Finding.warning(
            path, CONSUMER, f"attributes missing: {', '.join(missing)}",
            "TRIDENT falls back to its reader of CLAM files and takes patch_size at patch_level",
        )  # fmt: skip
        return
    if missing:
        yield Finding.error(path, CONSUMER, f"attributes missing: {', '.join(missing)}")
        return
    size = int(attrs["patch_size"])
    ratio = float(attrs["level0_magnification"]) / float(attrs["target_magnification"])
    reads = round(size * ratio)
    side0 = attrs.get("patch_size_level0")
    if side0 is not None and abs(reads - float(side0)) > 1:
        yield Finding.error(
            path, CONSUMER, "two senses of patch_size",
            f"by its magnifications TRIDENT reads {reads} level-0 pixels, but patch_size_level0 "
            f"says {float(side0):g}",
        )  # fmt: skip
    elif "patch_level" in attrs and abs(reads - size * _step(attrs)) > 1:
        yield Finding.error(
            path, CONSUMER, "two senses of patch_size",
            f"TRIDENT reads {reads} level-0 pixels and CLAM {size * _step(attrs):g}: the file "
            "mixes both dialects",
        )  # fmt: skip
    else:
        yield Finding.good(
            path,
            CONSUMER,
            f"{coords[0]} patches of {reads} level-0 pixels, {size} at "
            f"{float(attrs['target_magnification']):g}x",
        )
    yield from _check_graph(path, attrs, size, reads)


def _step(attrs: dict[str, Any]) -> float:
    return float(np.ravel(attrs.get("downsample", 1.0))[0])


def _check_graph(path: Path, attrs: dict[str, Any], size: int, side0: int) -> Iterator[Finding]:
    """torchmil divides level-0 positions by a patch size: which one gives the true neighbors?"""
    coords = read_array(path, "coords").astype(np.int64)
    overlap = int(attrs.get("overlap", 0))
    stride = side0 * (size - overlap) / size
    cells = grid_of(coords, (stride, stride))
    if cells is None or len(coords) < 2:
        return
    true = edges(cells)
    asked = edges((coords / size).astype(int))
    if asked == true:
        return
    right = edges((coords / stride).astype(int))
    fix = f"patch_size={stride:g}" if right == true else "an export --as torchmil"
    yield Finding.warning(
        path, TORCHMIL, f"{asked} of {true} neighbors with patch_size={size}",
        f"it divides level-0 positions by patch_size; give it {fix}",
    )  # fmt: skip
