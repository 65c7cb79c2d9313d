"""torchmil: one `.npy` a bag for features, labels, instance labels and grid coordinates.

Castro-Macias FM et al. torchmil: a PyTorch-based library for deep multiple instance learning.
arXiv 2509.08129, 2025.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.exchange.entries import Entry, need_features, one_encoder, slide_classes
from pathgen.exchange.export import ExportConfig, Log
from pathgen.exchange.files import write_csv, write_json, write_npy
from pathgen.exchange.findings import Finding, over
from pathgen.exchange.geometry import grid_of

CONSUMER = "torchmil ProcessedMILDataset"
#: torchmil's own default: patches side by side and corner to corner are neighbors.
DISTANCE = 1.5


def write(entries: Sequence[Entry], folder: Path, config: ExportConfig, log: Log) -> None:
    """``features/``, ``coords/`` (column, row), and ``labels/``, ``inst_labels/`` where known."""
    entries = one_encoder(entries, config.encoder)
    classes = slide_classes(entries)
    with_instances = any(entry.patch_labels is not None for entry in entries)
    names: tuple[str, ...] = ()
    for entry in log.each(entries):
        need_features(entry)
        if not len(entry):
            log.skipped[entry.id] = "no patches; a bag cannot be empty"
            continue
        write_npy(
            folder / "features" / f"{entry.id}.npy",
            entry.features[0].features().astype(np.float32),
        )  # fmt: skip
        write_npy(folder / "coords" / f"{entry.id}.npy", _cells(entry, log))
        if entry.label is not None:
            label = np.array([classes.index(entry.label)], np.int64)
            write_npy(folder / "labels" / f"{entry.id}.npy", label)
        elif classes:
            log.most("without a label: leave them out of bag_names for training", 0, entry.id)
        if with_instances:
            labels = entry.patch_labels
            values = np.full(len(entry), -1) if labels is None else labels
            write_npy(folder / "inst_labels" / f"{entry.id}.npy", values.astype(np.int64))
            names = entry.classes or names
    if with_instances:
        log.note("instance labels that are not known are -1")
    write_json(folder / "classes.json", {"labels": list(classes), "inst_labels": list(names)})
    rows = [
        {"bag_name": e.id, "patient": e.patient, "label": e.label}
        for e in entries if e.id not in log.skipped
    ]  # fmt: skip
    write_csv(folder / "bags.csv", rows, ["bag_name", "patient", "label"])


def _cells(entry: Entry, log: Log) -> NDArray[Any]:
    """Column and row of each patch; positions in strides where there is no common grid."""
    known = entry.grid[:, ::-1]
    if len(known) and (known >= 0).all():
        return np.asarray(known - known.min(axis=0))
    stride = entry.geometry.stride
    cells = grid_of(entry.coords, stride)
    if cells is None:
        log.most("patches on no common grid: coords are strides, not whole", 0, entry.id)
        low = entry.coords.min(axis=0)
        return np.asarray((entry.coords - low) / np.asarray(stride), np.float32)
    return cells


def edges(cells: NDArray[Any], distance: float = 2**0.5) -> int:
    """How many pairs (i, j), both ways, torchmil takes for neighbors."""
    from scipy.spatial import KDTree

    if len(cells) < 2:
        return 0
    return 2 * len(KDTree(cells).query_pairs(distance + 1e-9))


def check(folder: Path) -> Iterator[Finding]:
    """Every bag, read as `ProcessedMILDataset` does."""
    yield from over(sorted((folder / "features").glob("*.npy")), CONSUMER, _check_bag)
    for path in sorted((folder / "inst_labels").glob("*.h5")):
        yield Finding.error(path, CONSUMER, "instance labels are read as .npy", "save it as .npy")


def _check_bag(path: Path) -> Iterator[Finding]:
    features, neighbors = _load(path), ""
    if features.ndim != 2 or not np.isfinite(features).all():
        yield Finding.error(path, CONSUMER, "not (N, D) finite numbers", str(features.shape))
        return
    for part in ("coords", "inst_labels", "labels"):
        place = path.parent.parent / part / path.name
        if not place.parent.is_dir():
            continue
        if not place.is_file():
            yield Finding.error(place, CONSUMER, f"the bag has no {part}")
            return
        values = _load(place)
        if part != "labels" and len(values) != len(features):
            yield Finding.error(place, CONSUMER, f"{len(values)} rows, {len(features)} features")
            return
        if part == "coords":
            found = edges(values, DISTANCE)
            neighbors = f", {found} neighbors"
            if len(values) > 1 and not found:
                yield Finding.warning(
                    place, CONSUMER, "no patch has a neighbor",
                    "if coords are pixels, divide them by the level-0 stride of the patches",
                )  # fmt: skip
    yield Finding.good(path, CONSUMER, f"{len(features)} x {features.shape[1]}{neighbors}")


def _load(path: Path) -> NDArray[Any]:
    values: NDArray[Any] = np.load(path, allow_pickle=False)
    return values
