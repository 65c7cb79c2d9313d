"""A random part of the drawn images, looked at once for all measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pathgen.augment.paint import Painter
from pathgen.augment.plan import CHECK, chance_for
from pathgen.data.patches import PatchDataset
from pathgen.stores.augmentations import Recipe, SelfAugmentationStore

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Side in pixels that images are averaged down to before their pixels are compared.
SIDE = 32


@dataclass(frozen=True)
class Look:
    """Drawn images of one kind."""

    items: NDArray[np.int64]
    """their numbers through all stores, (n,)"""
    images: PatchDataset
    """all images of the stores, by those numbers"""
    recipes: list[Recipe]
    embeddings: NDArray[np.float32]
    """the encoder's own, (n, D); nan without an encoder"""
    small: NDArray[np.float32]
    """`SIDE` pixels a side, (n, 3 SIDE SIDE) in [0, 1]"""


def look(stores: Sequence[SelfAugmentationStore], painter: Painter) -> dict[str, Look]:
    """Up to `check.images` images of each kind, drawn at random; kinds without any are left out."""
    recipes = [recipe for store in stores for recipe in store.recipes()]
    alike = np.array([recipe.secondary == recipe.primary for recipe in recipes], bool)
    images = PatchDataset(list(stores))
    chance = chance_for(painter.config, CHECK)
    result = {}
    for kind, rows in (
        ("generative", np.flatnonzero(alike)), ("interpolated", np.flatnonzero(~alike))
    ):  # fmt: skip
        # In random order: any first part is a random sample too.
        items = chance.permutation(rows)[: painter.config.check.images]
        if len(items):
            result[kind] = _look(images, items, recipes, painter)
    return result


def _look(
    images: PatchDataset, items: NDArray[np.int64], recipes: Sequence[Recipe], painter: Painter
) -> Look:
    embeddings, small, batch = [], [], painter.config.batch_size
    for start in range(0, len(items), batch):
        pixels = images.batch(items[start : start + batch])
        embeddings.append(painter.embed(pixels))
        there = torch.from_numpy(pixels).to(painter.device).permute(0, 3, 1, 2).float() / 255
        small.append(shrink(there))
    return Look(
        items=items, images=images, recipes=[recipes[item] for item in items.tolist()],
        embeddings=np.concatenate(embeddings), small=np.concatenate(small),
    )  # fmt: skip


def shrink(images: Tensor) -> NDArray[np.float32]:
    """(B, 3, S, S) in [0, 1] -> (B, 3 SIDE SIDE), means over areas."""
    small = F.adaptive_avg_pool2d(images, SIDE).flatten(1)
    return np.asarray(small.cpu().numpy(), np.float32)


def spread(values: NDArray[Any]) -> dict[str, float] | None:
    """Count, mean and quantiles; None where nothing was measured."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    quantiles = {f"q{q * 100:02.0f}": float(np.quantile(values, q)) for q in QUANTILES}
    return {"count": len(values), "mean": float(values.mean()), **quantiles}
