"""WebDataset: tar files of image and JSON pairs, read one after the other at disk speed."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pathgen.exchange.entries import Entry
from pathgen.exchange.export import ExportConfig, Log
from pathgen.exchange.files import spans, suffix_of, write_json
from pathgen.exchange.findings import Finding, over
from pathgen.stores.codec import decode_patch

CONSUMER = "WebDataset"


def write(entries: Sequence[Entry], folder: Path, config: ExportConfig, log: Log) -> None:
    """``shard-000000.tar`` ... with ``<slide>_<row>.jpg`` and ``.json``; ``index.json``."""
    shards = _Shards(folder, config.shard_size)
    with shards:
        for entry, key in zip(log.each(entries), _keys(entries), strict=True):
            if not len(entry):
                log.skipped[entry.id] = "no patches"
                continue
            for row, (image, facts) in enumerate(_patches(entry)):
                shards.add(f"{key}_{row:07d}", image, facts)
    total = sum(shards.counts.values())
    write_json(folder / "index.json", {"shards": shards.counts, "patches": total})


def _keys(entries: Sequence[Entry]) -> list[str]:
    """A name a slide without dots: readers take what follows the first dot for the kind."""
    keys = [re.sub(r"[^A-Za-z0-9_-]+", "_", entry.id) for entry in entries]
    taken = Counter(keys)
    return [key if taken[key] == 1 else f"{key}-{i}" for i, key in enumerate(keys)]


def _patches(entry: Entry) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Image file and what is known of each patch."""
    patches, geometry = entry.need_patches(), entry.geometry
    labels, classes = entry.patch_labels, entry.classes
    shared = {
        "slide": entry.name, "patch_size": geometry.size,
        "patch_size_level0": patches.patch_size_level0, "mpp": geometry.target_mpp,
    }  # fmt: skip
    known = {"label": entry.label, "patient": entry.patient}
    shared |= {name: value for name, value in known.items() if value is not None}
    for rows in spans(len(entry)):
        images = patches.encoded(rows)
        grid = patches.grid(rows).tolist()
        measures = {name: patches.measure(name, rows) for name in patches.measures}
        for i, (x, y) in enumerate(entry.coords[rows].tolist()):
            facts = {**shared, "store_row": rows.start + i, "x": x, "y": y,
                     "row": grid[i][0], "column": grid[i][1]}  # fmt: skip
            for name, values in measures.items():
                facts[name] = round(float(values[i]), 6) if np.isfinite(values[i]) else None
            if labels is not None and labels[rows.start + i] >= 0:
                facts["patch_label"] = classes[int(labels[rows.start + i])]
            yield images[i], facts


class _Shards:
    """Tars of a fixed number of patches, without times, owners or anything else of this machine."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size = folder, size
        self.counts: dict[str, int] = {}
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def add(self, key: str, image: bytes, facts: dict[str, Any]) -> None:
        name = next(reversed(self.counts), "")
        if self._tar is None or self.counts[name] >= self.size:
            self._end()
            name = f"shard-{len(self.counts):06d}.tar"
            self._tar = tarfile.TarFile(self.folder / name, "w", format=tarfile.PAX_FORMAT)
            self.counts[name] = 0
        text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
        self._member(f"{key}.{suffix_of(image)}", image)
        self._member(f"{key}.json", text.encode())
        self.counts[name] += 1

    def _member(self, name: str, data: bytes) -> None:
        assert self._tar is not None
        info = tarfile.TarInfo(name)
        info.size, info.mtime, info.mode = len(data), 0, 0o644
        self._tar.addfile(info, io.BytesIO(data))

    def _end(self) -> None:
        if self._tar is not None:
            self._tar.close()
            self._tar = None


def check(folder: Path) -> Iterator[Finding]:
    """Every shard, grouped by key as WebDataset does."""
    yield from over(sorted(folder.glob("*.tar")), CONSUMER, _check_shard)


def _check_shard(path: Path) -> Iterator[Finding]:
    samples: dict[str, set[str]] = {}
    last, checked = "", 0
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            if key != last and key in samples:
                yield Finding.error(path, CONSUMER, f"the parts of {key} do not lie together")
                return
            last = key
            samples.setdefault(key, set()).add(kind)
            file = tar.extractfile(member)
            data = file.read() if file else b""
            if kind == "json":
                json.loads(data)
            elif checked < 16:
                decode_patch(data)
                checked += 1
    odd = [key for key, kinds in samples.items() if "json" not in kinds or len(kinds) != 2]
    if odd:
        yield Finding.error(path, CONSUMER, f"{len(odd)} samples lack image or json", odd[0])
    else:
        yield Finding.good(path, CONSUMER, f"{len(samples)} samples")
