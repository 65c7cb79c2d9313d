"""A small DINO, textures to train it on, and views that need no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathgen.data.views import Blend, ViewConfig, Views
from pathgen.models.dino import DinoHeadConfig
from pathgen.models.encoder import EncoderConfig
from pathgen.runs import RunConfig
from pathgen.train.dino import DinoConfig
from pathgen.train.optimize import OptimConfig


class Textures:
    """Stripes of four directions in stain-like colors, (n, 48, 48, 3); a `PatchSource`."""

    name = "textures"
    path = Path("textures")
    classes = ("0", "45", "90", "135")

    def __init__(self, n: int = 64, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.id = f"textures-{n}-{seed}"
        self.labels = np.arange(n) % 4
        angle = self.labels * np.pi / 4 + rng.normal(0, 0.1, n)
        y, x = np.mgrid[:48, :48] / 48
        across = np.cos(angle)[:, None, None] * x + np.sin(angle)[:, None, None] * y
        wave = np.sin(2 * np.pi * (rng.uniform(4, 7, n)[:, None, None] * across))
        color = rng.uniform(0.3, 0.9, (n, 1, 1, 3))
        noise = rng.normal(0, 0.05, (n, 48, 48, 3))
        pixels = color + 0.25 * wave[..., None] + noise
        self._images = (255 * pixels.clip(0, 1)).astype(np.uint8)

    def __len__(self) -> int:
        return len(self._images)

    def images(self, rows: Any) -> NDArray[np.uint8]:
        return self._images[rows]


def tiny(**changes: Any) -> DinoConfig:
    """A two-layer ViT with stochastic depth, 10 steps of 8 patches."""
    values: dict[str, Any] = {
        "encoder": EncoderConfig(
            image_size=32,
            kwargs={"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
            drop_path=0.2,
        ),
        "head": DinoHeadConfig(hidden=48, bottleneck=16, prototypes=64),
        "views": ViewConfig(global_size=32, local_size=16, local_crops=2),
        "optim": OptimConfig(steps=10, batch_size=8, lr=0.02, warmup_epochs=0.25),
        "run": RunConfig(device="cpu", save_every=4, log_every=1),
        "freeze_last_layer_epochs": 0.5,
    }
    return DinoConfig(**values | changes)


def random_views(step: int, batch: int = 8, *, blend: bool, local_crops: int = 2) -> Views:
    """Noise whose content depends on `step` alone; the blend is drawn after all else."""
    draw = torch.Generator().manual_seed(step)

    def images(side: int, n: int = batch) -> torch.Tensor:
        return torch.rand(n, 3, side, side, generator=draw)

    globals_ = [images(32), images(32)]
    locals_ = [images(16) for _ in range(local_crops)]
    mixed = None
    if blend:
        rows = torch.arange(0, batch, 2)
        image, secondary = images(32, len(rows)), images(32, len(rows))
        alpha = torch.rand(len(rows), generator=draw)
        mixed = Blend(image, [[secondary]], torch.stack([alpha, 1 - alpha], 1), rows)
    return Views(globals_, locals_, mixed)


def random_loader(
    config: ViewConfig, sources: Sequence[Any], augmentations: Sequence[Any] = (), *,
    batch_size: int, start_step: int, steps: int, **_: Any,
) -> Iterator[Views]:  # fmt: skip
    """In place of `view_loader`: blends whenever there are augmentations."""
    for step in range(start_step, steps):
        yield random_views(step, batch_size, blend=bool(augmentations))


def reference_schedule(base: float, final: float, warmup: int, total: int) -> np.ndarray:
    """A linear rise over `warmup` points including both ends, then half a cosine."""
    rise = np.linspace(0.0, base, warmup)
    turn = np.arange(total - warmup) / max(total - warmup, 1)
    return np.concatenate([rise, final + (base - final) * (1 + np.cos(np.pi * turn)) / 2])


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a nested state."""
    if isinstance(value, dict):
        return {k: v for key, x in value.items() for k, v in flat(x, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, x in enumerate(value) for k, v in flat(x, f"{name}/{i}").items()}
    return {name: value}


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, every tensor and number."""
    one, other = flat(a), flat(b)
    if one.keys() != other.keys():
        return False
    return all(
        torch.equal(x, other[k]) if isinstance(x, Tensor) else x == other[k] for k, x in one.items()
    )
