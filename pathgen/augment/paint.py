"""Recipes to pixels: condition, diffusion, decoder, and the encoder as the judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathgen.augment.plan import AugmentConfig
from pathgen.models.autoencoder import Autoencoder
from pathgen.models.encoder import Encoder
from pathgen.models.interpolation import slerp
from pathgen.models.ldm import EmbeddingConditionedLDM
from pathgen.stores.augmentations import Recipe
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import PatchRef
from pathgen.train.sheets import to_pixels


class Conditions:
    """Embeddings of all patches, in memory, looked up by patch."""

    def __init__(self, features: Sequence[FeatureStore]) -> None:
        lengths = [len(store) for store in features]
        starts = np.cumsum([0, *lengths]).tolist()
        ids = [str(store.source["id"]) for store in features]
        self._starts = dict(zip(ids, starts, strict=False))
        self.vectors = torch.from_numpy(
            np.concatenate([store.features().astype(np.float32) for store in features])
        )

    def index(self, patch: PatchRef) -> int:
        return int(self._starts[patch.store]) + patch.row

    def of(self, recipes: Sequence[Recipe]) -> Tensor:
        """slerp(primary, secondary, alpha), (B, D) of unit length; alpha 1 is the primary."""
        primary = self.vectors[[self.index(recipe.primary) for recipe in recipes]]
        secondary = self.vectors[[self.index(recipe.secondary) for recipe in recipes]]
        return slerp(primary, secondary, torch.tensor([recipe.alpha for recipe in recipes]))


class Painter:
    """Recipes to pixels: condition, diffusion, decoder, and the encoder as the judge."""

    def __init__(
        self,
        ldm: EmbeddingConditionedLDM,
        autoencoder: Autoencoder,
        conditions: Conditions,
        config: AugmentConfig,
    ) -> None:
        self.ldm, self.autoencoder = ldm, autoencoder
        self.conditions, self.config = conditions, config

    def draw(self, recipes: Sequence[Recipe]) -> NDArray[np.uint8]:
        """uint8 (B, S, S, 3)."""
        with torch.no_grad():
            latents = self.ldm.sample(
                self.conditions.of(recipes), steps=self.config.steps,
                guidance=self.config.guidance, sampler=self.config.sampler,
                seeds=[recipe.seed for recipe in recipes],
            )  # fmt: skip
            return to_pixels(self.autoencoder.decode(latents))

    def likeness(
        self, encoder: Encoder | None, images: NDArray[np.uint8], recipes: Sequence[Recipe]
    ) -> NDArray[np.float32]:
        """Cosine of each image's own embedding with its condition, (B,); nan without encoder."""
        if encoder is None:
            return np.full(len(recipes), np.nan, np.float32)
        own = torch.from_numpy(encoder.encode(images))
        cosine = torch.nn.functional.cosine_similarity(own, self.conditions.of(recipes))
        return np.asarray(cosine.numpy(), np.float32)
