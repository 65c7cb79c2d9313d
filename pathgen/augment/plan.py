"""What to draw: decided as a whole before any image is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from pathgen.augment.settings import AdaptiveConfig, CheckConfig, FilterConfig
from pathgen.config import Config
from pathgen.errors import NoInputError
from pathgen.models.ldm import Sampler
from pathgen.stores.augmentations import Recipe
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import PatchRef

#: What a stream of chance is for; numbers are part of every result and never change.
SOURCES, GENERATIVE, INTERPOLATED, PAIRS, SHEET = range(5)
RECONSTRUCTIONS, RETRIES, CHECK, CURVES, THIRDS = range(10, 15)


class AugmentConfig(Config):
    """How many synthetic images each real patch gets, and how they are drawn."""

    generative: int = Field(default=1, ge=0)
    """Variations a patch."""
    interpolated: int = Field(default=1, ge=0)
    """Blends a patch, each with another one."""
    interpolated_sources: Literal[2, 3] = 2
    """Patches in a blend. Of 3, ours, the second and third share what the primary leaves."""
    max_sources: int | None = Field(default=None, ge=1)
    """Draw for a random sample of this many patches only; None: for all."""
    alphas: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    """Shares of the primary that a blend may have, each as likely."""
    steps: int = Field(default=50, ge=1)
    guidance: float = Field(default=2.0, ge=0)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Guide only while time / train_steps lies within (arXiv 2404.07724); (0, 1): always."""
    sampler: Sampler = "ddim"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of diffusion and decoder. auto: bf16 where the device computes in it, else fp32."""
    batch_size: int = Field(default=64, ge=1)
    seed: int = Field(default=0, ge=0)
    shard: int = Field(default=10_000, ge=1)
    """Most images in one store: what a stop can cost, and what processes share the work by. A
    source with more gets several stores."""
    format: Literal["h5", "zarr"] = "h5"
    adaptive: AdaptiveConfig = Field(default_factory=AdaptiveConfig)
    filter: FilterConfig = Field(default_factory=FilterConfig)
    check: CheckConfig = Field(default_factory=CheckConfig)

    @model_validator(mode="after")
    def _fits(self) -> AugmentConfig:
        if not self.generative + self.interpolated:
            raise ValueError("generative and interpolated are both 0: there is nothing to draw")
        if not self.alphas or not all(0 < alpha < 1 for alpha in self.alphas):
            raise ValueError("alphas lie between 0 and 1, both excluded; 1 is what generative does")
        if not 0 <= self.guidance_interval[0] <= self.guidance_interval[1] <= 1:
            raise ValueError("guidance_interval is two rising shares of the time, within 0 and 1")
        return self


def plan_recipes(features: Sequence[FeatureStore], config: AugmentConfig) -> list[Recipe]:
    """Every image to be drawn, store by store and patch by patch; first variations, then blends.

    A blend's secondary is any other patch of all stores, each as likely. Equal features and
    config give an equal plan; how the images are batched has no part in it.

    Raises:
        NoInputError: no patches, or fewer than a blend takes.
    """
    refs = [PatchRef(str(s.source["id"]), row) for s in features for row in range(len(s))]
    count = len(refs)
    if not count:
        raise NoInputError("no embeddings to draw from", hint="extract features first")
    if config.interpolated and count < 2:
        raise NoInputError(
            "a blend needs two patches", where="augment.interpolated", why="there is only one",
            hint="give more patches or set augment.interpolated=0",
        )  # fmt: skip
    chosen = np.arange(count)
    if config.max_sources is not None and config.max_sources < count:
        sample = chance_for(config, SOURCES).choice(count, config.max_sources, replace=False)
        chosen = np.sort(sample)

    shape = (len(chosen), config.generative)
    variation_seeds = chance_for(config, GENERATIVE).integers(2**63 - 1, size=shape)
    chance, shape = chance_for(config, INTERPOLATED), (len(chosen), config.interpolated)
    blend_seeds = chance.integers(2**63 - 1, size=shape)
    # One of the count - 1 others: from the primary's own place on, the numbers move up by one.
    others = chance.integers(max(count - 1, 1), size=shape)
    others += others >= chosen[:, None]
    # As the store keeps them, so that a recipe read back equals the planned one.
    alphas = np.asarray(config.alphas, np.float32)[chance.integers(len(config.alphas), size=shape)]

    thirds = _thirds(config, chosen, others, alphas, count)
    recipes = []
    for place, index in enumerate(chosen.tolist()):
        primary = refs[index]
        recipes += [Recipe.generative(primary, seed) for seed in variation_seeds[place].tolist()]
        blends = (others[place].tolist(), alphas[place].tolist(), blend_seeds[place].tolist())
        recipes += [
            Recipe(primary, refs[other], alpha, seed)
            for other, alpha, seed in zip(*blends, strict=True)
        ]
        for number, (third, beta) in enumerate(thirds[place]):
            at = number - config.interpolated
            recipes[at] = recipes[at]._replace(tertiary=refs[third], beta=beta)
    return recipes


def _thirds(
    config: AugmentConfig,
    chosen: NDArray[np.int64],
    others: NDArray[np.int64],
    alphas: NDArray[np.float32],
    count: int,
) -> list[list[tuple[int, float]]]:
    """The third source of each blend and the share of the second; empty lists for two sources.

    The third is any patch but the first two, each as likely; the second has a uniform part of
    what the primary leaves.
    """
    if config.interpolated_sources < 3 or not config.interpolated:
        return [[] for _ in chosen]
    if count < 3:
        raise NoInputError(
            "a three-way mixture needs three patches", where="augment.interpolated_sources",
            why=f"there are only {count}", hint="give more patches or set it to 2",
        )  # fmt: skip
    chance = chance_for(config, THIRDS)
    third = chance.integers(count - 2, size=others.shape)
    first = np.broadcast_to(chosen[:, None], others.shape)
    for taken in (np.minimum(first, others), np.maximum(first, others)):
        third += third >= taken
    beta = ((1 - alphas) * chance.random(others.shape)).astype(np.float32)
    rows = zip(third.tolist(), beta.tolist(), strict=True)
    return [list(zip(*row, strict=True)) for row in rows]


def chance_for(config: AugmentConfig, purpose: int) -> np.random.Generator:
    """A stream of chance of its own for each purpose."""
    return np.random.default_rng([config.seed, purpose])
