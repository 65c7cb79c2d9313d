"""Recipes to pixels: condition, diffusion, decoder, and the encoder as the judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathgen.augment.adaptive import with_noise
from pathgen.augment.plan import AugmentConfig
from pathgen.evaluate.knn import unit_length
from pathgen.models.autoencoder import Autoencoder
from pathgen.models.encoder import Encoder
from pathgen.models.interpolation import mixture
from pathgen.models.ldm import EmbeddingConditionedLDM
from pathgen.stores.augmentations import Recipe
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import PatchRef
from pathgen.train.engine import choose_precision
from pathgen.train.sheets import to_pixels


class Conditions:
    """Embeddings of all patches, in memory, looked up by patch."""

    def __init__(self, features: Sequence[FeatureStore]) -> None:
        lengths = [len(store) for store in features]
        starts = np.cumsum([0, *lengths]).tolist()
        self._ids = [str(store.source["id"]) for store in features]
        self._starts = dict(zip(self._ids, starts, strict=False))
        self.vectors = torch.from_numpy(
            np.concatenate([store.features().astype(np.float32) for store in features])
        )

    def index(self, patch: PatchRef) -> int:
        return int(self._starts[patch.store]) + patch.row

    def patch(self, index: int) -> PatchRef:
        """The other way round."""
        starts = list(self._starts.values())
        place = int(np.searchsorted(starts, index, side="right")) - 1
        return PatchRef(self._ids[place], index - starts[place])

    def of(self, recipes: Sequence[Recipe]) -> Tensor:
        """slerp(primary, secondary, alpha), (B, D) of unit length; alpha 1 is the primary.

        Three sources: slerp after slerp, as `mixture` says. Recipes with a noise level have their
        noise on it.
        """
        count = max((len(recipe.patches) for recipe in recipes), default=2)
        shares = torch.zeros(len(recipes), count)
        for row, recipe in enumerate(recipes):
            shares[row, : len(recipe.shares)] = torch.tensor(recipe.shares)
        sources = [
            self.at([(*recipe.patches, recipe.secondary)[number] for recipe in recipes])
            for number in range(count)
        ]
        return with_noise(mixture(sources, shares), recipes)

    def at(self, patches: Sequence[PatchRef]) -> Tensor:
        """Embeddings of real patches as they are stored, (B, D)."""
        return self.vectors[[self.index(patch) for patch in patches]]


class Painter:
    """Recipes to pixels: condition, diffusion, decoder, and the encoder as the judge.

    The networks compute where they are, in eval mode. `precision` is what the config's became
    there; it counts for diffusion and decoder, the judge stays in float32.
    """

    def __init__(
        self,
        ldm: EmbeddingConditionedLDM,
        autoencoder: Autoencoder,
        conditions: Conditions,
        config: AugmentConfig,
        encoder: Encoder | None = None,
    ) -> None:
        self.ldm, self.autoencoder, self.encoder = ldm.eval(), autoencoder.eval(), encoder
        self.conditions, self.config = conditions, config
        self.device = next(autoencoder.parameters()).device
        self.precision = choose_precision(config.precision, self.device)
        if self.device.type == "cuda":  # the order that its convolutions want
            self.ldm.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def draw(self, recipes: Sequence[Recipe]) -> NDArray[np.uint8]:
        """uint8 (B, S, S, 3)."""
        with torch.inference_mode():
            latents = self.ldm.sample(
                self.conditions.of(recipes), steps=self.config.steps,
                guidance=self.config.guidance, guidance_interval=self.config.guidance_interval,
                sampler=self.config.sampler, seeds=[recipe.seed for recipe in recipes],
                precision=self.precision,
            )  # fmt: skip
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                images = self.autoencoder.decode(latents)
        return to_pixels(images)

    def reconstruct(self, images: Tensor) -> NDArray[np.uint8]:
        """What the autoencoder alone gives back: (B, 3, S, S) in [0, 1] -> uint8 (B, S, S, 3)."""
        with torch.inference_mode():
            there = images.to(self.device)
            return to_pixels(self.autoencoder.decode(self.autoencoder.encode(there)))

    def embed(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The encoder's own view of images, (B, D); nan without an encoder."""
        if self.encoder is None:
            return np.full((len(images), self.conditions.vectors.shape[1]), np.nan, np.float32)
        return self.encoder.encode(images)

    def likeness(self, images: NDArray[np.uint8], recipes: Sequence[Recipe]) -> NDArray[np.float32]:
        """Cosine of each image's own embedding with its condition, (B,); nan without encoder."""
        return cosines(self.embed(images), self.conditions.of(recipes).numpy())


def cosines(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Row by row: (B, D), (B, D) -> (B,)."""
    return np.asarray((unit_length(first) * unit_length(second)).sum(1), np.float32)
