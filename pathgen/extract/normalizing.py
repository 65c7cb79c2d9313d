"""Stain normalization of patches that are stored: fitted once a slide, on a sample of them.

As `pathgen.tiling.preparation` does from the slide: 64 patches evenly over the rows, about 4,096
pixels of each, those of pen left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.data.sources import PatchSource
from pathgen.errors import PathgenError
from pathgen.tiling.normalize import NormalizeConfig, Normalizer, normalizer
from pathgen.tiling.preparation import SAMPLE, SAMPLE_PIXELS, without_pen
from pathgen.tiling.stain import WHITE


@dataclass(frozen=True)
class Unchanged:
    """Patches that say too little about their stain."""

    why: str

    @property
    def record(self) -> dict[str, Any]:
        return {"method": "none", "why": self.why}


def fitted(source: PatchSource, config: NormalizeConfig) -> Normalizer | Unchanged:
    """The change of its colors.

    Raises:
        StoreError, DataError: a patch cannot be read. ConfigError: PG-C01, the target.
    """
    try:
        return normalizer(config, sampled(source))
    except ValueError as error:
        if isinstance(error, PathgenError):
            raise
        return Unchanged(str(error))


def sampled(source: PatchSource) -> NDArray[np.uint8]:
    """RGB pixels (n, 3) of some patches."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(SAMPLE, len(source))).round().astype(int))
    background = tuple(getattr(source, "attrs", {}).get("background") or WHITE)
    found = [np.empty((0, 3), np.uint8)]
    for image in source.images(rows) if len(source) else ():
        step = max(1, round(max(image.shape[:2]) / SAMPLE_PIXELS**0.5))
        found.append(without_pen(image[::step, ::step].reshape(-1, 3), background))
    return np.concatenate(found)
