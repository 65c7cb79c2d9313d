"""Writing the containers that exports share, with equal bytes for equal content."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.extras import need

#: Rows of a feature matrix that lie together in HDF5: bags load many times faster than by row.
CHUNK = 1024
#: Rows read from a store at once.
ROWS = 1024


def write_h5(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    attrs: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """An HDF5 file of growable datasets. `attrs`: dataset -> attributes; ``""`` is the file."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            rows = max(1, min(CHUNK, len(values)))
            growable = values.ndim > 1
            file.create_dataset(
                name, data=values, track_times=False,
                chunks=(rows, *values.shape[1:]) if growable else None,
                maxshape=(None, *values.shape[1:]) if growable else None,
            )  # fmt: skip
        for name, known in (attrs or {}).items():
            place = file[name] if name else file
            for key in sorted(known):
                place.attrs[key] = known[key]


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """A CSV file with a header; what is None stays empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.DictWriter(out, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def write_npy(path: Path, values: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values, allow_pickle=False)


def write_pt(path: Path, values: NDArray[np.float32]) -> None:
    """One tensor, as `torch.load(path, weights_only=True)` reads it."""
    need("torch", "train")
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(np.ascontiguousarray(values)), path)


def spans(length: int, step: int = ROWS) -> Iterator[slice]:
    """Slices that cover `length` rows."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


def crc32_of(path: Path) -> int:
    """Checksum of a file."""
    found = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    return found


def suffix_of(image: bytes) -> str:
    """``png`` or ``jpg``, by the first bytes of an image file."""
    return "png" if image.startswith(b"\x89PNG") else "jpg"
