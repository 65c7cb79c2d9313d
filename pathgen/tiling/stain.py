"""How much hematoxylin and eosin a patch holds, by color deconvolution.

Ruifrok AC, Johnston DA. Quantification of histochemical staining by color deconvolution.
Anal Quant Cytol Histol 2001;23:291-9. Same vectors as `skimage.color.rgb2hed`; the unit here is
optical density to base 10, which is scikit-image's value times 6.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Optical density of each stain in red, green, blue: hematoxylin, eosin, DAB.
STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
#: A pixel holds a stain when its optical density of that stain is above this.
STAINED = {"hematoxylin": 0.10, "eosin": 0.10}
#: Scores are measured at about this many microns per pixel: a nucleus is still a few pixels.
SCORE_MPP = 2.0

_FROM_RGB = np.linalg.inv(STAINS).astype(np.float32)
Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)


def hed(images: NDArray[np.uint8], background: Color = WHITE) -> NDArray[np.float32]:
    """Optical density (..., 3) of hematoxylin, eosin and DAB in RGB images (..., 3); >= 0.

    `background` is the color of light that passed no stain. 0 counts as one millionth, as in
    scikit-image.
    """
    through = np.clip(np.arange(256) / np.array(background)[:, None], 1e-6, 1)
    density = -np.log10(through).astype(np.float32)[np.arange(3), images]
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
    density = hed(_averaged(images, factor), background)[..., :2].reshape(len(images), -1, 2)
    scores = {}
    for i, (stain, least) in enumerate(STAINED.items()):
        one = density[..., i]
        scores[stain] = (one > least).mean(axis=1, dtype=np.float32)
        scores[f"{stain}_mean"] = one.mean(axis=1, dtype=np.float32)
    return scores


def score_factor(mpp: float) -> int:
    """By how much patches of `mpp` are averaged before they are scored, 1 to 8."""
    return int(np.clip(round(SCORE_MPP / mpp), 1, 8))


def _averaged(images: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    _, height, width, _ = images.shape
    factor = max(1, min(factor, height, width))
    if factor == 1 or not len(images):
        return images
    whole = (0, 0, width // factor * factor, height // factor * factor)
    return np.stack([np.asarray(Image.fromarray(im).reduce(factor, whole)) for im in images])
