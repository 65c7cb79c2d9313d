"""How much hematoxylin and eosin a patch holds, by color deconvolution.

Ruifrok AC, Johnston DA. Quantification of histochemical staining by color deconvolution.
Anal Quant Cytol Histol 2001;23:291-9. Same vectors as `skimage.color.rgb2hed`; the unit here is
optical density to base 10, which is scikit-image's value times 6.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Optical density of each stain in red, green, blue: hematoxylin, eosin, DAB.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
#: A pixel holds a stain when its optical density of that stain is above this.
STAINED = {"hematoxylin": 0.10, "eosin": 0.10}
#: Scores are measured at about this many microns per pixel: a nucleus is still a few pixels.
SCORE_MPP = 2.0

#: Patches that are worked on together: their densities stay in the processor's cache.
_BATCH = 32
_FROM_RGB = np.linalg.inv(STAINS).astype(np.float32)
Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)


def hed(images: NDArray[np.uint8], background: Color = WHITE) -> NDArray[np.float32]:
    """Optical density (..., 3) of hematoxylin, eosin and DAB in RGB images (..., 3); >= 0.

    `background` is the color of light that passed no stain. 0 counts as one millionth, as in
    scikit-image.
    """
    density = _densities(background)[np.arange(3), images]
    stains = density.reshape(-1, 3) @ _FROM_RGB
    return np.asarray(np.maximum(stains, 0).reshape(images.shape), np.float32)


def stain_scores(
    images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]],
    factor: int = 4,
    background: Color = WHITE,
) -> dict[str, NDArray[np.float32]]:
    """Stain of RGB patches (n, size, size, 3), each measured after averaging `factor` x `factor`.

    Light is divided by `background`, the color of the slide's empty glass, before it becomes an
    optical density: against white, gray glass (210) would count as hematoxylin.

    Returns:
        ``hematoxylin`` and ``eosin``: share of stained pixels, 0..1; ``hematoxylin_mean`` and
        ``eosin_mean``: mean optical density. All (n,) float32.
    """
    images = np.asarray(images, np.uint8)
    factor = max(1, min(factor, *images.shape[1:3]))
    parts = [_scores(shrunk(images[start : start + _BATCH], factor), background)
             for start in range(0, max(1, len(images)), _BATCH)]  # fmt: skip
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _scores(small: NDArray[np.uint8], background: Color) -> dict[str, NDArray[np.float32]]:
    n, pixels = len(small), small.shape[1] * small.shape[2]
    density = np.empty((3, n * pixels), np.float32)
    for c, table in enumerate(_densities(background)):
        np.take(table, small[..., c].ravel(), out=density[c], mode="clip")
    scores = {}
    for i, (stain, least) in enumerate(STAINED.items()):
        # Channel by channel: a matrix product may round by the number of threads of its library.
        amount = density[0] * _FROM_RGB[0, i]
        amount += density[1] * _FROM_RGB[1, i]
        amount += density[2] * _FROM_RGB[2, i]
        amount = np.maximum(amount, 0, out=amount).reshape(n, pixels)
        scores[stain] = (np.count_nonzero(amount > least, axis=1) / pixels).astype(np.float32)
        scores[f"{stain}_mean"] = amount.mean(axis=1, dtype=np.float32)
    return scores


@lru_cache(maxsize=64)
def _densities(background: Color) -> NDArray[np.float32]:
    """Optical density of each value 0..255 of red, green and blue: (3, 256)."""
    through = np.clip(np.arange(256) / np.array(background)[:, None], 1e-6, 1)
    return np.asarray(-np.log10(through), np.float32)


def halvings(factor: float, most: int) -> int:
    """The power of two nearest to `factor`, 1 to `most`."""
    return int(np.clip(2 ** round(math.log2(factor)), 1, most))


def shrunk(images: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Means of `factor` x `factor` pixels of RGB patches (n, height, width, 3)."""
    n, height, width, _ = images.shape
    if factor == 1 or not n:
        return images
    across, down = width // factor, height // factor
    box = (0, 0, across * factor, down * factor)
    if height % factor:  # each patch for itself, without the rest
        return np.stack([np.asarray(Image.fromarray(im).reduce(factor, box)) for im in images])
    # All at once. Pillow, as a matrix product would keep other cores busy with waiting for it.
    tall = Image.fromarray(images.reshape(n * height, width, 3))
    box = (0, 0, across * factor, n * height)
    return np.asarray(tall.reduce(factor, box)).reshape(n, down, across, 3)
