"""How bold each variation is: noise on its embedding, by how much foreground its patch has."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathgen.augment.settings import AdaptiveConfig
from pathgen.data.patches import PatchDataset
from pathgen.data.sources import PatchSource
from pathgen.data.subsets import evenly
from pathgen.errors import ConfigError
from pathgen.models.encoder import Encoder
from pathgen.models.genview import Foreground, noise_level, noised, saturation
from pathgen.stores.augmentations import Recipe
from pathgen.stores.features import FeatureStore
from pathgen.train.autoencoder import load_images

#: Images encoded at once.
BATCH = 128
#: Tells an image's noise on the embedding from its noise in the latents: one seed, two streams.
EMBEDDING = 1


def with_levels(
    recipes: Sequence[Recipe],
    features: Sequence[FeatureStore],
    encoder: Encoder | None,
    sources: Sequence[PatchSource] | None,
    config: AdaptiveConfig,
) -> list[Recipe]:
    """The recipes, each with the noise level that its primary's share of foreground allows.

    Raises ConfigError without an encoder or patches, or when the tokens have no foreground.
    """
    if encoder is None or sources is None:
        raise ConfigError(
            "adaptive noise needs the encoder and the patches", where="augment.adaptive.noise",
            why=f"{'the encoder' if encoder is None else 'the patches'} were not given",
            hint="give both, or set augment.adaptive.noise=false",
        )  # fmt: skip
    starts = np.cumsum([0, *map(len, features)]).tolist()
    first = {str(store.source["id"]): start for store, start in zip(features, starts, strict=False)}
    items = np.array([first[r.primary.store] + r.primary.row for r in recipes], np.int64)
    patches = PatchDataset(list(sources))
    wanted, back = np.unique(items, return_inverse=True)
    shares = foreground_shares(encoder, patches, wanted, config)
    levels = noise_level(torch.from_numpy(shares)).numpy()[back].tolist()
    return [r._replace(noise_level=float(v)) for r, v in zip(recipes, levels, strict=True)]


def foreground_shares(
    encoder: Encoder, patches: PatchDataset, rows: NDArray[np.int64], config: AdaptiveConfig
) -> NDArray[np.float32]:
    """Share of foreground tokens in each of `rows`, float32 (n,) in [0, 1].

    Direction and threshold come from `config.fitted` patches of all, whatever `rows` are.
    """
    fitted = list(_seen(encoder.eval(), patches, evenly(len(patches), config.fitted)))
    guide = [where for _, where in fitted] if config.guide == "tissue" else None
    foreground = Foreground.fit([tokens for tokens, _ in fitted], guide, config.quantile)
    found = [foreground.share(tokens).cpu() for tokens, _ in _seen(encoder, patches, rows)]
    return np.asarray(torch.cat(found).numpy(), np.float32)


def with_noise(embeddings: Tensor, recipes: Sequence[Recipe]) -> Tensor:
    """Conditions (B, D) of unit length with the noise of their recipes; without a level, as given.

    The noise of an image depends on its own seed alone.
    """
    levels = torch.tensor([recipe.noise_level for recipe in recipes])
    if not levels.any():
        return embeddings
    noise = np.stack([
        np.random.default_rng([recipe.seed, EMBEDDING]).standard_normal(embeddings.shape[1])
        for recipe in recipes
    ])  # fmt: skip
    mixed = noised(embeddings, levels, torch.from_numpy(noise).float())
    return torch.where(levels[:, None] > 0, mixed, embeddings)


@torch.no_grad()
def _seen(
    encoder: Encoder, patches: PatchDataset, rows: NDArray[np.int64]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens (B, N, D) and the saturation (B, N) under each, batch by batch."""
    size, device = encoder.config.image_size, next(encoder.parameters()).device
    for start in range(0, len(rows), BATCH):
        images = load_images(patches, rows[start : start + BATCH].tolist(), size).to(device)
        tokens = encoder.tokens(images)
        yield tokens, saturation(images, size // math.isqrt(tokens.shape[1]))
