"""Tables in HDF5: one file, one dataset per array."""

from __future__ import annotations

import io
import json
import os
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pathgen.errors import StoreError
from pathgen.stores.rawdata import RawData, forget
from pathgen.stores.reading import FlatArray, SealedTable
from pathgen.stores.seal import Array, dumps, unfinished
from pathgen.stores.writing import SealedWriter

#: HDF5 1.10 (2016) and later read this; every piece of metadata in it has a checksum.
_LIBVER = ("v110", "v110")


#: Most files one process keeps open; beyond, the one opened longest ago is closed.
MAX_OPEN = 128
_opened: dict[int, weakref.ref[Hdf5Table]] = {}
# One thread at a time, as inside HDF5: none may close a file that another is reading.
_lock = threading.RLock()


def _fresh_lock() -> None:
    global _lock
    _lock = threading.RLock()  # a fork may have copied it locked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_fresh_lock)


class Hdf5Table(SealedTable):
    """Reads an HDF5 store. Files are never changed in place, so no lock is needed."""

    _handle: h5py.File | None = None

    def _read_attrs(self) -> dict[str, Any]:
        with _lock:
            return _attrs_of(self._file())

    def _open_array(self, name: str) -> FlatArray:
        file = self._file()
        if not name.endswith("/data"):
            return file[name]  # type: ignore[no-any-return]
        if RawData.fits(file[name]):
            return RawData(self.path, file[name])
        # No chunk cache: it would read a whole chunk for each patch.
        access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
        access.set_chunk_cache(1, 0, 1.0)
        return h5py.Dataset(h5py.h5d.open(file.id, name.encode(), access))  # type: ignore[no-any-return]

    def _range(self, array: Array, start: int, stop: int) -> NDArray[Any]:
        with _lock:
            return super()._range(array, start, stop)

    def _block(self, data: Array, start: int, stop: int) -> bytes | memoryview:
        raw = self._arrays.get(data.name)
        if not isinstance(raw, RawData) or self._pid != os.getpid():
            return super()._block(data, start, stop)
        try:
            return raw.read(start, stop)
        except (OSError, ValueError):
            with self._reading(data.name):  # says what is wrong
                raise

    def _file(self) -> h5py.File:
        if self._handle is None:
            while len(_opened) >= MAX_OPEN:
                oldest = _opened.pop(next(iter(_opened)))()
                if oldest is not None:
                    oldest._let_go()
            self._handle = _open(self.path)
            _opened[id(self)] = weakref.ref(self)
        return self._handle

    def _forget(self) -> None:
        super()._forget()
        self._handle = None

    def _let_go(self) -> None:
        """Close the file; what was read of it stays, and so does where its raw data lies."""
        with _lock:
            self._arrays = {
                name: array for name, array in self._arrays.items() if isinstance(array, RawData)
            }
            _opened.pop(id(self), None)
            if self._handle is not None:
                self._handle.close()
                self._handle = None

    def close(self) -> None:
        self._let_go()
        forget(self.path)
        super().close()


def _open(path: Path) -> h5py.File:
    try:
        return _open_beside_others(path)
    except OSError as error:
        if "already open for write" in str(error):  # the mark a killed writer leaves
            raise unfinished(path) from error
        if error.errno is None and not h5py.is_hdf5(path):
            raise StoreError(
                "not a pathgen store", code="PG-O15", where=path, why="it is not an HDF5 file"
            ) from error
        raise


def _open_beside_others(path: Path) -> h5py.File:
    """Within one process HDF5 refuses a file that is open with another way of locking.

    The first way is h5py's default, so that a user's own ``h5py.File(path)`` works beside ours;
    the second is for file systems without locks; the third matches whoever asked for locks.
    """
    for locking in ("best-effort", False):
        try:
            return h5py.File(path, "r", locking=locking)
        except OSError as error:
            if "lock" not in str(error):
                raise
    return h5py.File(path, "r", locking=True)


class Hdf5Writer(SealedWriter):
    """Writes an HDF5 store."""

    def _start(self, draft: Path, attrs: Mapping[str, Any]) -> None:
        self._sink = _Sink(draft)
        self._file = h5py.File(self._sink, "w", libver=_LIBVER, track_order=False)

    def _unit(self, array: Array) -> int:
        return array.chunk

    def _create_array(
        self, array: Array, chunk: int, unit: int, length: int, notes: Mapping[str, Any]
    ) -> h5py.Dataset:
        data = self._file.create_dataset(
            array.name,
            (0, *array.shape),
            array.dtype,
            maxshape=(None, *array.shape),
            chunks=(chunk, *array.shape),
            # Rows of bytes columns have a crc32 each; the other arrays have one a chunk.
            fletcher32=not array.name.endswith("/data"),
            track_times=False,
        )
        for name in sorted(notes):
            data.attrs[name] = notes[name]
        return data

    def _write(self, flat: h5py.Dataset, start: int, values: NDArray[Any]) -> None:
        with self._sink.checked():
            flat.resize(start + len(values), axis=0)
            if flat.chunks == values.shape and flat.fletcher32 is False:
                # A whole chunk as it stands: past HDF5's conversions and its cache.
                flat.id.write_direct_chunk((start, *(0,) * (values.ndim - 1)), values)
            else:
                flat[start:] = values

    def _finish(self, attrs: Mapping[str, Any]) -> None:
        with self._sink.checked():
            for name, value in attrs.items():
                # Fixed length: HDF5 keeps strings of variable length without a checksum.
                self._file.attrs[name] = np.bytes_(dumps(value))
            self._file.close()
        self._sink.close()

    def _abandon(self) -> None:
        """Also runs after `_finish`: h5py objects are to end here, not in some later collection."""
        if "_sink" not in self.__dict__:
            return
        self._sink.drop()
        file = self.__dict__.pop("_file", None)
        if file is not None:
            with suppress(OSError, RuntimeError):  # it goes on to be deleted
                file.close()
        self._sink.close()

    def _reopen(self, draft: Path) -> Hdf5Table:
        return Hdf5Table(draft)


class _Sink(io.RawIOBase):
    """The file under HDF5, which outlives a full disk.

    HDF5 crashes the process when it cannot write what it still holds on closing. Here the first
    error is kept and later writes go nowhere, so that HDF5 closes cleanly; `checked` raises it.
    """

    def __init__(self, path: Path) -> None:
        self._raw = path.open("w+b", buffering=0)
        self._error: OSError | None = None
        self._dropped = False

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: Any) -> int:
        return self._raw.readinto(buffer)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view) and not self._lost:
            try:
                done += self._raw.write(view[done:])
            except OSError as error:
                self._error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        if not self._lost:
            try:
                self._raw.truncate(size)
            except OSError as error:
                self._error = error
        return size or 0

    @property
    def _lost(self) -> bool:
        return self._dropped or self._error is not None

    def drop(self) -> None:
        """What is still to be written does not matter."""
        self._dropped = True

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Raise the first error that a write met, before any that HDF5 made of it."""
        try:
            yield
        finally:
            if self._error is not None:
                raise self._error

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


def read_attrs(path: Path) -> Mapping[str, Any]:
    """Root attributes of an HDF5 store, unchecked; {} for any other HDF5 file."""
    with _open(path) as file:
        return _attrs_of(file)


def _attrs_of(file: h5py.File) -> dict[str, Any]:
    if "format" not in file.attrs:
        return {}  # of another tool, whose attributes are not JSON
    return {str(name): json.loads(bytes(value)) for name, value in file.attrs.items()}
