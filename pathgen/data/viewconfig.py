"""Settings of the views: DINO's multi-crop, the preset for pathology, and Gen-DINO's choices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pathgen.config import Config

Share = float
Range = tuple[float, float]

#: Settings that a preset gives where none are given. "dino" is the classes' own defaults.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "dino": {},
    "pathology": {
        "vertical_flip": 0.5,
        "quarter_turns": True,
        "hue": 0.0,
        "stain": 0.8,
        "gray": 0.0,
        "solarize": 0.0,
    },
}


class ViewConfig(Config):
    """Crops and colors of the views. The defaults are DINO's.

    `preset: pathology` has no up and no hue: vertical flips, quarter turns and stain jitter
    in place of hue, gray and solarization. A setting that is given wins over the preset.
    """

    preset: Literal["dino", "pathology"] = "dino"
    global_size: int = Field(default=224, ge=8)
    global_scale: Range = (0.4, 1.0)
    """area of a global crop as a share of the patch"""
    local_size: int = Field(default=96, ge=8)
    local_scale: Range = (0.05, 0.4)
    local_crops: int = Field(default=8, ge=0)

    synthetic_share: Share = Field(default=1.0, ge=0, le=1)
    """probability that one of the two global views is synthetic"""
    local_synthetic_share: Share = Field(default=0.5, ge=0, le=1)
    """of such a sample, the share of local crops cut from the synthetic image"""
    synthetic_strength: Share = Field(default=1.0, ge=0, le=1)
    """AdaInf (arXiv 2403.12448): how strongly synthetic and blended views are augmented; below 1
    probability and strength of jitter, stains, blur, gray and solarization shrink by this factor,
    and the smallest crop grows towards the largest"""
    neighbor_share: Share = Field(default=0.0, ge=0, le=1)
    """probability that a real second global view is cut from a patch that touches the first one's
    on the slide (contextual positives, arXiv 2503.05170); needs patch stores"""

    blend: Literal["embedding", "pixel", "off"] = "embedding"
    """the student's view of two sources: the image drawn from their interpolated embeddings; the
    two real patches mixed pixel by pixel with the same stored alpha, for comparison; or none"""
    dis_pairs: Literal["one", "all"] = "one"
    """teacher views of the blend's target: one of each source (Algorithm 1), or both global views
    of the first with two of each other, averaged over all pairs"""

    horizontal_flip: Share = Field(default=0.5, ge=0, le=1)
    vertical_flip: Share = Field(default=0.0, ge=0, le=1)
    quarter_turns: bool = False
    jitter: Share = Field(default=0.8, ge=0, le=1)
    """probability of the next four, done in random order"""
    brightness: float = Field(default=0.4, ge=0, le=1)
    contrast: float = Field(default=0.4, ge=0, le=1)
    saturation: float = Field(default=0.2, ge=0, le=1)
    hue: float = Field(default=0.1, ge=0, le=0.5)
    stain: Share = Field(default=0.0, ge=0, le=1)
    """probability of jitter in hematoxylin-eosin-DAB space"""
    stain_scale: float = Field(default=0.2, ge=0, lt=1)
    """each stain's density is multiplied by 1 - this to 1 + this"""
    stain_shift: float = Field(default=0.02, ge=0, lt=1)
    """and has minus this to plus this added, in optical density"""
    gray: Share = Field(default=0.2, ge=0, le=1)
    blur: tuple[Share, Share, Share] = (1.0, 0.1, 0.5)
    """probability for the first global, the second global, and the local crops"""
    blur_sigma: Range = (0.1, 2.0)
    """pixels of every crop when global crops have 224; less when they have less"""
    solarize: Share = Field(default=0.2, ge=0, le=1)
    """probability for the second global crop"""

    @model_validator(mode="before")
    @classmethod
    def _lay_over_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {**PRESETS.get(str(values.get("preset", "dino")), {}), **values}

    @field_validator("blend", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return "off" if value is False else value  # what YAML makes of a bare off

    @model_validator(mode="after")
    def _ranges_rise(self) -> ViewConfig:
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must rise within (0, 1]")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError("blur_sigma must rise from above 0")
        if not all(0 <= share <= 1 for share in self.blur):
            raise ValueError("blur holds three probabilities")
        return self

    @property
    def sigmas(self) -> Range:
        """Range of the blur's sigma in pixels; DINO's 0.1 to 2 would wipe out a crop of 64."""
        scale = self.global_size / 224
        return self.blur_sigma[0] * scale, self.blur_sigma[1] * scale

    @property
    def blur_radius(self) -> int:
        """Where every blur is cut off, in pixels; one for all images."""
        return math.ceil(3 * self.sigmas[1])
