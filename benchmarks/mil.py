"""How long a cross-validation takes, how much of it is waiting, and how fast bags are read.

    python benchmarks/mil.py                      # 100 bags, 2 epochs of one fold: a few minutes
    python benchmarks/mil.py --bags 1000 --whole  # the whole 5-fold run

Makes bags of 1,000 x 384 float32 vectors with a weak signal in some of them, then

- reads every bag, as training does when memory is short, beside h5py on the same vectors in
  one-row chunks, as some tools write them;
- trains ABMIL on one fold with the bags in memory and with none of them in memory, and says what
  share of the time the model waited for bags;
- says what 5 folds of 1,000 bags would take at that pace; with `--whole`, what they took.

Files are read from the operating system's cache in both ways: this is the cost of the format, not
of the disk.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from pathgen.data.bags import Bags, load_bags
from pathgen.data.splits import folds
from pathgen.evaluate.mil import train_mil
from pathgen.provenance import Provenance
from pathgen.stores.features import FeatureStore
from pathgen.train.mil import Epoch, MILTrainConfig, fit_mil

DIM, PATCHES = 384, 1000
TARGET_BAGS, FOLDS = 1000, 5


def vectors(i: int) -> NDArray[np.float32]:
    """A bag; of an odd number, with fifty patches that are a little different."""
    bag = np.random.default_rng(i).normal(size=(PATCHES, DIM)).astype(np.float32)
    if i % 2:
        bag[:50, :16] += 0.7
    return bag


def write(folder: Path, bags: int) -> None:
    """Feature stores, the same in one-row chunks, and labels."""
    rows, label = ["slide,label"], np.full(PATCHES, -1, np.int32)
    coords = np.zeros((PATCHES, 2), np.int64)
    (folder / "rows").mkdir(parents=True)
    for i in range(bags):
        name, values = f"s{i:05}", vectors(i)
        with FeatureStore.create(
            folder / "features" / f"{name}.h5", DIM,
            Provenance(stage="extract", config={}, inputs={"slide": name}),
            encoder={"name": "noise", "id": "noise", "dim": DIM},
            source={"id": f"id-{name}", "name": name},
        ) as writer:  # fmt: skip
            writer.append(features=values, coords=coords, label=label)
        with h5py.File(folder / "rows" / f"{name}.h5", "w") as file:
            file.create_dataset("features", data=values, chunks=(1, DIM))
        rows.append(f"{name},{i % 2}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")


def seconds(reads: Sequence[Callable[[int], object]], bags: int, passes: int = 5) -> list[float]:
    """Of one bag, each way: the fastest of several passes over all bags, in turns.

    Seconds of the processor: what else runs on the machine does not count.
    """
    best = [float("inf")] * len(reads)
    for _ in range(passes):
        for way, read in enumerate(reads):
            since = time.process_time()
            for i in range(bags):
                read(i)
            best[way] = min(best[way], (time.process_time() - since) / bags)
    return best


def reading(folder: Path, bags: int) -> None:
    """Print how long a bag takes to read, both ways."""
    stored, _ = load_bags(folder / "features", folder / "labels.csv", cache_gb=0)
    files = sorted((folder / "rows").glob("*.h5"))

    def one_row_chunks(i: int) -> NDArray[np.float32]:
        with h5py.File(files[i]) as file:
            found: NDArray[np.float32] = file["features"][:]
        return found

    assert all(np.array_equal(stored.features[i], one_row_chunks(i)) for i in range(bags))
    ours, theirs = seconds([stored.features.__getitem__, one_row_chunks], bags)
    print(f"read a bag: {1e3 * ours:.2f} ms, in one-row chunks {1e3 * theirs:.2f} ms: ratio "
          f"{theirs / ours:.1f} (goal: 5 or more)")  # fmt: skip


def training(folder: Path, cache_gb: float, config: MILTrainConfig) -> list[Epoch]:
    """The epochs of the first fold."""
    bags, _ = load_bags(folder / "features", folder / "labels.csv", cache_gb=cache_gb)
    split = _split(bags)
    _, history = fit_mil(config, bags.select(split[0]), bags.select(split[1]))
    return history


def _split(bags: Bags) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    first = folds(bags.labels, bags.owners, FOLDS, 0)[0]
    return first.train, first.valid


def told(name: str, history: list[Epoch], bags: int, epochs: int) -> None:
    """A line of the table; the first epoch warms up and is left out where there are others."""
    counted = history[1:] or history
    spent, waited = (sum(getattr(e, f) for e in counted) for f in ("seconds", "waited"))
    epoch = spent / len(counted) * TARGET_BAGS / bags
    print(f"{name:22} {epoch:8.1f} s {waited / spent:9.1%} {epoch * epochs * FOLDS / 60:12.1f} min")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bags", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=30, help="of a fold, in the extrapolation")
    parser.add_argument("--measured", type=int, default=3, help="epochs that are run")
    parser.add_argument("--threads", type=int, help="of torch; default: as it likes")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--whole", action="store_true", help="run all folds, with early stopping")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    config = MILTrainConfig(
        device="cpu", precision=options.precision, epochs=options.measured, batch_size=8
    )
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder, options.bags)
        print(f"{options.bags} bags of {PATCHES} x {DIM}, {torch.get_num_threads()} threads, "
              f"{options.precision}")  # fmt: skip
        reading(folder, options.bags)
        print(f"{'bags are':22} {'epoch of 1,000':>10} {'waiting':>9} "
              f"{f'5 x {options.epochs} epochs':>14}")  # fmt: skip
        told("in memory", training(folder, 64, config), options.bags, options.epochs)
        told("read in each epoch", training(folder, 0, config), options.bags, options.epochs)
        if options.whole:
            since = time.perf_counter()
            whole = MILTrainConfig(
                device="cpu", precision=options.precision, epochs=options.epochs, patience=5
            )
            result = train_mil(folder / "features", folder / "labels.csv", folder / "mil", whole)
            print(f"whole run: {(time.perf_counter() - since) / 60:.1f} min; {result.summary()}")


if __name__ == "__main__":
    main()
