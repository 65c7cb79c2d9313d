"""Hand-made augmentation: crops of single patches, colors of whole batches.

DINO's recipe (Caron et al. 2021; facebookresearch/dino): random resized crop, flip, color
jitter in random order, gray, blur, solarization. For pathology also 90-degree turns and a
jitter of the stains in hematoxylin-eosin-DAB space (Tellez et al. 2018). Every operation takes
one parameter per image, so that a batch costs one pass and chance comes from outside.
Images are float RGB (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

#: Luma of RGB, ITU-R 601, as torchvision uses it.
LUMA = (0.2989, 0.587, 0.114)
#: Optical density (rows: hematoxylin, eosin, DAB; columns: R, G, B), Ruifrok & Johnston 2001.
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
#: Attempts at a crop of the drawn shape that fits, before the largest one is taken.
ATTEMPTS = 10
#: The darkest value a density is taken of.
DARKEST = 1 / 255


class Boxes(NamedTuple):
    """Crops in pixels, each (B,) int64."""

    top: NDArray[np.int64]
    left: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]


def draw_boxes(
    uniform: NDArray[np.float64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Boxes:
    """Random resized crops: area share in `scale`, log-uniform aspect in `ratio`.

    The first of `ATTEMPTS` shapes that fits is taken; if none does, the largest centered box
    whose aspect is allowed.

    Args:
        uniform: (B, 2 ATTEMPTS + 2) in [0, 1): areas, aspects, and the place.
        heights, widths: (B,) sizes of the images in pixels.
    """
    area = (heights * widths)[:, None] * _between(uniform[:, :ATTEMPTS], *scale)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = np.exp(_between(uniform[:, ATTEMPTS : 2 * ATTEMPTS], low, high))
    w = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    h = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (w > 0) & (h > 0) & (w <= widths[:, None]) & (h <= heights[:, None])
    first = fits.argmax(1)[:, None]
    found: NDArray[np.bool_] = np.asarray(fits.any(axis=1))
    shape = np.clip(widths / heights, *ratio)
    width = np.where(
        found,
        np.take_along_axis(w, first, 1)[:, 0],
        np.minimum(widths, np.rint(heights * shape).astype(np.int64)),
    )
    height = np.where(
        found,
        np.take_along_axis(h, first, 1)[:, 0],
        np.minimum(heights, np.rint(widths / shape).astype(np.int64)),
    )
    place = np.where(found[:, None], uniform[:, 2 * ATTEMPTS : 2 * ATTEMPTS + 2], 0.5)
    top = np.floor(place[:, 0] * (heights - height + 1)).astype(np.int64)
    left = np.floor(place[:, 1] * (widths - width + 1)).astype(np.int64)
    top = np.where(found, top, (heights - height) // 2)
    left = np.where(found, left, (widths - width) // 2)
    return Boxes(top, left, height, width)


def crop(image: Tensor, top: int, left: int, height: int, width: int, size: int) -> Tensor:
    """Cut a box and resize it, bicubic with antialiasing: uint8 (3, H, W) -> (3, size, size)."""
    box = image[None, :, top : top + height, left : left + width]
    return F.interpolate(box, (size, size), mode="bicubic", antialias=True)[0]


def turn(images: Tensor, horizontal: Tensor, vertical: Tensor, quarters: Tensor) -> Tensor:
    """Mirror left-right, mirror up-down, then turn by quarters: flags and counts (B,)."""
    images = _where(images, horizontal, lambda x: x.flip(-1))
    images = _where(images, vertical, lambda x: x.flip(-2))
    for count in (1, 2, 3):
        images = _where(images, quarters == count, lambda x, k=count: x.rot90(k, (-2, -1)))
    return images


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black; factor (B,), 1 changes nothing."""
    return (images * _per_image(factor)).clamp_(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean gray of each image; factor (B,), 1 changes nothing."""
    # In two steps, so that no sum is split among threads and the last bit depends on nothing.
    mean = luma(images).mean(-1, keepdim=True).mean(-2, keepdim=True)
    return mean.lerp(images, _per_image(factor)).clamp_(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with gray; factor (B,), 1 changes nothing."""
    return luma(images).lerp(images, _per_image(factor)).clamp_(0, 1)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue in HSV space; shift (B,) in turns, -0.5 to 0.5."""
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    safe = torch.where(chroma == 0, 1.0, chroma)
    r, g, b = images.unbind(1)
    # In sixths of a turn: each color's own sector, from the larger of the three.
    sixths = torch.where(
        value == r, (g - b) / safe, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4)
    )
    sixths = sixths + 6 * shift[:, None, None]
    out = torch.empty_like(images)
    for channel, start in enumerate((5.0, 3.0, 1.0)):
        k = (sixths + start).remainder_(6.0)
        out[:, channel] = value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)
    return out


def stain(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift the density of each stain; both (B, 3): hematoxylin, eosin, DAB.

    ``density = -log10(rgb)``, unmixed with `STAINS` at unit length, changed, and mixed again.
    Scale 1 and shift 0 change nothing but values below 1/255.
    """
    matrix = F.normalize(torch.tensor(STAINS, dtype=torch.float64), dim=1)
    inverse = torch.linalg.inv(matrix).float()
    matrix = matrix.float()
    mix = (inverse[None] * scale[:, None, :]) @ matrix  # (B, 3, 3), from RGB to RGB density
    offset = math.log(10) * (shift @ matrix)  # (B, 3)
    density = images.clamp(DARKEST, 1).log_()  # natural and negative: the signs cancel
    changed = torch.empty_like(images)
    for channel in range(3):
        weights = mix[:, :, channel, None, None]  # (B, 3, 1, 1)
        total = density[:, 0] * weights[:, 0]
        total.addcmul_(density[:, 1], weights[:, 1]).addcmul_(density[:, 2], weights[:, 2])
        changed[:, channel] = total.sub_(offset[:, channel, None, None]).exp_().clamp_(0, 1)
    return changed


def gray(images: Tensor) -> Tensor:
    """Luma in all three channels."""
    return luma(images).expand_as(images)


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with sigma (B,) in pixels, cut off at `radius`; mirrored at the border."""
    radius = min(radius, min(images.shape[-2:]) - 1)
    x = torch.arange(radius + 1, dtype=torch.float32)
    taps = torch.exp(-0.5 * (x / sigma[:, None]).square())  # (B, radius + 1), middle first
    taps = taps / (taps[:, :1] + 2 * taps[:, 1:].sum(1, keepdim=True))
    taps = taps.T.reshape(radius + 1, -1, 1, 1, 1)
    for dim in (-1, -2):
        pads = (radius, radius, 0, 0) if dim == -1 else (0, 0, radius, radius)
        padded, size = F.pad(images, pads, mode="reflect"), images.shape[dim]
        images = padded.narrow(dim, radius, size) * taps[0]
        for i in range(1, radius + 1):
            both = padded.narrow(dim, radius - i, size) + padded.narrow(dim, radius + i, size)
            images.addcmul_(both, taps[i])
    return images


def solarize(images: Tensor, threshold: float = 0.5) -> Tensor:
    """Invert what is at least as bright as `threshold`."""
    return torch.where(images >= threshold, 1 - images, images)


def luma(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    r, g, b = images.unbind(-3)
    return (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b).unsqueeze(-3)


class ColorDraw(NamedTuple):
    """What happens to the colors of each image of a batch; every field is (B, ...)."""

    jitter: Tensor  # bool: whether the four factors below are applied
    factors: Tensor  # (B, 4): brightness, contrast, saturation, hue shift
    order: Tensor  # (B, 4) int64: the operation done first, second, ...
    stain: Tensor  # bool
    stain_scale: Tensor  # (B, 3)
    stain_shift: Tensor  # (B, 3)
    gray: Tensor  # bool
    blur: Tensor  # bool
    sigma: Tensor  # pixels
    solarize: Tensor  # bool


_JITTER: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (brightness, contrast, saturation, hue)


def change_colors(images: Tensor, draw: ColorDraw, radius: int) -> Tensor:
    """Jitter, stains, gray, blur and solarization, in DINO's order. Changes `images` in place.

    `radius` is where every blur is cut off, in pixels; one for all, so that an image does not
    depend on its neighbors in the batch.
    """
    neutral = (1.0, 1.0, 1.0, 0.0)
    for place in range(4):
        for number, operation in enumerate(_JITTER):
            factor = draw.factors[:, number]
            chosen = draw.jitter & (draw.order[:, place] == number) & (factor != neutral[number])
            images = _where(images, chosen, operation, factor)
    images = _where(images, draw.stain, stain, draw.stain_scale, draw.stain_shift)
    images = _where(images, draw.gray, gray)
    images = _where(images, draw.blur, lambda x, sigma: blur(x, sigma, radius), draw.sigma)
    return _where(images, draw.solarize, solarize)


def _where(
    images: Tensor, chosen: Tensor, operation: Callable[..., Tensor], *parameters: Tensor
) -> Tensor:
    """`operation` on the chosen images alone; the others stay."""
    rows = chosen.nonzero()[:, 0]
    if len(rows):
        images[rows] = operation(images[rows], *(values[rows] for values in parameters))
    return images


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _between(uniform: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    return low + (high - low) * uniform
