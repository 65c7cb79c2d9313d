"""Vectors read when they are needed: whatever is kept in memory, the same bags come back."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_mil import write_store

from pathgen.data.bags import load_bags
from pathgen.data.vectors import StoredVectors, moments
from pathgen.errors import DataError
from pathgen.provenance import Provenance
from pathgen.stores.features import FeatureStore
from pathgen.stores.rawchunks import RawChunks

SIZES = (7, 1, 30, 12)
DIM = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("lazy"), np.random.default_rng(0)
    for i, n in enumerate(SIZES):
        write_store(folder, f"s{i}", rng.normal(100, 3, (n, DIM)).astype(np.float32))
    lines = "".join(f"s{i},{i % 2}\n" for i in range(len(SIZES)))
    (folder / "labels.csv").write_text("slide,label\n" + lines)
    return folder


def _plainly(folder: Path, i: int) -> np.ndarray:
    with h5py.File(folder / f"s{i}.h5") as file:
        return np.array(file["features"])


@pytest.mark.parametrize("budget", [0.0, 30 * DIM * 4 / 1e9, 1.0])
def test_whatever_is_kept_the_bags_are_those_of_the_files(folder: Path, budget: float) -> None:
    bags, _ = load_bags(folder, folder / "labels.csv", cache_gb=budget)
    assert isinstance(bags.features, StoredVectors)
    kept = bags.features.kept
    assert kept == {0.0: 0, 1.0: 4}.get(budget, kept)
    if budget == 30 * DIM * 4 / 1e9:  # 7 + 1 + 12 rows of 30 fit; the bag of 30 does not
        assert kept == 3
    assert bags.sizes.tolist() == list(SIZES)
    chosen = bags.select([3, 2, 0]).select([2, 1])
    for _ in range(2):
        for i in range(4):
            assert np.array_equal(bags.features[i], _plainly(folder, i))
        assert np.array_equal(chosen.features[0], _plainly(folder, 0))
        assert np.array_equal(chosen.features[1], _plainly(folder, 2))
    assert bags.coords is not None
    assert chosen.coords is not None
    assert chosen.coords[1].shape == (30, 2)
    bags.features.close()


def test_half_precision_stays_half(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(9, DIM)).astype(np.float16)
    source = {"id": "x", "name": "a"}
    provenance = Provenance(stage="extract", config={}, inputs={"slide": "a"})
    with FeatureStore.create(
        tmp_path / "a.h5", DIM, provenance, encoder={"name": "e", "id": "e", "dim": DIM},
        source=source, dtype="float16",
    ) as writer:  # fmt: skip
        writer.append(
            features=vectors, coords=np.zeros((9, 2), np.int64), label=np.full(9, -1, np.int32)
        )
    (tmp_path / "l.csv").write_text("slide,label\na,1\n")
    bags, _ = load_bags(tmp_path / "a.h5", tmp_path / "l.csv")
    assert bags.features[0].dtype == np.float16
    assert np.array_equal(bags.features[0], vectors)


def test_moments_are_numpys_even_far_from_zero() -> None:
    x = np.random.default_rng(0).normal(1e4, 0.5, (3000, 7)).astype(np.float32)
    found, wide = moments(x), x.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, wide.var(0), rtol=1e-9)


def test_threads_read_the_same(folder: Path) -> None:
    bags, _ = load_bags(folder, folder / "labels.csv", cache_gb=0)
    plain = [_plainly(folder, i) for i in range(4)]
    wrong: list[int] = []

    def read(seed: int) -> None:
        rows = np.random.default_rng(seed).integers(0, 4, 60).tolist()
        wrong.extend(i for i in rows if not np.array_equal(bags.features[i], plain[i]))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_what_is_kept_cannot_be_changed(folder: Path) -> None:
    bags, _ = load_bags(folder, folder / "labels.csv")
    with pytest.raises(ValueError, match="read-only"):
        bags.features[0][0] = 0


def test_a_vector_that_is_not_finite_is_found_before_training(tmp_path: Path) -> None:
    write_store(tmp_path, "good", np.ones((2, 3), np.float32))
    write_store(
        tmp_path, "huge", np.full((2, 3), 3e38, np.float32)
    )  # finite, though its sum is not
    write_store(tmp_path, "bad", np.array([[1, 2, 3], [np.inf, -np.inf, 0]], np.float32))
    labels = tmp_path / "labels.csv"
    labels.write_text("slide,label\ngood,1\nhuge,2\n")
    assert len(load_bags(tmp_path, labels)[0]) == 2
    labels.write_text("slide,label\ngood,1\nbad,2\n")
    with pytest.raises(DataError, match="1 of 2 vectors") as error:
        load_bags(tmp_path, labels, cache_gb=0)
    assert (error.value.code, error.value.where) == ("PG-D06", "bad")


def test_bags_that_are_read_again_are_read_past_hdf5(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 700, 5000):  # of one chunk, and of several
        vectors = rng.normal(size=(n, 384)).astype(np.float32)
        path = write_store(tmp_path, f"n{n}", vectors)
        places = RawChunks.of(path, "features")
        assert places is not None
        assert np.array_equal(places.read(), vectors)
    assert len(places.places) > 1
    write_store(tmp_path, "n5000", vectors + 1)  # another file under the name
    os.utime(path, ns=(0, 0))
    assert places.read() is None
