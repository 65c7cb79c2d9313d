"""What is done to the pixels of a slide's patches before they are stored: nothing, unless asked.

First colors become sRGB, then the stain is normalized. Scores are measured before both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import SlideError
from pathgen.tiling.color import ToSrgb, color_profile, describe_profile
from pathgen.tiling.layout import Layout
from pathgen.tiling.normalize import normalizer
from pathgen.tiling.quality import ink
from pathgen.tiling.readers.tilejpeg import DamagedTile
from pathgen.tiling.slide import SlideReader
from pathgen.tiling.stain import Color
from pathgen.tiling.task import TileConfig

#: Patches that the normalization is fitted on, and pixels of each.
SAMPLE, SAMPLE_PIXELS = 64, 4096
#: Of a patch with more than this share of pen colors they are pen; fewer may be dark nuclei.
PEN = 0.1


class Step(Protocol):
    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class Preparation:
    """The steps, and what of them is stored and said.

    attrs: attributes of the store: ``color_profile``, and ``normalization`` where it was asked
    for. messages: what could not be done as asked, for the ledger.
    """

    steps: tuple[Step, ...]
    attrs: dict[str, Any]
    messages: tuple[str, ...] = ()

    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGB uint8 (n, height, width, 3) to the same."""
        for step in self.steps:
            images = step.apply(images)
        return images


def prepare(slide: SlideReader, layout: Layout, config: TileConfig) -> Preparation:
    """Read the color profile, and fit the normalization on a sample of the patches.

    Raises:
        ConfigError, MissingExtraError: as `normalize.NormalizeConfig.check`.
    """
    profile = color_profile(slide)
    facts = describe_profile(profile)
    steps: list[Step] = []
    messages = []
    if config.color == "srgb":
        try:
            steps.append(ToSrgb(profile or b""))
        except ValueError as error:
            why = "it has no color profile" if profile is None else f"its color profile: {error}"
            messages.append(f"colors are as they are: {why}")
    attrs: dict[str, Any] = {
        "color_profile": facts and {**facts, "applied": bool(steps)},
    }
    if config.normalize.method != "none":
        pixels = Preparation(tuple(steps), {}).apply(_sample(slide, layout))
        try:
            found = normalizer(config.normalize, pixels.reshape(-1, 3))
        except ValueError as error:
            attrs["normalization"] = {"method": "none", "why": str(error)}
            messages.append(f"its stain is not normalized: {error}")
        else:
            steps.append(found)
            attrs["normalization"] = found.record
    return Preparation(tuple(steps), attrs, tuple(messages))


def _sample(slide: SlideReader, layout: Layout) -> NDArray[np.uint8]:
    """Pixels (n, 1, 1, 3) of patches evenly over the grid; those that cannot be read are left out.

    The same for every run: it depends on the grid alone.
    """
    plan, coords = layout.plan, layout.grid.coords
    rows = np.unique(np.linspace(0, len(coords) - 1, min(SAMPLE, len(coords))).round().astype(int))
    step = max(1, round(plan.size / SAMPLE_PIXELS**0.5))
    found = [np.empty((0, 3), np.uint8)]
    for row in rows:
        try:
            image = plan.read(slide, coords[row : row + 1])[0]
        except SlideError as error:
            if not isinstance(error.__cause__, DamagedTile):
                raise
            continue  # the tiler counts it as damaged when its turn comes
        found.append(without_pen(image[::step, ::step].reshape(-1, 3), layout.background))
    return np.concatenate(found)[:, None, None]


def without_pen(pixels: NDArray[np.uint8], background: Color) -> NDArray[np.uint8]:
    """RGB pixels (n, 3) of a patch without felt pen, which a fit would take for hematoxylin."""
    marked = ink(pixels, background)
    return pixels[~marked] if marked.mean() > PEN else pixels
