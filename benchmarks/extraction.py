"""How long an encoder waits for patches, and how fast a bag is read.

    python benchmarks/extraction.py --repeat 3
    python benchmarks/extraction.py --device cuda --encoder timm:vit_large_patch16_224,random \
        --patches 20000 --workers 8

Patches of synthetic tissue, JPEG files of 256 x 256 pixels, go from a patch store through an
encoder with random weights. Beside it the encoder alone gets the same batches, decoded before and
held in memory; both take turns, so that a slow minute of the machine is shared. *Waiting* is the
time in which the encoder asked for patches and had none, without that for the first batch, when
nothing could have been made yet. Then the vectors of a large slide are read whole, as
`FeatureStore` has them and from a file with one vector a chunk, uncompressed and without
checksums, as other tools write it. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import torch
from bigslide import region_of, tiles_of

from pathgen.extract import ExtractConfig, extract_features, flow, load_encoder
from pathgen.extract.items import Feed
from pathgen.provenance import Provenance
from pathgen.stores import FeatureStore, PatchSpec, PatchStore, SlideFacts
from pathgen.stores.patches import MEASURES

SIZE = 256


def write_store(path: Path, count: int) -> PatchStore:
    """Some 250 tiles of synthetic tissue, repeated."""
    tiles = tiles_of(region_of(0))
    x = np.arange(count, dtype=np.int64) * SIZE
    geometry = {
        "patch_size_level0": float(SIZE), "read_level": 0, "mpp_error": 0.0, "level0_mpp": 0.5
    }  # fmt: skip
    slide = SlideFacts(name=path.stem, identity=path.stem, width=SIZE * count, height=SIZE)
    with PatchStore.create(
        path, PatchSpec(size=SIZE), Provenance(stage="tile", config={}, inputs={}), codec="jpeg",
        slide=slide, geometry=geometry,
    ) as writer:  # fmt: skip
        writer.append(
            image=[tiles[i % len(tiles)] for i in range(count)],
            coords=np.stack([x, 0 * x], 1),
            grid=np.stack([0 * x, x // SIZE], 1).astype(np.int32),
            made=np.ones(count, np.uint8),
            **{measure: np.ones(count, np.float32) for measure in MEASURES},
        )
    return PatchStore.open(path)


class Waiting:
    """Seconds in which a feed was asked and had nothing: for its first item, and for the rest."""

    def __init__(self) -> None:
        self.first = self.rest = 0.0

    def feed(self, *given: Any) -> Feed:
        feed = self.real(*given)
        for number in range(10**9):
            start = time.perf_counter()
            item = next(feed, None)
            took = time.perf_counter() - start
            if number < 2:  # what the patches are made from, and the first of them
                self.first += took
            else:
                self.rest += took
            if item is None:
                return
            yield item

    def __enter__(self) -> Waiting:
        self.real = flow.feed_of
        self.patch = mock.patch.object(flow, "feed_of", self.feed)
        self.patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.patch.stop()


def extraction(encoder: Any, store: PatchStore, config: ExtractConfig, repeat: int) -> None:
    rows = range(0, len(store), config.batch_size)
    batches = [store.images(slice(i, min(i + config.batch_size, len(store)))) for i in rows]
    encoder.encode(batches[0])  # what is compiled or allocated once
    whole, alone, shares, firsts = [], [], [], []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as out, Waiting() as waiting:
            start = time.perf_counter()
            extract_features(encoder, store, out, config)
            whole.append(time.perf_counter() - start)
        shares.append(waiting.rest / (whole[-1] - waiting.first))
        firsts.append(waiting.first)
        start = time.perf_counter()
        for batch in batches:
            encoder.encode(batch)
        alone.append(time.perf_counter() - start)
    n, ratio = len(store), statistics.median(a / w for a, w in zip(alone, whole, strict=True))
    print("| | patches/s |\n|---|---|")
    print(f"| the encoder alone, patches in memory | {n / statistics.median(alone):.1f} |")
    print(f"| extract-features, store to store | {n / statistics.median(whole):.1f} |")
    print(f"\nratio {ratio:.3f}; waiting {statistics.median(shares):.2%} of the time")
    print(f"(limit 5 %), and {statistics.median(firsts):.2f} s for the first batch\n")


def reading(count: int, dim: int, repeat: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours.h5"), Path(folder, "rows.h5")
        with FeatureStore.create(
            ours, dim, Provenance(stage="extract", config={}, inputs={}), encoder={"id": "e"},
            source={"id": "s", "name": "s"},
        ) as writer:  # fmt: skip
            writer.append(
                features=vectors, coords=np.zeros((count, 2), np.int64),
                label=np.full(count, -1, np.int32),
            )  # fmt: skip
        with h5py.File(theirs, "w") as file:
            data = file.create_dataset("features", vectors.shape, "f4", chunks=(1, dim))
            data[:] = vectors

        def as_store() -> Any:
            with FeatureStore.open(ours) as store:
                return store.features()

        def plainly(path: Path) -> Callable[[], Any]:
            def read() -> Any:
                with h5py.File(path) as file:
                    return file["features"][:]

            return read

        work = {
            "FeatureStore, opened and read": as_store,
            "the same file by h5py": plainly(ours),
            "one vector a chunk, by h5py": plainly(theirs),
        }
        seconds = {name: [] for name in work}  # type: dict[str, list[float]]
        for name, one in _turns(work, repeat):
            start = time.perf_counter()
            found = one()
            seconds[name].append(time.perf_counter() - start)
            assert np.array_equal(found, vectors)
    slow = statistics.median(seconds["one vector a chunk, by h5py"])
    print(f"| a bag of {count:,} x {dim} | ms | faster by |\n|---|---|---|")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"| {name} | {middle * 1e3:.1f} | {slow / middle:.1f} |")


def _turns(work: dict[str, Any], repeat: int) -> Iterator[tuple[str, Any]]:
    for _ in range(repeat):
        yield from work.items()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="timm:vit_small_patch16_224,random")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--patches", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--rows", type=int, default=10_000, help="vectors in the bag")
    parser.add_argument("--dim", type=int, default=384)
    given = parser.parse_args()
    config = ExtractConfig(
        batch_size=given.batch_size, workers=given.workers, precision=given.precision
    )
    encoder = load_encoder(given.encoder, given.device)
    print(f"{given.encoder} on {given.device}, {torch.get_num_threads()} threads;")
    print(f"{given.patches} patches, {given.batch_size} at a time, {given.workers} workers\n")
    with tempfile.TemporaryDirectory() as folder:
        extraction(encoder, write_store(Path(folder, "s.h5"), given.patches), config, given.repeat)
    reading(given.rows, given.dim, max(9, given.repeat))


if __name__ == "__main__":
    main()
