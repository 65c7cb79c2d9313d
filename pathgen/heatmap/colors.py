"""Numbers as colors: attention from dark to light, evidence against in blue and for in red."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["attention", "evidence"]
#: Both run even in brightness and can be told apart with any common color blindness.
MAPS = {"attention": "viridis", "evidence": "RdBu_r"}


@functools.cache
def table(kind: Kind) -> NDArray[np.uint8]:
    """(256, 3) RGB from the lowest to the highest."""
    import matplotlib

    colors = matplotlib.colormaps[MAPS[kind]](np.arange(256))[:, :3]
    return np.asarray(np.rint(colors * 255), np.uint8)


def colored(values: NDArray[np.floating], kind: Kind) -> NDArray[np.uint8]:
    """RGB (..., 3) of values in 0..1; what is beyond takes the end, nan the lowest."""
    index = np.nan_to_num(np.clip(values, 0, 1)) * 255
    return np.asarray(table(kind)[np.rint(index).astype(np.uint8)])


def percentiles(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Share of values below each one, in percent, ties and itself by half, (n,)."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - counts / 2
    return np.asarray(100.0 * middle[inverse.reshape(-1)] / max(len(values), 1))


def between(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """0 at the least and 1 at the greatest, (n,); 0.5 where all are equal."""
    values = np.asarray(values, np.float64)
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    if high <= low:
        return np.full(values.shape, 0.5)
    return np.asarray((values - low) / (high - low))


def balanced(values: NDArray[np.floating], limit: float) -> NDArray[np.float64]:
    """0 at -limit, 0.5 at zero, 1 at limit."""
    return np.asarray(0.5 + np.asarray(values, np.float64) / (2 * limit))


def limit_of(values: NDArray[np.floating]) -> float:
    """Of signed values, what their colors end at: the 99th percentile of their size, above 0."""
    sizes = np.abs(values[np.isfinite(values)])
    found = float(np.percentile(sizes, 99)) if sizes.size else 0.0
    return found or (float(sizes.max()) if sizes.size and sizes.max() > 0 else 1.0)


def faded(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tissue in light grays (H, W, 3), so that a color over it can be read."""
    gray = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    light = 255 - (255 - gray) * 0.75
    return np.repeat(light.astype(np.uint8)[..., None], 3, axis=2)


def blended(
    below: NDArray[np.uint8], above: NDArray[np.uint8], opacity: NDArray[np.floating]
) -> NDArray[np.uint8]:
    """`above` over `below`, each (H, W, 3); `opacity` (H, W) in 0..1."""
    share = opacity.astype(np.float32)[..., None]
    return np.asarray(np.rint(below + (above.astype(np.float32) - below) * share), np.uint8)
