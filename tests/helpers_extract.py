"""Encoders that tests of extraction can reason about."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray


class Means:
    """Mean color, and how many patches it was shown."""

    dim, id = 3, "means-1"

    def __init__(self) -> None:
        self.seen = 0

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert patches.dtype == np.uint8
        self.seen += len(patches)
        return patches.mean((1, 2)).astype(np.float32)


class Pixels:
    """Some pixels as they are: nothing of a patch can change unseen. (n, 48)"""

    dim, id = 48, "pixels-1"

    def __init__(self) -> None:
        self.seen = 0

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.seen += len(patches)
        step = patches.shape[1] // 4
        return patches[:, ::step, ::step][:, :4, :4].reshape(len(patches), -1).astype(np.float32)


def content(folder: Path) -> dict[str, bytes]:
    """What a run leaves, but for its lock and what differs between runs."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".pathgen-lock", "events.jsonl")
    }


def main() -> None:
    """One of several processes: ``OUT ENCODER PATCHES...``; slides where PATCHES are no stores."""
    from pathgen import commit, parallel
    from pathgen.extract import ExtractConfig, extract, load_encoder
    from pathgen.tiling import TileConfig

    out, model, *given = sys.argv[1:]
    torch.set_num_threads(1)
    encoder = load_encoder(Path(model), "cpu")
    shown: list[int] = []
    encode = encoder.encode

    class Counting:
        dim, id, config = encoder.dim, encoder.id, getattr(encoder, "config", None)

        def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
            shown.append(len(patches))
            time.sleep(0.05)  # so that the other has its share too
            return encode(patches)

    parallel.wait()
    tile = None if given[0].endswith(".h5") else TileConfig(patch_size=64, thumbnail_px=64)
    report = extract(Counting(), given, out, ExtractConfig(batch_size=4), tile=tile)
    said = {"encoded": sum(shown), "rows": [row.slide for row in report.encoders[0].rows]}
    commit.write_json(Path(f"{out}-{parallel.rank()}.json"), said)
    parallel.wait()


if __name__ == "__main__":
    main()
