"""Tissue from glass, by name: each method takes an overview and says what absorbs or is textured.

All work at the mask's physical scale, so a threshold means the same on every slide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from pathgen.tiling.overview import least, most
from pathgen.tiling.shapes import dilated, large_pieces

if TYPE_CHECKING:
    from pathgen.tiling.tissue import TissueConfig

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

#: Pixels worked on at once, which stay in a processor's cache.
BAND = 2**18
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
    """An overview as the methods see it, in bands of rows: as few bytes as can be are held for
    each pixel of what may be 40,000 x 40,000."""

    pixels: NDArray[np.uint8]  # (height, width, 3)
    mpp: float
    glass: Floats  # (3,)
    black: Mask  # (height, width)

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], mpp: float) -> Self:
        return cls(pixels, mpp, glass(pixels), most(pixels) < BLACK)

    @property
    def shape(self) -> tuple[int, int]:
        return self.pixels.shape[0], self.pixels.shape[1]

    def through(self, rows: slice, color: int) -> Floats:
        """Share of red, green or blue light that comes through, averaged over 3 x 3 pixels."""
        first, last = max(rows.start - 1, 0), rows.stop + 1
        above, below = rows.start == 0, rows.stop == len(self.pixels)  # the edge repeats
        part = self.pixels[first:last, :, color].astype(np.uint16)
        padded = np.pad(part, ((int(above), int(below)), (1, 1)), mode="edge")
        thirds = np.divide(padded[:-2] + padded[1:-1] + padded[2:], 3, dtype=np.float64)
        # Rounded after each axis, as scipy.ndimage.uniform_filter does: a mask is then the same
        # to the last pixel.
        down = thirds.astype(np.float32).astype(np.float64)
        mean = (down[:, :-2] + down[:, 1:-1] + down[:, 2:]) / 3
        shares: Floats = mean.astype(np.float32)
        shares /= self.glass[color]
        np.clip(shares, np.float32(1 / 255), np.float32(1), out=shares)
        return shares

    def mean_density(self, rows: slice) -> Floats:
        """Optical density, averaged over red, green and blue."""
        red, green, blue = (-np.log10(self.through(rows, color)) for color in range(3))
        return np.asarray((red + green + blue) / np.float32(3))


def bands(shape: tuple[int, int]) -> Iterator[slice]:
    """All rows, some at a time."""
    height, width = shape
    some = max(1, BAND // width)
    for start in range(0, height, some):
        yield slice(start, min(start + some, height))


def segment(pixels: NDArray[np.uint8], mpp: float, config: TissueConfig) -> tuple[Mask, Mask]:
    """What looks like tissue in an RGB overview (height, width, 3), and what of it is pen."""
    light = Light.of(pixels, mpp)
    tissue = METHODS[config.method](light, config)
    tissue &= ~light.black
    return tissue, _ink(light) if config.drop_ink else np.zeros_like(tissue)


def _otsu(light: Light, config: TissueConfig) -> Mask:
    """Absorbs light and has color, or absorbs much; both thresholds by Otsu, within limits."""
    density, chroma = np.empty(light.shape, np.float32), np.empty(light.shape, np.float32)
    for rows in bands(light.shape):
        red, green, blue = (light.through(rows, color) for color in range(3))
        low = np.minimum(np.minimum(red, green), blue)
        high = np.maximum(np.maximum(red, green), blue)
        density[rows] = -np.log10(low)
        chroma[rows] = 1 - low / high
    tissue = chroma > _threshold(chroma, light.black, config.chroma)
    del chroma
    tissue |= density > DENSE
    tissue &= density > _threshold(density, light.black, config.density)
    return tissue


def _saturation(light: Light, config: TissueConfig) -> Mask:
    """Otsu on the median-filtered saturation (HSV), as CLAM does, once the glass is white."""
    from skimage.filters.rank import median

    steps = np.empty(light.shape, np.uint8)
    for rows in bands(light.shape):
        white = np.clip(light.pixels[rows] / light.glass, 0, 1)
        saturation = 255 * (1 - least(white) / np.maximum(most(white), 1 / 255))
        saturation[light.black[rows]] = 0
        steps[rows] = saturation.astype(np.uint8)
    window = min(round(MEDIAN_UM / light.mpp / 2) * 2 + 1, MEDIAN_MOST)
    square = np.ones((window, window), np.uint8)
    smooth = median(steps, square)  # type: ignore[no-untyped-call]
    counts = counted(smooth)
    there = np.flatnonzero(counts)
    values = np.arange(there[0], there[-1] + 1)
    otsu = _otsu_of(counts[values], values) if len(values) > 1 else 0
    return np.asarray(smooth > max(float(otsu), LEAST_SATURATION))


def _density(light: Light, config: TissueConfig) -> Mask:
    """Absorbs more than `least_density`, averaged over red, green and blue, whatever the color."""
    tissue = np.empty(light.shape, np.bool_)
    for rows in bands(light.shape):
        tissue[rows] = light.mean_density(rows) > config.least_density
    return tissue


def _entropy(light: Light, config: TissueConfig) -> Mask:
    """Textured, or dense: for pale and unstained tissue, which has structure but little color."""
    from scipy.ndimage import binary_erosion
    from skimage.filters.rank import entropy

    steps, dense = np.empty(light.shape, np.uint8), np.empty(light.shape, np.bool_)
    for rows in bands(light.shape):
        density = light.mean_density(rows)
        steps[rows] = np.clip(density / TEXTURE_STEP, 0, TEXTURE_STEPS - 1).astype(np.uint8)
        dense[rows] = density > 2 * config.least_density
    reach = max(1, round(TEXTURE_UM / light.mpp))
    bits = entropy(steps, np.ones((2 * reach + 1,) * 2, np.uint8))  # type: ignore[no-untyped-call]
    del steps
    textured = bits > _threshold(bits, light.black, config.entropy, highest=2 * config.entropy[1])
    del bits
    # The window sees an edge from afar: its reach is taken back.
    inner = textured if reach == 1 else binary_erosion(
        textured, np.ones((3, 3)), reach - 1, border_value=1
    )  # fmt: skip
    return np.asarray(inner | dense)


METHODS: Mapping[str, Callable[[Light, TissueConfig], Mask]] = {
    "otsu": _otsu, "saturation": _saturation, "density": _density, "entropy": _entropy,
}  # fmt: skip


def _ink(light: Light) -> Mask:
    """Felt pen, by its optical density: gray and dark, or bluer than any stain.

    No stain absorbs red much more than green, and none in use absorbs all colors alike.
    """
    strokes = np.zeros(light.shape, np.bool_)
    for rows in bands(light.shape):
        through = light.through(rows, 0)
        dark = through < 10**-0.24  # pen absorbs red, by a density of 0.25 at least
        if not dark.any():
            continue
        red = -np.log10(through[dark])
        green, blue = (-np.log10(light.through(rows, color)[dark]) for color in (1, 2))
        low, high = np.minimum(np.minimum(red, green), blue), np.maximum(red, green)
        gray = (low > 0.35) & (low > 0.85 * np.maximum(high, blue))
        strokes[rows][dark] = gray | ((red > 0.25) & (red > 1.25 * green))
    strokes = large_pieces(strokes, light.mpp, 0.05)  # pigment and dark nuclei are small
    reach = round(48 / light.mpp)  # the pale rim of a stroke
    return dilated(strokes, reach) if reach and strokes.any() else strokes


def glass(pixels: NDArray[np.uint8]) -> Floats:
    """Color of the empty glass (3,): the brightest common one, at least light gray."""
    shape = pixels.shape[:2]
    total = np.zeros(256, np.int64)
    for rows in bands(shape):
        total += counted(least(pixels[rows]))
    twentieth = np.searchsorted(np.cumsum(total), math.ceil(0.95 * (total.sum() - 1)), "right")
    bright = np.zeros((3, 256), np.int64)
    for rows in bands(shape):
        chosen = least(pixels[rows]) >= twentieth
        for color in range(3):
            bright[color] += counted(pixels[rows, :, color][chosen])
    return np.clip([_median(counts) for counts in bright], 200, 255).astype(np.float32)


def _median(counts: NDArray[np.int64]) -> float:
    """Of the values 0.., of which there are so many."""
    below, count = np.cumsum(counts), int(counts.sum())
    middle = np.searchsorted(below, [(count - 1) // 2, count // 2], "right")
    return float(middle.mean())


def counted(values: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each of 0..255 is there. NumPy makes 8 bytes of each value: some at a time."""
    flat, counts = values.reshape(-1), np.zeros(256, np.int64)
    for start in range(0, flat.size, BAND):
        counts += np.bincount(flat[start : start + BAND], minlength=256)
    return counts


def _threshold(
    values: NDArray[np.floating], left_out: Mask, limits: tuple[float, float],
    highest: float = 0.5,
) -> float:  # fmt: skip
    """Otsu's threshold of `values` that are not `left_out`, within limits."""

    def parts() -> Iterator[NDArray[np.floating]]:
        for rows in bands(left_out.shape):
            out = left_out[rows]
            part = values[rows][~out] if out.any() else values[rows]
            if part.size:
                yield np.clip(part, 0, highest)  # dark ink must not pull the threshold up

    ends = [(part.min(), part.max()) for part in parts()]
    low, high = min((low for low, _ in ends), default=0), max((high for _, high in ends), default=0)
    # Values that differ by rounding alone, as on blank glass, leave no room for 256 bins.
    if high - low <= 256 * np.spacing(high):
        return limits[1]
    counts, edges = np.zeros(256, np.int64), np.empty(0)
    for part in parts():
        found, edges = np.histogram(part, 256, (low, high))
        counts += found
    return float(np.clip(_otsu_of(counts, (edges[:-1] + edges[1:]) / 2), *limits))


def _otsu_of(counts: NDArray[np.int64], values: NDArray[Any]) -> Any:
    """The value up to which one of two classes goes, so that they lie furthest apart.

    Otsu, IEEE Trans Syst Man Cybern 1979;9:62-6. The first and last count are above 0.
    """
    below = np.cumsum(counts, dtype=np.float64)
    sums = np.cumsum(counts * values, dtype=np.float64)
    above = below[-1] - below[:-1]
    means = sums[:-1] / below[:-1], (sums[-1] - sums[:-1]) / above
    between = below[:-1] * above * (means[0] - means[1]) ** 2
    return values[np.argmax(between)]
