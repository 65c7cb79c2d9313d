"""Tissue from glass, by name: each method takes an overview and says what absorbs or is textured.

All work at the mask's physical scale, so a threshold means the same on every slide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from pathgen.tiling.overview import least, most

if TYPE_CHECKING:
    from pathgen.tiling.tissue import TissueConfig

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

#: Fill of scanners: no light, no tissue.
BLACK = 20
#: Absorbs so much that it is tissue whatever its color or texture.
DENSE = 0.4
#: Width of the median on the saturation; CLAM's is 7 pixels of about 8 to 16 um. In pixels at most:
MEDIAN_UM, MEDIAN_MOST = 56.0, 15
#: Saturation below this, of 255, is glass: CLAM's own fixed threshold.
LEAST_SATURATION = 8
#: Texture is the entropy of the optical density, in steps that noise does not cross, over a window
#: that reaches this far to each side.
TEXTURE_UM = 24.0
TEXTURE_STEP, TEXTURE_STEPS = 0.0065, 32


@dataclass(frozen=True)
class Light:
    """An overview as the methods see it; arrays are (height, width, 3) or (height, width)."""

    pixels: NDArray[np.uint8]
    mpp: float
    glass: Floats
    through: Floats
    """share of light that comes through, averaged over 3 x 3 pixels"""
    densities: Floats
    """optical density of red, green and blue"""
    black: Mask

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], mpp: float) -> Self:
        from scipy.ndimage import uniform_filter

        light = pixels.astype(np.float32)
        white = glass(light)
        through = np.clip(uniform_filter(light, (3, 3, 0)) / white, 1 / 255, 1)
        return cls(pixels, mpp, white, through, -np.log10(through), most(light) < BLACK)


def segment(pixels: NDArray[np.uint8], mpp: float, config: TissueConfig) -> tuple[Mask, Mask]:
    """What looks like tissue in an RGB overview (height, width, 3), and what of it is pen."""
    light = Light.of(pixels, mpp)
    tissue = METHODS[config.method](light, config) & ~light.black
    ink = _ink(light.densities, mpp) if config.drop_ink else np.zeros_like(tissue)
    return np.asarray(tissue, np.bool_), ink


def _otsu(light: Light, config: TissueConfig) -> Mask:
    """Absorbs light and has color, or absorbs much; both thresholds by Otsu, within limits."""
    density = most(light.densities)
    chroma = 1 - least(light.through) / most(light.through)
    dense = density > _threshold(density[~light.black], config.density)
    colored = chroma > _threshold(chroma[~light.black], config.chroma)
    return np.asarray(dense & (colored | (density > DENSE)))


def _saturation(light: Light, config: TissueConfig) -> Mask:
    """Otsu on the median-filtered saturation (HSV), as CLAM does, once the glass is white."""
    from skimage.filters import threshold_otsu
    from skimage.filters.rank import median

    white = np.clip(light.pixels / light.glass, 0, 1)
    saturation = 255 * (1 - least(white) / np.maximum(most(white), 1 / 255))
    saturation[light.black] = 0
    window = min(round(MEDIAN_UM / light.mpp / 2) * 2 + 1, MEDIAN_MOST)
    square = np.ones((window, window), np.uint8)
    smooth = median(saturation.astype(np.uint8), square)  # type: ignore[no-untyped-call]
    if smooth.min() == smooth.max():
        return np.asarray(smooth > LEAST_SATURATION)
    otsu = threshold_otsu(smooth)  # type: ignore[no-untyped-call]
    return np.asarray(smooth > max(float(otsu), LEAST_SATURATION))


def _density(light: Light, config: TissueConfig) -> Mask:
    """Absorbs more than `least_density`, averaged over red, green and blue, whatever the color."""
    return np.asarray(light.densities.mean(axis=2) > config.least_density)


def _entropy(light: Light, config: TissueConfig) -> Mask:
    """Textured, or dense: for pale and unstained tissue, which has structure but little color."""
    from scipy.ndimage import binary_erosion
    from skimage.filters.rank import entropy

    density = light.densities.mean(axis=2)
    steps = np.clip(density / TEXTURE_STEP, 0, TEXTURE_STEPS - 1).astype(np.uint8)
    reach = max(1, round(TEXTURE_UM / light.mpp))
    bits = entropy(steps, np.ones((2 * reach + 1,) * 2, np.uint8))  # type: ignore[no-untyped-call]
    textured = bits > _threshold(bits[~light.black], config.entropy, highest=2 * config.entropy[1])
    # The window sees an edge from afar: its reach is taken back.
    inner = textured if reach == 1 else binary_erosion(
        textured, np.ones((3, 3)), reach - 1, border_value=1
    )  # fmt: skip
    return np.asarray(inner | (density > 2 * config.least_density))


METHODS: Mapping[str, Callable[[Light, TissueConfig], Mask]] = {
    "otsu": _otsu, "saturation": _saturation, "density": _density, "entropy": _entropy,
}  # fmt: skip


def _ink(density: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """Felt pen, by its optical density (height, width, 3): gray and dark, or bluer than any stain.

    No stain absorbs red much more than green, and none in use absorbs all colors alike.
    """
    from scipy.ndimage import binary_dilation

    red, green, _ = np.moveaxis(density, 2, 0)
    low, high = least(density), most(density)
    gray = (low > 0.35) & (low > 0.85 * high)
    blue = (red > 0.25) & (red > 1.25 * green)
    strokes = large_pieces(gray | blue, mpp, 0.05)  # pigment and dark nuclei are small
    reach = round(48 / mpp)  # the pale rim of a stroke
    if not reach or not strokes.any():
        return strokes
    return np.asarray(binary_dilation(strokes, disk(reach)), np.bool_)


def glass(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Color of the empty glass (3,): the brightest common one, at least light gray."""
    brightness = least(light)
    bright = light[brightness >= np.percentile(brightness, 95)]
    return np.asarray(np.clip(np.median(bright, axis=0), 200, 255), np.float32)


def _threshold(
    values: NDArray[np.float32], limits: tuple[float, float], highest: float = 0.5
) -> float:
    from skimage.filters import threshold_otsu

    values = np.clip(values, 0, highest)  # dark ink must not pull the threshold up
    if values.size == 0 or values.min() == values.max():
        return limits[1]
    found = threshold_otsu(values, nbins=256)  # type: ignore[no-untyped-call]
    return float(np.clip(found, *limits))


def large_pieces(mask: NDArray[np.bool_], mpp: float, least_mm2: float) -> NDArray[np.bool_]:
    """The connected pieces of at least that area."""
    from scipy.ndimage import label

    pieces, _ = label(mask, np.ones((3, 3)))
    big = np.bincount(pieces.ravel()) * (mpp / 1000) ** 2 >= least_mm2
    big[0] = False
    return np.asarray(big[pieces], np.bool_)


def disk(reach: int) -> NDArray[np.bool_]:
    down, across = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    return np.asarray(np.hypot(down, across) <= reach + 0.5)
