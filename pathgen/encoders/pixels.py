"""What a network is shown of a patch: resized, cut to the center, normalized."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from pathgen.encoders.zoo import Interpolation


def prepared(images: Tensor, resize: int, side: int, interpolation: Interpolation) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, 3, side, side) in [0, 1]: as torchvision's Resize and CenterCrop.

    The shorter side goes to `resize` pixels, smoothed where it shrinks, then the center is cut
    out. Nothing is rounded to whole levels in between.
    """
    pixels = images.float() / 255
    height, width = pixels.shape[-2:]
    shorter = min(height, width)
    if shorter != resize:
        size = (resize * height // shorter, resize * width // shorter)
        # Bicubic overshoots at edges.
        pixels = F.interpolate(pixels, size, mode=interpolation, antialias=True).clamp(0, 1)
    top, left = (round((length - side) / 2) for length in pixels.shape[-2:])
    return pixels[..., top : top + side, left : left + side]


def normalized(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> each channel less its mean, over its spread, both (3, 1, 1)."""
    return torch.div(images - mean, std)
