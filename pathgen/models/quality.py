"""How much pictures differ: PSNR and SSIM of reconstructions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Gaussian window of SSIM: side and standard deviation in pixels.
WINDOW, SIGMA = 11, 1.5
#: What keeps SSIM's quotients steady, for values in [0, 1].
STEADY = (0.01**2, 0.03**2)


def psnr(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB: (B, 3, H, W) in [0, 1], twice -> (B,)."""
    error = (images.float() - reconstructions.float().clamp(0, 1)).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp_min(1e-10))


def ssim(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004) of each image: (B, 3, H, W) in [0, 1] -> (B,).

    Gaussian window of 11 pixels with sigma 1.5, population variances, channels apart, means over
    the places where the window fits. nan for images smaller than the window.
    """
    first, second = images.float(), reconstructions.float().clamp(0, 1)
    if min(first.shape[-2:]) < WINDOW:
        return first.new_full((len(first),), torch.nan)
    moments = (first, second, first * first, second * second, first * second)
    # float32, whatever autocast says: the variances are differences of near-equal numbers.
    with torch.autocast(first.device.type, enabled=False):
        a, b, aa, bb, ab = _blurred(torch.cat(moments)).chunk(5)
    low, high = STEADY
    same = (2 * a * b + low) * (2 * (ab - a * b) + high)
    size = (a * a + b * b + low) * (aa - a * a + bb - b * b + high)
    values: Tensor = (same / size).flatten(1).mean(1)
    return values


def _blurred(images: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, H - 10, W - 10): rows, then columns."""
    places = torch.arange(WINDOW, device=images.device) - WINDOW // 2
    weights = torch.exp(-places.float().square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    channels = images.shape[1]
    kernel = weights.expand(channels, 1, 1, WINDOW)
    rows = F.conv2d(images, kernel, groups=channels)
    return F.conv2d(rows, kernel.transpose(2, 3), groups=channels)
