"""A small world of patches and synthetic images, for the tests of views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from helpers_data import make_augmentations, make_patches, noise
from torch import Tensor

from pathgen.config import build
from pathgen.data.views import ViewConfig, ViewMaker, Views
from pathgen.stores import PatchRef, Recipe

SMALL = {"global_size": 16, "local_size": 8, "local_crops": 4}
#: Only crops: what is seen is the patch itself.
PLAIN = {
    **SMALL, "horizontal_flip": 0, "jitter": 0, "gray": 0, "blur": (0, 0, 0), "solarize": 0,
}  # fmt: skip


class World:
    """Two stores of real patches. Even items have two variations, items below 8 one blend.

    Real patches are dark (below 100), variations bright (above 150), blends in between, so a
    plain crop tells where it came from.
    """

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(1)
        real = (noise(rng, 12, 32) * 0.39).astype(np.uint8)
        self.sources = [
            make_patches(folder / "a.h5", real[:5], "a"),
            make_patches(folder / "b.zarr", real[5:], "b"),
        ]
        self.refs = [
            PatchRef(source.id, row) for source in self.sources for row in range(len(source))
        ]
        variations = [
            Recipe.generative(self.refs[i], seed=i) for i in range(0, 12, 2) for _ in range(2)
        ]
        self.blends = [
            Recipe(self.refs[i], self.refs[11 - i], alpha=(i % 4 + 1) / 5, seed=100 + i)
            for i in range(8)
        ]
        recipes = [*self.blends[4:], *variations, *self.blends[:4]]
        bright = 150 + (noise(rng, len(recipes), 24) * 0.4).astype(np.uint8)
        for image, recipe in zip(bright, recipes, strict=True):
            if recipe.primary != recipe.secondary:
                image[:] = 110 + (image - 150) // 4
        names = [source.id for source in self.sources]
        self.augmentations = [
            make_augmentations(folder / "x.h5", bright[:9], recipes[:9], names),
            make_augmentations(folder / "y.h5", bright[9:], recipes[9:], names[::-1]),
        ]

    def maker(self, with_synthetic: bool = True, seed: int = 7, **settings: object) -> ViewMaker:
        config = build(ViewConfig, {**PLAIN, **settings})
        return ViewMaker(
            config, self.sources, self.augmentations if with_synthetic else (), seed=seed
        )


def tensors(views: Views) -> list[Tensor]:
    """All images of a batch, then what is said of its blends."""
    found = [*views.global_crops, *views.local_crops]
    if views.blend is not None:
        others = [view for views in views.blend.others for view in views]
        found += [views.blend.image, *others, views.blend.shares, views.blend.rows]
    return found


def equal(one: Views, other: Views) -> bool:
    """To the bit."""
    first, second = tensors(one), tensors(other)
    return len(first) == len(second) and all(map(torch.equal, first, second))
