"""Slideflow: a TFRecord a slide with its index, and bags of features.

Dolezal JM et al. Slideflow: deep learning for digital histopathology with real-time whole-slide
visualization. BMC Bioinformatics 2024;25:134.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.exchange.entries import Entry, one_encoder
from pathgen.exchange.export import ExportConfig, Log
from pathgen.exchange.files import spans, write_csv, write_json, write_pt
from pathgen.exchange.findings import Finding, over
from pathgen.exchange.tfrecord import Span, read_records, write_record
from pathgen.extras import need
from pathgen.stores.codec import decode_patch
from pathgen.stores.patches import PatchStore

CONSUMER = "Slideflow"
FIELDS = {"image_raw", "slide", "loc_x", "loc_y"}


def write(entries: Sequence[Entry], folder: Path, config: ExportConfig, log: Log) -> None:
    """``tfrecords/<px>px_<um>um/``, ``bags/`` and ``annotations.csv``."""
    entries = one_encoder(entries, config.encoder)
    for entry in log.each(entries):
        if not len(entry):
            log.skipped[entry.id] = "no patches; Slideflow has no file for such a slide"
            continue
        places = centers(entry)
        if entry.patches is not None:
            path = folder / "tfrecords" / _label(entry) / f"{entry.id}.tfrecords"
            _write_tfrecord(entry.patches, places, entry.id, path)
        for store in entry.features:
            features = store.features().astype(np.float32)
            write_pt(folder / "bags" / f"{entry.id}.pt", features)
            np.savez(folder / "bags" / f"{entry.id}.index.npz", places)
    bags = [entry for entry in entries if entry.features and entry.id not in log.skipped]
    if bags:
        store, geometry = bags[0].features[0], bags[0].geometry
        known = {"class": store.encoder.get("name"), "kwargs": {"id": store.encoder.get("id")}}
        write_json(
            folder / "bags" / "bags_config.json",
            {
                "extractor": known, "normalizer": None, "num_features": store.dim,
                "tile_px": geometry.size, "tile_um": _microns(bags[0]),
            },
        )  # fmt: skip
    rows = [{"patient": e.patient or e.id, "slide": e.id, "label": e.label} for e in entries]
    write_csv(folder / "annotations.csv", rows, ["patient", "slide", "label"])


def centers(entry: Entry) -> NDArray[np.int64]:
    """Centers of the patches in level-0 pixels, (n, 2), as Slideflow counts places."""
    half = np.asarray(entry.geometry.side) / 2
    return np.floor(entry.coords + half).astype(np.int64)


def _write_tfrecord(patches: PatchStore, places: NDArray[np.int64], slide: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = []
    with path.open("wb") as out:
        for rows in spans(len(patches)):
            for image, (x, y) in zip(patches.encoded(rows), places[rows].tolist(), strict=True):
                example = {"image_raw": image, "slide": slide.encode(), "loc_x": x, "loc_y": y}
                found.append(write_record(out, example))
    index = path.with_name(f"{path.stem}.index.npz")
    np.savez(index, np.array(found, np.int64), locations=places)


def _microns(entry: Entry) -> int | float | None:
    geometry = entry.geometry
    if geometry.target_mpp is None:
        return None
    microns = round(geometry.size * geometry.target_mpp, 2)
    return int(microns) if microns == int(microns) else microns


def _label(entry: Entry) -> str:
    """``256px_128um``: the folder where Slideflow looks for tiles of this size."""
    microns = _microns(entry)
    return f"{entry.geometry.size}px" + ("" if microns is None else f"_{round(microns)}um")


def check(folder: Path) -> Iterator[Finding]:
    """Every TFRecord and bag, read as Slideflow does."""
    yield from over(sorted(folder.rglob("*.tfrecords")), CONSUMER, _check_tfrecord)
    bags = sorted(folder.rglob("*.pt"))
    if bags:
        need("torch", "train")
    yield from over(bags, CONSUMER, _check_bag)


def _check_tfrecord(path: Path) -> Iterator[Finding]:
    found: list[Span] = []
    places: list[tuple[Any, Any]] = []
    for span, example in read_records(path):
        image = example.get("image_raw")
        if set(example) != FIELDS or not isinstance(image, bytes):
            yield Finding.error(path, CONSUMER, f"fields are {', '.join(sorted(example))}")
            return
        if len(found) < 16:
            decode_patch(image)
        found.append(span)
        places.append((example["loc_x"], example["loc_y"]))
    index = path.with_name(f"{path.stem}.index.npz")
    if not index.is_file():
        yield Finding.warning(path, CONSUMER, "no index", "Slideflow makes one when it can write")
        return
    wanted = {"arr_0": np.array(found).reshape(-1, 2), "locations": np.array(places).reshape(-1, 2)}
    with np.load(index, allow_pickle=False) as arrays:
        good = all(n in arrays and np.array_equal(arrays[n], v) for n, v in wanted.items())
    if good:
        yield Finding.good(path, CONSUMER, f"{len(found)} tiles")
    else:
        yield Finding.error(index, CONSUMER, "does not fit its TFRecord", "remove the index")


def _check_bag(path: Path) -> Iterator[Finding]:
    import torch

    bag = torch.load(path, weights_only=True, map_location="cpu")
    with np.load(path.with_name(f"{path.stem}.index.npz"), allow_pickle=False) as arrays:
        rows = len(arrays["arr_0"])
    if bag.ndim != 2 or len(bag) != rows:
        yield Finding.error(path, CONSUMER, f"{tuple(bag.shape)} with {rows} places")
    else:
        yield Finding.good(path, CONSUMER, f"bag {tuple(bag.shape)}")
