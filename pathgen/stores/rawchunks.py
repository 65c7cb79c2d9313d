"""Vectors of an HDF5 store by plain reads of its chunks, past the HDF5 library.

Opening a file in HDF5 costs more than reading a bag of a thousand vectors, and training reads more
files, again in each epoch, than can stay open. Where the chunks lie is asked once, after a first
read through HDF5 has checked them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from pathgen.stores.rawdata import _places


class RawChunks(NamedTuple):
    """A 2-D dataset of whole rows in chunks that nothing but a checksum was done to."""

    path: Path
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    chunk: int
    """rows"""
    places: tuple[int, ...]
    """byte where each chunk begins"""
    changed: int
    """of the file, ns: another file under its name is not read"""

    @classmethod
    def of(cls, path: Path, name: str) -> RawChunks | None:
        """Where the chunks of a dataset lie; None where they cannot be read so."""
        if os.name != "posix" or path.suffix != ".h5":
            return None
        changed = path.stat().st_mtime_ns
        with h5py.File(path, "r") as file:
            data = file[name]
            made = data.id.get_create_plist()
            filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
            plain = (
                data.ndim == 2
                and data.chunks is not None
                and data.chunks[1] == data.shape[1]
                and filters == [h5py.h5z.FILTER_FLETCHER32]
                and data.dtype.isnative
                and not file.userblock_size
            )
            if not plain:
                return None
            places = _places(data, -(-data.shape[0] // data.chunks[0])).tolist()
            return cls(path, data.shape, data.dtype, data.chunks[0], tuple(places), changed)

    def read(self) -> NDArray[Any] | None:
        """All rows; None when the file is not the one that was looked at."""
        row = self.shape[1] * self.dtype.itemsize
        rows = np.empty(self.shape, self.dtype)
        with self.path.open("rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_mtime_ns != self.changed:
                return None
            for number, place in enumerate(self.places):
                part = rows[number * self.chunk : (number + 1) * self.chunk]
                view = memoryview(part.reshape(-1).view(np.uint8))
                file.seek(place)
                done = 0
                while done < len(part) * row:
                    got = file.readinto(view[done:])
                    if not got:
                        return None
                    done += got
        return rows
