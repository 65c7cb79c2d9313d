"""The vectors of many slides, read when they are asked for and kept as far as memory goes."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import DataError
from pathgen.progress import Progress
from pathgen.stores.features import FeatureStore
from pathgen.stores.rawchunks import RawChunks

Vectors = NDArray[np.float32 | np.float16]
GB = 1e9
#: Numbers taken to float64 at once when moments are computed.
BLOCK = 1 << 20


class Moments(NamedTuple):
    """Of one bag, by dimension: float64 (dim,) each."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]


class StoredVectors(Sequence[Vectors]):
    """One (n, dim) array a slide, float16 or float32 as stored.

    What is read first is kept, until `cache_gb` is full; the rest is read from its store each
    time. Which it is changes nothing that is returned. Threads may read at the same time.
    """

    def __init__(self, stores: Sequence[FeatureStore], cache_gb: float = 4.0) -> None:
        self.sizes = np.array([len(store) for store in stores], np.int64)
        """(N,) vectors of each bag, known without reading them"""
        self.dim = stores[0].dim if stores else 0
        self._stores = list(stores)
        self._free = cache_gb * GB
        self._kept: dict[int, Vectors] = {}
        self._moments: dict[int, Moments] = {}
        self._sound: set[int] = set()
        self._places: dict[int, RawChunks] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._stores)

    @overload
    def __getitem__(self, i: int) -> Vectors: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Vectors]: ...
    def __getitem__(self, i: int | slice) -> Vectors | Sequence[Vectors]:
        if isinstance(i, slice):
            return self.select(np.arange(len(self))[i])
        i = range(len(self))[i]
        found = self._kept.get(i)
        return self._read(i) if found is None else found

    def _read(self, i: int) -> Vectors:
        known = self._places.get(i)
        again = None if known is None else known.read()
        if again is not None:
            return again
        store = self._stores[i]
        vectors: Vectors = store.features()
        if i not in self._sound:
            require_finite(vectors, store.name)
        with self._lock:
            self._sound.add(i)
            if i not in self._kept and vectors.nbytes <= self._free:
                self._free -= vectors.nbytes
                vectors.flags.writeable = False
                self._kept[i] = vectors
        if i not in self._kept:
            places = RawChunks.of(store.path, "features")
            store.close()
            if places is not None:
                self._places[i] = places
        return vectors

    @property
    def kept(self) -> int:
        """How many bags are in memory."""
        return len(self._kept)

    def moments(self, i: int) -> Moments:
        """Computed once for all the folds that train on the bag."""
        found = self._moments.get(i)
        if found is None:
            found = self._moments[i] = moments(self[i])
        return found

    def coords(self) -> Sequence[NDArray[np.int64]]:
        """Level-0 (x, y) of each vector, int64 (n, 2) a bag, read when asked for."""
        return StoredCoords(self._stores)

    def select(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> ChosenVectors:
        """Some of the bags, in that order; memory is shared."""
        return ChosenVectors(self, np.asarray(rows, np.int64))

    def load(self, progress: Progress) -> None:
        """Read each bag once, so that memory fills and what is damaged is found before training.

        Raises:
            DataError: PG-D06, a vector holds nan or infinity.
            StoreError: PG-O11, a store is damaged.
        """
        with progress.task("read features", len(self)) as task:
            for i in range(len(self)):
                self[i]
                if i in self._kept:
                    self._stores[i].close()
                task.advance()

    def close(self) -> None:
        """Let go of the files; the next read opens them again."""
        for store in self._stores:
            store.close()


class ChosenVectors(Sequence[Vectors]):
    """Some bags of `StoredVectors`."""

    def __init__(self, source: StoredVectors, rows: NDArray[np.int64]) -> None:
        self.source, self.rows = source, rows
        self.sizes, self.dim = source.sizes[rows], source.dim

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, i: int) -> Vectors: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Vectors]: ...
    def __getitem__(self, i: int | slice) -> Vectors | Sequence[Vectors]:
        if isinstance(i, slice):
            return ChosenVectors(self.source, self.rows[i])
        return self.source[int(self.rows[i])]

    def moments(self, i: int) -> Moments:
        """As of `StoredVectors`."""
        return self.source.moments(int(self.rows[i]))

    def select(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> ChosenVectors:
        """Some of these, in that order."""
        return ChosenVectors(self.source, self.rows[np.asarray(rows, np.int64)])


class StoredCoords(Sequence[NDArray[np.int64]]):
    """One (n, 2) array a slide: level-0 pixels (x, y)."""

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        self._stores = stores

    def __len__(self) -> int:
        return len(self._stores)

    @overload
    def __getitem__(self, i: int) -> NDArray[np.int64]: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[NDArray[np.int64]]: ...
    def __getitem__(self, i: int | slice) -> NDArray[np.int64] | Sequence[NDArray[np.int64]]:
        if isinstance(i, slice):
            return [self[row] for row in range(len(self))[i]]
        return self._stores[i].coords()


def sizes_of(features: Sequence[Vectors]) -> NDArray[np.int64]:
    """(N,) vectors of each bag; of stored ones without reading them."""
    if isinstance(features, StoredVectors | ChosenVectors):
        return features.sizes
    return np.array([len(vectors) for vectors in features], np.int64)


def moments_of(features: Sequence[Vectors]) -> Iterator[Moments]:
    """Moments of each bag, one after the other."""
    kept = isinstance(features, StoredVectors | ChosenVectors)
    for i in range(len(features)):
        yield features.moments(i) if kept else moments(features[i])  # type: ignore[attr-defined]


def moments(vectors: Vectors) -> Moments:
    """Mean and variance of each dimension over a bag's vectors, computed in float64."""
    step = max(1, BLOCK // max(1, vectors.shape[1]))
    blocks = [vectors[i : i + step] for i in range(0, len(vectors), step)]
    mean = sum(block.sum(0, dtype=np.float64) for block in blocks) / len(vectors)
    # From the mean, not from squares alone: those lose what is small beside a large mean.
    spread = sum(((block.astype(np.float64) - mean) ** 2).sum(0) for block in blocks)
    return Moments(np.asarray(mean), np.asarray(spread / len(vectors)))


def require_finite(vectors: Vectors, name: str) -> None:
    """Raise DataError (PG-D06) when a vector holds nan or infinity."""
    # One sum is finite or not as its parts are, and costs no array of answers.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(vectors.sum(dtype=np.float64)):
            return
    wrong = int((~np.isfinite(vectors)).any(1).sum())
    if not wrong:  # finite values whose sum is not
        return
    raise DataError(
        "features with nan or infinity", code="PG-D06", where=name,
        why=f"{wrong} of {len(vectors)} vectors",
        hint="extract the features of this slide again",
    )  # fmt: skip
