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
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray


class RawData:
    """A 1-D uint8 dataset with unfiltered chunks, as a `FlatArray`."""

    def __init__(self, path: Path, dataset: h5py.Dataset) -> None:
        self.path = str(path)  # looked up for each patch: a Path hashes slowly
        self.shape, self.dtype = tuple(dataset.shape), dataset.dtype
        self.chunk = int(dataset.chunks[0])
        places = _places(dataset, -(-self.shape[0] // self.chunk))
        # Most chunks lie one after the other: where byte 0 would be if all before did.
        self.bases: list[int] = (
            places - np.arange(len(places)) * self.chunk
        ).tolist()  # fmt: skip
        _files.forget(self.path)  # it may be open as the file that had this name before

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
        return np.frombuffer(self.read(start, stop), np.uint8)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` to `stop`; ValueError when the file ends too early."""
        if stop <= start:
            return b""
        first, last = start // self.chunk, (stop - 1) // self.chunk
        base = self.bases[first]
        if first == last or all(other == base for other in self.bases[first : last + 1]):
            return _files.read(self.path, stop - start, base + start)
        parts = []
        while start < stop:
            number = start // self.chunk
            end = min(stop, (number + 1) * self.chunk)
            parts.append(_files.read(self.path, end - start, self.bases[number] + start))
            start = end
        return b"".join(parts)


def _places(dataset: h5py.Dataset, count: int) -> NDArray[np.int64]:
    """Where each chunk begins in the file, (count,); ValueError when one is missing."""
    places = np.full(count, -1, np.int64)
    length = int(dataset.chunks[0])

    def note(chunk: Any) -> None:
        number = chunk.chunk_offset[0] // length
        if number < count and chunk.byte_offset is not None:
            places[number] = chunk.byte_offset

    if hasattr(dataset.id, "chunk_iter"):  # asking for one after the other takes a square of time
        dataset.id.chunk_iter(note)
    else:
        for number in range(count):
            note(dataset.id.get_chunk_info_by_coord((number * length,)))
    if (places < 0).any():
        raise ValueError("a chunk is missing")
    return places


class _Files:
    """Open files, the one unused for longest closed first."""

    def __init__(self, most: int = 256) -> None:
        self.most = most
        self.open: OrderedDict[str, int] = OrderedDict()
        self.lock = threading.Lock()
        self.last = ""

    def read(self, path: str, length: int, offset: int) -> bytes:
        with self.lock:  # none may close what another is reading
            handle = self.open.get(path)
            if handle is None:
                handle = self._handle(path)
            elif self.last != path:
                self.open.move_to_end(path)
            self.last = path
            data = os.pread(handle, length, offset)
            while len(data) < length:  # a signal or a network may shorten a read
                more = os.pread(handle, length - len(data), offset + len(data))
                if not more:
                    raise ValueError("the file ends too early")
                data += more
            return data

    def forget(self, path: str) -> None:
        with self.lock:
            handle = self.open.pop(path, None)
            if handle is not None:
                os.close(handle)

    def _handle(self, path: str) -> int:
        while len(self.open) >= self.most:
            os.close(self.open.popitem(last=False)[1])
        self.open[path] = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return self.open[path]


_files = _Files()


def forget(path: Path) -> None:
    """Close the file if it is open; a later read opens what then has this name."""
    _files.forget(str(path))


def _fresh_lock() -> None:
    _files.lock = threading.Lock()  # a fork may have copied it locked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)
