"""How fast training reads patches at random, beside decoding alone: ratios in one run.

    python benchmarks/loading.py --stores 600 --patches 64

Makes stores of JPEG patches of 256 px, then draws batches of 64 from all of them, the way
training does: `PatchDataset.images` (find, read, check, decode) against the decoder on the same
bytes in memory. 1.0 would mean that reading costs nothing. The first pass opens every file.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from pathgen import PatchDataset
from pathgen.data.sources import open_sources
from pathgen.provenance import Provenance
from pathgen.stores import PatchSpec, PatchStore, SlideFacts, encode_patch
from pathgen.stores.codec import decode_patches
from pathgen.stores.patches import MEASURES

SIZE, BATCH = 256, 64


def patches(count: int) -> list[bytes]:
    """JPEG files of smooth noise, about as large as those of tissue."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 255, (count, SIZE // 4, SIZE // 4, 3), dtype=np.uint8)
    return [encode_patch(image.repeat(4, 0).repeat(4, 1), "jpeg") for image in coarse]


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


def rate(work: object, batches: int) -> float:
    start = time.perf_counter()
    for _ in range(batches):
        work()  # type: ignore[operator]
    return batches * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stores", type=int, default=600)
    parser.add_argument("--patches", type=int, default=64)
    parser.add_argument("--batches", type=int, default=40)
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        encoded = patches(arguments.patches)
        write_stores(Path(folder), arguments.stores, encoded)
        start = time.perf_counter()
        sources = open_sources([folder])
        opening = (time.perf_counter() - start) / len(sources)
        dataset = PatchDataset(sources)

        def decode() -> None:
            decode_patches([encoded[i] for i in rng.integers(0, len(encoded), BATCH)], SIZE)

        def read() -> None:
            dataset.images(rng.integers(0, len(dataset), BATCH))

        one = PatchDataset(sources[:1])
        alone = rate(decode, arguments.batches)
        rows = [("decoding alone", alone)]
        rows.append(("one store", rate(lambda: one.images(rng.integers(0, len(one), BATCH)), 40)))
        rows += [(f"all stores, pass {i}", rate(read, arguments.batches)) for i in (1, 2, 3)]
        dataset.close()
    print(
        f"{arguments.stores} stores of {arguments.patches}; opening one: {opening * 1e3:.1f} ms\n"
    )
    print("| batches of 64 from | patches/s | of decoding |\n|---|---|---|")
    for name, speed in rows:
        print(f"| {name} | {speed:.0f} | {speed / alone:.2f} |")


if __name__ == "__main__":
    main()
