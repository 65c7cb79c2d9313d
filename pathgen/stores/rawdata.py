"""Bytes of an HDF5 dataset by positioned reads, past the HDF5 library.

A patch read through HDF5 needs the file open in it, and opening one costs as much as decoding a
dozen patches. Training draws from ten thousand files at random, more than can stay open. The
chunks of a bytes column are stored raw, so where they lie is all there is to know: it is asked
once, and kept. What is read here is checked by its caller, row by row.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray


class RawData:
    """A 1-D uint8 dataset with unfiltered chunks, as a `FlatArray`."""

    def __init__(self, path: Path, dataset: h5py.Dataset) -> None:
        self.path = path
        self.shape, self.dtype = tuple(dataset.shape), dataset.dtype
        self.chunk = int(dataset.chunks[0])
        starts = range(0, self.shape[0], self.chunk)
        found = [dataset.id.get_chunk_info_by_coord((start,)).byte_offset for start in starts]
        if any(place is None for place in found):
            raise ValueError("a chunk is missing")
        self.places = np.array(found, np.int64)
        _files.forget(path)  # it may be open as the file that had this name before

    @staticmethod
    def fits(dataset: h5py.Dataset) -> bool:
        """Whether its chunks lie in this very file as they are."""
        made = dataset.id.get_create_plist()
        return bool(
            os.name == "posix"
            and dataset.dtype == np.uint8
            and dataset.ndim == 1
            and dataset.chunks
            and not made.get_nfilters()
            and not dataset.file.userblock_size
        )

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        start, stop, _ = rows.indices(self.shape[0])
        result = np.empty(max(stop - start, 0), np.uint8)
        while start < stop:
            number, inside = divmod(start, self.chunk)
            count = min(stop, (number + 1) * self.chunk) - start
            part = memoryview(result)[len(result) - (stop - start) :][:count]
            _files.read_into(self.path, part, int(self.places[number]) + inside)
            start += count
        return result


class _Files:
    """Open files, the one unused for longest closed first."""

    def __init__(self, most: int = 256) -> None:
        self.most = most
        self.open: OrderedDict[Path, int] = OrderedDict()
        self.lock = threading.Lock()

    def read_into(self, path: Path, part: memoryview, offset: int) -> None:
        with self.lock:  # none may close what another is reading
            done = 0
            while done < len(part):
                count = os.preadv(self._handle(path), [part[done:]], offset + done)
                if not count:
                    raise ValueError("the file ends too early")
                done += count

    def forget(self, path: Path) -> None:
        with self.lock:
            handle = self.open.pop(path, None)
            if handle is not None:
                os.close(handle)

    def _handle(self, path: Path) -> int:
        if path not in self.open:
            while len(self.open) >= self.most:
                os.close(self.open.popitem(last=False)[1])
            self.open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.open.move_to_end(path)
        return self.open[path]


_files = _Files()


def forget(path: Path) -> None:
    """Close the file if it is open; a later read opens what then has this name."""
    _files.forget(path)


def _fresh_lock() -> None:
    _files.lock = threading.Lock()  # a fork may have copied it locked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)
