"""What is asked of one synthetic slide, and the grading rule its label follows.

All lengths inside the maker are micrometers, so that a slide at another mpp shows the same tissue.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from pathgen.config import Config

Style = Literal["resection", "biopsy"]

CLASSES: tuple[str, ...] = (
    "background",
    "stroma",
    "benign",
    "pattern 3",
    "pattern 4",
    "pattern 5",
    "fat",
)
BACKGROUND, STROMA, BENIGN, PATTERN3, PATTERN4, PATTERN5, FAT = range(len(CLASSES))
PATTERN_CLASS: Mapping[int, int] = {3: PATTERN3, 4: PATTERN4, 5: PATTERN5}

MIN_TUMOR = 0.01  # share of tissue below which a slide is benign
MIN_SECONDARY = 0.05  # share of tumor below which a pattern is not counted
_ISUP: Mapping[tuple[int, int], int] = {(3, 3): 1, (3, 4): 2, (4, 3): 3}


class SlideSpec(Config):
    """One synthetic slide. The same spec gives the same bytes.

    width, height in level-0 pixels; `grade` is ISUP-like, 0 (benign only) to 5, None for one drawn
    from the seed; `tissue_share` is the share of the slide that is tissue; `levels` are the
    downsamples of the pyramid; the two variations scale how far stain and scanner stray from the
    reference; `grid_points` draws sharp crosses at positions recorded in the truth.
    """

    width: int = Field(default=8192, ge=256, le=131072)
    height: int = Field(default=8192, ge=256, le=131072)
    mpp: float = Field(default=0.5, ge=0.1, le=2.0)
    objective: float = Field(default=20.0, gt=0)
    grade: int | None = Field(default=None, ge=0, le=5)
    seed: int = Field(default=0, ge=0)
    style: Style = "resection"
    tissue_share: float = Field(default=0.4, gt=0.02, le=0.85)
    tile: int = Field(default=256, ge=64, le=1024, multiple_of=16)
    levels: tuple[int, ...] = (1, 4, 16)
    jpeg_quality: int = Field(default=85, ge=30, le=100)
    stain_variation: float = Field(default=1.0, ge=0, le=2)
    scanner_variation: float = Field(default=1.0, ge=0, le=2)
    pen: bool = False
    blur: bool = False
    fat: bool = False
    folds: bool = False
    empty: bool = False
    grid_points: bool = False

    @field_validator("levels")
    @classmethod
    def _nested(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if not levels or levels[0] != 1:
            raise ValueError("levels start at downsample 1")
        for finer, coarser in pairwise(levels):
            if coarser <= finer or coarser % finer:
                raise ValueError("each downsample is a multiple of the one before")
        return levels

    @model_validator(mode="after")
    def _whole_pixels(self) -> SlideSpec:
        if len(self.levels) > 1 and self.tile % self.levels[1]:
            raise ValueError("the tile side is a multiple of the second downsample")
        if min(self.width, self.height) < self.levels[-1]:
            raise ValueError("the coarsest level is empty")
        return self

    @property
    def scene_scale(self) -> int:
        """Level-0 pixels in one pixel of the scene and the truth maps: about 2 um."""
        return max(1, round(2.0 / self.mpp))

    @property
    def scene_mpp(self) -> float:
        return self.scene_scale * self.mpp

    def rng(self, stream: str) -> np.random.Generator:
        """A generator of its own for each part, so that no part's draws move another's."""
        return np.random.default_rng([self.seed, *stream.encode()])


def isup(shares: Mapping[int, float]) -> int:
    """ISUP-like grade from the shares of tissue in Gleason-like patterns 3, 4 and 5.

    The largest pattern is the primary and the next the secondary if it holds at least
    `MIN_SECONDARY` of the tumor (Epstein et al. 2016, grade groups): 3+3 is 1, 3+4 is 2, 4+3
    is 3, a sum of 8 is 4, more is 5; no tumor is 0.
    """
    tumor = sum(shares.values())
    if tumor < MIN_TUMOR:
        return 0
    order = sorted(shares, key=lambda pattern: (-shares[pattern], -pattern))
    counted = [p for p in order if shares[p] >= MIN_SECONDARY * tumor]
    primary, secondary = counted[0], counted[1] if len(counted) > 1 else counted[0]
    if (primary, secondary) in _ISUP:
        return _ISUP[primary, secondary]
    return 4 if primary + secondary == 8 else 5


def draw_patterns(grade: int, rng: np.random.Generator) -> dict[int, float]:
    """Primary and secondary pattern of a grade with their shares of the tumor."""
    pairs: Mapping[int, tuple[tuple[int, int], ...]] = {
        0: (),
        1: ((3, 3),),
        2: ((3, 4),),
        3: ((4, 3),),
        4: ((4, 4), (4, 4), (4, 4), (3, 5), (5, 3)),
        5: ((4, 5), (5, 4), (5, 5)),
    }
    if not pairs[grade]:
        return {}
    primary, secondary = pairs[grade][int(rng.integers(len(pairs[grade])))]
    share = float(rng.uniform(0.6, 0.85))
    return {primary: 1.0} if primary == secondary else {primary: share, secondary: 1 - share}
