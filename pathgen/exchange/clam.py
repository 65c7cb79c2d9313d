"""CLAM: coordinates, features, lists, and the old layout with pixels.

Lu MY et al. Data-efficient and weakly supervised computational pathology on whole-slide images.
Nat Biomed Eng 2021;5:555-70. Layout as its `create_patches_fp` and `extract_features_fp` leave it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pathgen.exchange.entries import Entry, one_encoder
from pathgen.exchange.export import ExportConfig, Log
from pathgen.exchange.files import spans, write_csv, write_h5, write_pt
from pathgen.exchange.findings import Finding, over
from pathgen.exchange.geometry import ClamSize
from pathgen.exchange.hdf5 import Described, describe, read_counts
from pathgen.exchange.slidepixels import exact, note_normalized
from pathgen.extras import need

#: Columns of process_list_autogen.csv after slide_id, process and status, with CLAM's defaults:
#: its programs want the columns, and pathgen found the tissue in another way.
LIST_COLUMNS: dict[str, Any] = {
    "seg_level": -1, "sthresh": 8, "mthresh": 7, "close": 4, "use_otsu": False, "keep_ids": "none",
    "exclude_ids": "none", "a_t": 100, "a_h": 16, "max_n_holes": 8, "vis_level": -1,
    "line_thickness": 250, "use_padding": True, "contour_fn": "four_pt",
}  # fmt: skip
CONSUMER = "CLAM"


def write(entries: Sequence[Entry], folder: Path, config: ExportConfig, log: Log) -> None:
    """``patches/``, ``h5_files/``, ``pt_files/``, ``dataset.csv``, ``process_list_autogen.csv``."""
    listed = []
    for entry in log.each(one_encoder(entries, config.encoder)):
        if not len(entry):
            log.skipped[entry.id] = "no patches; CLAM has no file for such a slide"
            continue
        listed.append(entry)
        if entry.patches is not None:
            note_normalized(entry, CONSUMER, log)
            attrs = _attrs(entry, log)
            write_h5(
                folder / "patches" / f"{entry.id}.h5", {"coords": entry.coords}, {"coords": attrs}
            )
        for store in entry.features:
            features = store.features().astype(np.float32)
            write_h5(
                folder / "h5_files" / f"{entry.id}.h5",
                {"features": features, "coords": entry.coords},
            )
            write_pt(folder / "pt_files" / f"{entry.id}.pt", features)
    _write_lists(listed, folder, config, log)


def write_pixels(entries: Sequence[Entry], folder: Path, config: ExportConfig, log: Log) -> None:
    """The layout of CLAM's first versions: pixels as `imgs`, one file a slide."""
    import h5py

    log.note("pixels are stored decoded, about ten times as large as their JPEGs")
    listed = []
    for entry in log.each(entries):
        patches, attrs = entry.need_patches(), _attrs(entry, log)
        if not len(entry):
            log.skipped[entry.id] = "no patches; CLAM has no file for such a slide"
            continue
        listed.append(entry)
        size = patches.spec.size
        path = folder / "patches" / f"{entry.id}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            imgs = file.create_dataset(
                "imgs", (len(entry), size, size, 3), np.uint8, chunks=(1, size, size, 3),
                maxshape=(None, size, size, 3), track_times=False,
            )  # fmt: skip
            for rows in spans(len(entry), 256):
                imgs[rows] = patches.images(rows)
            imgs.attrs["wsi_name"] = attrs.pop("name")
            for name in ("patch_level", "downsample", "level_dim", "downsampled_level_dim"):
                imgs.attrs[name] = attrs[name]
            file.create_dataset(
                "coords", data=entry.coords.astype(np.int32), maxshape=(None, 2),
                chunks=(min(1024, len(entry)), 2), track_times=False,
            )  # fmt: skip
    _write_lists(listed, folder, config, log)


def _attrs(entry: Entry, log: Log) -> dict[str, Any]:
    """Of `coords`: what CLAM's `read_region` needs, and the other names it writes."""
    said: ClamSize = entry.geometry.clam(entry.name)
    if said.rounded > 0.01:
        cut = f"{entry.id}: {said.size} for {entry.geometry.side[0]:.2f}"
        text = f"CLAM reads whole level-0 pixels a side{exact(entry.geometry)}"
        log.most(text, said.rounded, cut)
    if entry.geometry.native_level is None:
        log.most(
            "no level has the resolution of the patches: CLAM reads level 0 with the patch_size "
            f"there and scales to its --target_patch_size{exact(entry.geometry)}", said.size,
            f"{entry.id}: {said.size}",
        )  # fmt: skip
    return {
        "patch_size": said.size, "patch_level": said.level,
        "downsample": np.asarray(said.downsample, np.float64),
        "downsampled_level_dim": np.asarray(said.level_size, np.int64),
        "level_dim": np.asarray(said.level_size, np.int64),
        "name": entry.id, "save_path": "patches",
    }  # fmt: skip


def _write_lists(entries: Sequence[Entry], folder: Path, config: ExportConfig, log: Log) -> None:
    with_patches = [entry for entry in entries if entry.patches is not None]
    if with_patches:
        rows = [
            {"slide_id": entry.id + _suffix(entry, config, log), "process": 0,
             "status": "processed", **LIST_COLUMNS}
            for entry in with_patches
        ]  # fmt: skip
        write_csv(folder / "process_list_autogen.csv", rows, list(rows[0]))
    labeled = [entry for entry in entries if entry.label is not None]
    if labeled:
        write_csv(
            folder / "dataset.csv",
            [
                {"case_id": e.patient or e.id, "slide_id": e.id, "label": e.label} for e in labeled
            ],
            ["case_id", "slide_id", "label"],
        )  # fmt: skip
    if entries and len(labeled) < len(entries):
        missing = len(entries) - len(labeled)
        log.note(f"{missing} of {len(entries)} slides have no label and are not in dataset.csv")


def _suffix(entry: Entry, config: ExportConfig, log: Log) -> str:
    slide = entry.geometry.slide
    known = slide.suffix if slide else None
    if config.slide_suffix is None and known is None:
        log.note("the stores do not say how slide files end; give --slide-suffix, as .svs")
    return config.slide_suffix or known or ""


def check(folder: Path) -> Iterator[Finding]:
    """Reads every file as CLAM does, and says what it would read."""
    yield from over(sorted((folder / "patches").glob("*.h5")), CONSUMER, _check_patches)
    yield from over(sorted((folder / "h5_files").glob("*.h5")), CONSUMER, _check_features)
    tensors = sorted((folder / "pt_files").glob("*.pt"))
    if tensors:
        need("torch", "train")
    yield from over(tensors, CONSUMER, _check_tensor)


def _check_patches(path: Path) -> Iterator[Finding]:
    found = describe(path)
    yield (_check_pixels if "imgs" in found.arrays else _check_coords)(path, found)


def _check_features(path: Path) -> Iterator[Finding]:
    yield read_counts(path, CONSUMER, describe(path))
    if not _beside(path, "pt_files", ".pt").is_file():
        yield Finding.warning(
            path, CONSUMER, "no such file in pt_files", "training reads pt_files by default"
        )


def _beside(path: Path, folder: str, suffix: str) -> Path:
    return path.parent.parent / folder / f"{path.stem}{suffix}"


def _check_coords(path: Path, found: Described) -> Finding:
    coords, attrs = found.arrays.get("coords"), found.attrs.get("coords", {})
    if coords is None or len(coords) != 2 or coords[1] != 2:
        return Finding.error(path, CONSUMER, "no coords (N, 2)", f"it has {found.shapes}")
    missing = [name for name in ("patch_level", "patch_size") if name not in attrs]
    if missing and "target_magnification" in attrs:
        return Finding.error(
            path, CONSUMER, f"attributes missing: {', '.join(missing)}",
            f"this is a TRIDENT file: its patch_size {attrs.get('patch_size')} is counted at "
            f"{attrs['target_magnification']}x; CLAM would have to read "
            f"{attrs.get('patch_size_level0', 'another number of')} pixels at level 0",
        )  # fmt: skip
    if missing:
        return Finding.error(path, CONSUMER, f"attributes missing: {', '.join(missing)}")
    level, size = int(attrs["patch_level"]), int(attrs["patch_size"])
    side0 = attrs.get("patch_size_level0")
    step = float(np.ravel(attrs.get("downsample", 1.0))[0])
    if side0 is not None and abs(size * step - float(side0)) > 1:
        return Finding.error(
            path, CONSUMER, "two senses of patch_size",
            f"CLAM reads {size} pixels of level {level}, {size * step:g} at level 0, but "
            f"patch_size_level0 says {float(side0):g}",
        )  # fmt: skip
    dims = np.ravel(attrs.get("level_dim", (0, 0)))
    if level > 0 and not (len(dims) and dims[0]):
        return Finding.warning(
            path, CONSUMER, f"level {level} is not described", "CLAM fails if the slide lacks it"
        )
    return Finding.good(
        path, CONSUMER, f"{coords[0]} patches of {size} pixels at level {level} ({step:g}:1)"
    )


def _check_pixels(path: Path, found: Described) -> Finding:
    shape, attrs = found.arrays["imgs"], found.attrs.get("imgs", {})
    if len(shape) != 4 or shape[-1] != 3 or found.dtypes["imgs"] != "uint8":
        return Finding.error(path, CONSUMER, "imgs is not uint8 (N, P, P, 3)", found.shapes)
    missing = [name for name in ("patch_level", "wsi_name", "downsample") if name not in attrs]
    if missing:
        return Finding.error(path, CONSUMER, f"attributes missing: {', '.join(missing)}")
    return Finding.good(path, CONSUMER, f"{shape[0]} images of {shape[1]} pixels")


def _check_tensor(path: Path) -> Iterator[Finding]:
    import torch

    tensor = torch.load(path, weights_only=True, map_location="cpu")
    beside = _beside(path, "h5_files", ".h5")
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 2:
        yield Finding.error(path, CONSUMER, "not one tensor (N, D)")
    elif beside.is_file() and describe(beside).arrays.get("features") != tuple(tensor.shape):
        yield Finding.error(path, CONSUMER, "another length than its h5 file")
    else:
        yield Finding.good(path, CONSUMER, f"{tuple(tensor.shape)} {tensor.dtype}")
