"""How good the drawn patches are: cosines for the computer, a sheet for the eye."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pathgen.augment.paint import Conditions, Painter
from pathgen.augment.plan import PAIRS, SHEET, AugmentConfig, chance_for
from pathgen.data.patches import PatchDataset
from pathgen.data.sources import PatchSource
from pathgen.stores.augmentations import Recipe, SelfAugmentationStore
from pathgen.stores.features import FeatureStore
from pathgen.train.autoencoder import load_images
from pathgen.train.ldm import check_alignment
from pathgen.train.sheets import Picture, to_pixels, write_sheet

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def likeness_metrics(
    paths: Sequence[Path], conditions: Conditions, config: AugmentConfig
) -> dict[str, Any]:
    """How well the draws keep their condition: cosines of re-embedded images, and what to expect.

    `random_pair` is the cosine of two real patches taken at random: a model that ignores its
    condition is no better.
    """
    cosines, alphas = [], []
    for path in paths:
        with SelfAugmentationStore.open(path) as store:
            cosines.append(store.cosine())
            alphas.append(store.table.read("alpha"))
    cosine, alpha = np.concatenate(cosines), np.concatenate(alphas)
    chance, count = chance_for(config, PAIRS), len(conditions.vectors)
    first = chance.integers(count, size=min(10_000, 20 * count))
    second = (first + 1 + chance.integers(max(count - 1, 1), size=len(first))) % count
    vectors = torch.nn.functional.normalize(conditions.vectors, dim=1)
    random_pair = (vectors[first] * vectors[second]).sum(1).numpy()
    return {
        "images": len(cosine),
        "generative": _spread(cosine[alpha == 1]),
        "interpolated": _spread(cosine[alpha < 1]),
        "random_pair": _spread(random_pair),
    }


def _spread(values: NDArray[np.float32]) -> dict[str, float] | None:
    """Count, mean and quantiles; None where nothing was measured."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    quantiles = {f"q{q * 100:02.0f}": float(np.quantile(values, q)) for q in QUANTILES}
    return {"count": len(values), "mean": float(values.mean()), **quantiles}


def draw_sheet(
    path: Path,
    painter: Painter,
    features: Sequence[FeatureStore],
    sources: Sequence[PatchSource],
    rows: int = 4,
) -> None:
    """A picture to judge by: real patches beside their variations, and pairs with their blends.

    `rows` rows of one patch and five variations, then `rows` rows from one patch to another over
    blends with alpha 0.8, 0.6, 0.4, 0.2 that start from the same noise.
    """
    check_alignment(sources, features)
    patches, size = PatchDataset(list(sources)), painter.autoencoder.config.image_size
    chance = chance_for(painter.config, SHEET)

    def real(index: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = to_pixels(load_images(patches, [index], size))[0]
        return pixels

    lines: list[list[Picture]] = []
    for index in chance.choice(len(patches), min(rows, len(patches)), replace=False).tolist():
        seeds = chance.integers(2**63 - 1, size=5).tolist()
        drawn = painter.draw([Recipe.generative(patches.locate(index), seed) for seed in seeds])
        views = [Picture(f"view {i}", image) for i, image in enumerate(drawn, 1)]
        lines.append([Picture("real", real(index)), *views])
    for _ in range(rows if len(patches) > 1 else 0):
        first, second = chance.choice(len(patches), 2, replace=False).tolist()
        seed, alphas = int(chance.integers(2**63 - 1)), (0.8, 0.6, 0.4, 0.2)
        pair = patches.locate(first), patches.locate(second)
        drawn = painter.draw([Recipe(*pair, alpha, seed) for alpha in alphas])
        blends = [Picture(f"alpha {a}", image) for a, image in zip(alphas, drawn, strict=True)]
        lines.append([Picture("real 1", real(first)), *blends, Picture("real 2", real(second))])
    write_sheet(path, lines)
