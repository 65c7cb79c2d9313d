"""The whole of Gen-SIS in seconds: the tiny recipe, made as small as it still is itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from helpers_data import noise
from PIL import Image

STEPS = 3
MINUTE = (
    "dino.encoder.image_size=32", "dino.encoder.kwargs.embed_dim=32",
    "dino.encoder.kwargs.depth=2", "dino.encoder.kwargs.num_heads=2",
    "dino.head.hidden=32", "dino.head.bottleneck=16", "dino.head.prototypes=32",
    "dino.views.global_size=32", "dino.views.local_size=16", f"dino.optim.steps={STEPS}",
    "dino.optim.batch_size=4", "dino.optim.warmup_steps=1",
    "dino.run.save_every=2", "dino.run.log_every=1",
    "autoencoder.model.image_size=32", "autoencoder.model.block_out_channels=[8,8]",
    f"autoencoder.optim.steps={STEPS}", "autoencoder.run.log_every=1",
    "ldm.model.latent_size=8", "ldm.model.embedding_dim=32", "ldm.model.context_dim=32",
    "ldm.model.block_out_channels=[32,32]", "ldm.model.heads=2", f"ldm.optim.steps={STEPS}",
    "ldm.optim.batch_size=4", "ldm.run.log_every=1", "ldm.run.save_every=2",
    "augment.steps=2", "augment.max_sources=6", "augment.batch_size=4", "augment.check.pairs=1",
    "features.batch_size=8",
)  # fmt: skip


def image_folder(path: Path, n: int = 6, size: int = 40) -> Path:
    """Two classes of `n` images each, ImageNet's layout."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        folder = path / name
        folder.mkdir(parents=True)
        for i, image in enumerate(noise(rng, n, size)):
            Image.fromarray(image).save(folder / f"{i}.png")
    return path


class Watched:
    """A `Progress` that calls `at(title, count)` before each advance."""

    def __init__(self, at: Callable[[str, int], None]) -> None:
        self.at = at

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Any]:
        at = self.at

        class _Task:
            count = 0

            def advance(self, count: int = 1, note: str = "") -> None:
                self.count += 1
                at(title, self.count)

        yield _Task()

    def say(self, text: str) -> None: ...
