"""Settings beside the plan: which drawn images stay, and what is measured of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pathgen.config import Config


class FilterConfig(Config):
    """The re-embedding filter: an image whose embedding is far from what was asked is drawn anew.

    Ours, not the paper's; off unless `min_cosine` or `min_quantile` is set.
    """

    min_cosine: float | None = Field(default=None, ge=-1, le=1)
    """Least cosine between the condition and the embedding of the image."""
    min_quantile: float | None = Field(default=None, gt=0, lt=1)
    """The same limit, as this quantile of the cosines of `of`; instead of `min_cosine`."""
    of: Literal["random_pairs", "reconstructions"] = "random_pairs"
    """random_pairs: of two real patches taken at random, what an E-LDM that ignores its condition
    would reach. reconstructions: of real patches and what the autoencoder gives back of them,
    about the best that can be reached."""
    retries: int = Field(default=2, ge=0)
    """How often an image below the limit is drawn again, each time from other noise."""
    on_fail: Literal["keep", "drop"] = "keep"
    """With no retry left. keep: the best of its draws. drop: none, and its patch is shown as it is
    in training."""

    @property
    def active(self) -> bool:
        """Whether there is a limit."""
        return self.min_cosine is not None or self.min_quantile is not None

    @model_validator(mode="after")
    def _one_limit(self) -> FilterConfig:
        if self.min_cosine is not None and self.min_quantile is not None:
            raise ValueError("min_cosine and min_quantile are two ways to give one limit")
        return self


class CheckConfig(Config):
    """What is measured once all images are there. Changes no image."""

    images: int = Field(default=5_000, ge=0)
    """At most so many images of each kind are looked at, drawn at random; 0 measures nothing but
    the cosines that the stores hold."""
    real: int = Field(default=20_000, ge=1)
    """Real patches that copies are looked for among: the sources of those images, and others up to
    this number."""
    pairs: int = Field(default=32, ge=0)
    """Pairs of patches between which images are drawn from equal noise, at six values of alpha."""


class AdaptiveConfig(Config):
    """GenView's adaptive views (arXiv 2403.12003): the more foreground, the bolder a variation.

    Not Gen-SIS; off unless `noise` is set. The foreground is read off the encoder's own patch
    tokens, see `pathgen.models.genview`.
    """

    noise: bool = False
    """Put noise on each image's embedding before it is drawn from: level 0, 100, 200, 300 or 400
    by the foreground share of its primary. Blends get it after the interpolation."""
    guide: Literal["tissue", "center"] = "tissue"
    """What the foreground is. tissue: where colors are saturated. center: away from the border,
    as in natural images."""
    quantile: float = Field(default=0.6, gt=0, lt=1)
    """Share of all tokens that are background. 0.6 is the paper's; its code has 0.65."""
    fitted: int = Field(default=1000, ge=1)
    """Patches that direction and threshold of the foreground are found on, evenly spaced."""
