"""Pictures of the world, sized as the protocols ask."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def longest_side(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Shrink (H, W, 3) to fit a square of `side` pixels, its shape kept; small ones stay."""
    picture = Image.fromarray(image)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return np.asarray(picture)


def stretched(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H, W, 3) to a square of `side` pixels, bicubic, its shape not kept."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32 in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def trimmed(images: Tensor, multiple: int) -> Tensor:
    """The top left part of (B, 3, H, W) whose sides are multiples; at least one multiple each.

    What a ViT's convolution over patches does with the rest: it does not see it.
    """
    height, width = (max(multiple, side // multiple * multiple) for side in images.shape[-2:])
    missing = (height - images.shape[-2], width - images.shape[-1])
    if max(missing) > 0:
        images = torch.nn.functional.pad(images, (0, max(0, missing[1]), 0, max(0, missing[0])))
    return images[..., :height, :width]
