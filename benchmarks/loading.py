"""How fast training reads patches at random, beside decoding alone: ratios in one run.

    python benchmarks/loading.py --stores 600 --patches 64
    python benchmarks/loading.py --stores 1 --patches 100000 --passes 10

Makes stores of JPEG patches of 256 px, then draws batches of 64 from all of them, the way
training does: `PatchDataset.images` (find, read, check, decode) against the decoder on the same
bytes in memory. 1.0 would mean that reading costs nothing. The first pass opens every file. With
one store a DataLoader draws from it too; `--passes` goes through all of it that often, and prints
the memory of the process after each.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from bigslide import region_of, tiles_of
from torch import Tensor

from pathgen import PatchDataset
from pathgen.data.sources import open_sources
from pathgen.provenance import Provenance
from pathgen.stores import (
    PatchSpec,
    PatchStore,
    SlideFacts,
    find_stores,
    open_store,
)
from pathgen.stores.codec import decode_patch, decode_patches, encode_patch
from pathgen.stores.patches import MEASURES
from pathgen.tiling import TileConfig

SIZE, BATCH = 256, 64
#: Patches in memory that the decoder draws from.
IN_MEMORY = 30_000


def patches(count: int, copied: bool) -> list[bytes]:
    """JPEG files of synthetic tissue, some 250, repeated: as `tile` encodes them, or as it copies
    them from a slide."""
    made = tiles_of(region_of(0))
    if not copied:
        made = [encode_patch(decode_patch(tile), "jpeg", TileConfig().quality) for tile in made]
    return [made[i % len(made)] for i in range(count)]


def write_stores(folder: Path, stores: int, encoded: list[bytes]) -> None:
    n = len(encoded)
    x = np.arange(n, dtype=np.int64) * SIZE
    geometry = {
        "patch_size_level0": float(SIZE), "read_level": 0, "mpp_error": 0.0, "level0_mpp": 0.5
    }  # fmt: skip
    for i in range(stores):
        name = f"slide-{i:05d}"
        slide = SlideFacts(name=name, identity=name, width=SIZE * n, height=SIZE)
        provenance = Provenance(stage="tile", config={}, inputs={"slide": name})
        with PatchStore.create(
            folder / f"{name}.h5", PatchSpec(size=SIZE), provenance, codec="jpeg", slide=slide,
            geometry=geometry,
        ) as writer:  # fmt: skip
            writer.append(
                image=encoded,
                coords=np.stack([x, 0 * x], 1),
                grid=np.stack([0 * x, x // SIZE], 1).astype(np.int32),
                made=np.ones(n, np.uint8),
                **{measure: np.ones(n, np.float32) for measure in MEASURES},
            )


def rates(work: dict[str, Callable[[], object]], batches: int) -> dict[str, float]:
    """Patches/s of each, by the median batch; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(batches):
        for name, one in work.items():
            start = time.perf_counter()
            one()
            seconds[name].append(time.perf_counter() - start)
    return {name: BATCH / statistics.median(times) for name, times in seconds.items()}


class Batches(torch.utils.data.Dataset[Tensor]):
    """Whole batches as the items of a DataLoader."""

    def __init__(self, patches: PatchDataset) -> None:
        self.patches = patches

    def __getitem__(self, rows: list[int]) -> Tensor:
        return torch.from_numpy(self.patches.batch(rows))


def loader(dataset: PatchDataset) -> Iterator[object]:
    """Shuffled batches without end, loaded in this process."""
    while True:
        order = torch.utils.data.RandomSampler(dataset)
        batches = torch.utils.data.BatchSampler(order, BATCH, drop_last=True)
        yield from torch.utils.data.DataLoader(Batches(dataset), sampler=batches, batch_size=None)


def megabytes() -> float:
    """Memory of this process that no file backs."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stores", type=int, default=600)
    parser.add_argument("--patches", type=int, default=64)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--passes", type=int, default=0)
    parser.add_argument("--copied", action="store_true", help="tiles as slides have them")
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        encoded = patches(arguments.patches, arguments.copied)
        write_stores(Path(folder), arguments.stores, encoded)
        openings = []
        for path in find_stores(folder):
            start = time.perf_counter()
            open_store(path)
            openings.append(time.perf_counter() - start)
        dataset = PatchDataset(open_sources([folder]))
        # As many as no cache holds: those of a store are not in one either.
        held = [bytes(bytearray(encoded[i % len(encoded)])) for i in range(IN_MEMORY)]
        work: dict[str, Callable[[], object]] = {
            "decoding alone": lambda: decode_patches(
                [held[i] for i in rng.integers(0, len(held), BATCH)], SIZE
            ),
            "all stores": lambda: dataset.images(rng.integers(0, len(dataset), BATCH)),
        }
        if arguments.stores == 1:
            drawn = loader(dataset)
            work["a DataLoader on it"] = lambda: next(drawn)
        first = rates(work, arguments.batches)
        second = rates(work, arguments.batches)
        print(f"{arguments.stores} stores of {arguments.patches} patches")
        print(f"opening one: {statistics.median(openings) * 1e3:.1f} ms\n")
        print(
            "| batches of 64 from | patches/s at first | later | of decoding |\n|---|---|---|---|"
        )
        for name, speed in second.items():
            share = speed / second["decoding alone"]
            print(f"| {name} | {first[name]:.0f} | {speed:.0f} | {share:.2f} |")
        for number in range(1, arguments.passes + 1):
            for rows in np.array_split(rng.permutation(len(dataset)), len(dataset) // BATCH):
                dataset.images(rows)
            print(f"pass {number}: {megabytes():.0f} MB", flush=True)
        dataset.close()


if __name__ == "__main__":
    main()
