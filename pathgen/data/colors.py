"""Hand-made augmentation, the colors.

DINO's recipe (Caron et al. 2021; facebookresearch/dino): jitter in random order, gray, blur,
solarization; for pathology also a jitter of the stains in hematoxylin-eosin-DAB space (Tellez
et al. 2018). Images are float RGB (B, 3, H, W) in [0, 1]; every operation takes one parameter an
image, may change what it is given, and returns the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Luma of RGB, ITU-R 601, as torchvision uses it.
LUMA = (0.2989, 0.587, 0.114)
#: Optical density (rows: hematoxylin, eosin, DAB; columns: R, G, B), Ruifrok & Johnston 2001.
STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
#: The darkest value a density is taken of.
DARKEST = 1 / 255
#: Pixels of a line that are blurred in one product.
BLOCK = 64


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black; factor (B,) of 0 or more, 1 changes nothing."""
    return images.mul_(_per_image(factor)).clamp_(max=1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean gray of each image; factor (B,), 1 changes nothing."""
    # In two steps, so that no sum is split among threads and the last bit depends on nothing.
    r, g, b = images.mean(-1).mean(-1).unbind(1)
    gray = (1 - factor) * (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b)
    return images.mul_(_per_image(factor)).add_(_per_image(gray)).clamp_(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with gray; factor (B,), 1 changes nothing."""
    factor = _per_image(factor)
    gray = luma(images).mul_(1 - factor)
    return images.mul_(factor).add_(gray).clamp_(0, 1)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue in HSV space; shift (B,) in turns, -0.5 to 0.5."""
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    sixth = (6 * chroma).clamp_(min=1e-20).reciprocal_()
    r, g, b = images.unbind(1)
    # In turns: each color's own third of the circle, from the largest of the three.
    # Choosing by a number of 0 or 1 is far faster on a CPU than by a mask.
    is_red, is_green = value.clone().eq_(r), value.clone().eq_(g)
    turns = (r - g).mul_(sixth).add_(2 / 3).lerp_((b - r).mul_(sixth).add_(1 / 3), is_green)
    turns.lerp_((g - b).mul_(sixth), is_red)
    # Channel n is low + chroma * clamp(|k - 2| - 1, 0, 1), k = 5, 3, 1 sixths on from the hue.
    starts = torch.stack([shift + (k / 6 + 1) for k in (5, 3, 1)], 1)  # above 0: `frac` wraps
    k = (turns.unsqueeze(1) + starts[:, :, None, None]).frac_().sub_(1 / 3)
    ramp = k.abs_().mul_(6).sub_(1).clamp_(0, 1)
    return ramp.mul_(chroma.unsqueeze(1)).add_(low.unsqueeze(1))


def stain(images: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift the density of each stain; both (B, 3): hematoxylin, eosin, DAB.

    ``density = -log10(rgb)``, unmixed with `STAINS` at unit length, changed, and mixed again.
    Scale 1 and shift 0 change nothing but values below 1/255.
    """
    matrix, inverse = _stain_tables(images.device)
    mix = (inverse * scale[:, None, :]) @ matrix  # (B, 3, 3), from RGB to RGB density
    offset = math.log(10) * (shift @ matrix)  # (B, 3)
    density = images.clamp_(DARKEST, 1).log_()  # natural and negative: the signs cancel
    changed = torch.empty_like(images)
    for channel in range(3):
        weights = mix[:, :, channel, None, None]  # (B, 3, 1, 1)
        total = torch.mul(density[:, 0], weights[:, 0], out=changed[:, channel])
        total.addcmul_(density[:, 1], weights[:, 1]).addcmul_(density[:, 2], weights[:, 2])
        total.sub_(offset[:, channel, None, None])
    return changed.exp_().clamp_(max=1)


def gray(images: Tensor) -> Tensor:
    """Luma in all three channels."""
    return luma(images).expand_as(images)


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian blur with sigma (B,) in pixels, cut off at `radius`; mirrored at the border.

    As two products with a band matrix: on processors of today that is faster than sliding over
    the image tap by tap. Where TF32 is allowed the error stays below half an 8-bit step.
    """
    height, width = images.shape[-2:]
    radius = min(radius, height - 1, width - 1)
    x = torch.arange(radius + 1, dtype=torch.float32, device=images.device)
    taps = torch.exp(-0.5 * (x / sigma[:, None]).square())  # (B, radius + 1), middle first
    taps = taps / (taps[:, :1] + 2 * taps[:, 1:].sum(1, keepdim=True))
    across = _band(taps, width)  # (B, W, W), source by target
    down = across if height == width else _band(taps, height)
    return _weigh(_weigh(images, across, radius, -1), down, radius, -2)


def _weigh(images: Tensor, band: Tensor, radius: int, dim: int) -> Tensor:
    """`images` along `dim` times `band`, in blocks: most of a wide band is zero."""
    size = images.shape[dim]
    block = BLOCK if size >= 2 * BLOCK else size
    parts = []
    for start in range(0, size, block):
        stop = min(start + block, size)
        low, high = max(0, start - radius), min(size, stop + radius)
        own, weights = images.narrow(dim, low, high - low), band[:, low:high, start:stop]
        if dim == -1:  # rows of all channels below each other: one product an image
            parts.append((own.flatten(1, 2) @ weights).view(*own.shape[:3], stop - start))
        else:
            parts.append(weights.transpose(1, 2).unsqueeze(1) @ own)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def solarize(images: Tensor) -> Tensor:
    """Invert what is at least half as bright as white."""
    return torch.minimum(images, images.neg().add_(1))


def luma(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    r, g, b = images.unbind(-3)
    gray = (LUMA[0] * r).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2])
    return gray.unsqueeze(-3)


class ColorDraw(NamedTuple):
    """What happens to the colors of each image of a batch; every field is (B, ...), on the CPU."""

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


_Operation = Callable[..., Tensor]
_JITTER: tuple[_Operation, ...] = (brightness, contrast, saturation, hue)
_NEUTRAL = (1.0, 1.0, 1.0, 0.0)


class _Step(NamedTuple):
    """One operation: for which images, and which columns of the table of parameters it takes."""

    operation: _Operation
    chosen: Tensor  # bool (B,)
    columns: tuple[int | slice, ...]


def change_colors(images: Tensor, draw: ColorDraw, radius: int) -> Tensor:
    """Jitter, stains, gray, blur and solarization, in DINO's order. May change `images` in place.

    `radius` is where every blur is cut off, in pixels. On the CPU an image goes through all of
    its operations alone, while it is in the cache, and does not depend on its neighbors to the
    bit; on other devices an operation is done for all images that drew it, without a sync.
    """
    table = torch.cat(
        [draw.factors, draw.stain_scale, draw.stain_shift, draw.sigma[:, None]], dim=1
    )
    steps = [step for step in _steps(draw, radius) if bool(step.chosen.any())]
    if images.device.type == "cpu":
        return _one_by_one(images, steps, table)
    return _together(images, steps, table)


def _steps(draw: ColorDraw, radius: int) -> Iterator[_Step]:
    neutral = draw.factors == torch.tensor(_NEUTRAL)
    for place in range(4):
        for number, operation in enumerate(_JITTER):
            chosen = draw.jitter & (draw.order[:, place] == number) & ~neutral[:, number]
            yield _Step(operation, chosen, (number,))
    yield _Step(stain, draw.stain, (slice(4, 7), slice(7, 10)))
    yield _Step(gray, draw.gray, ())
    yield _Step(partial(blur, radius=radius), draw.blur, (10,))
    yield _Step(solarize, draw.solarize, ())


def _one_by_one(images: Tensor, steps: Sequence[_Step], table: Tensor) -> Tensor:
    programs: list[list[_Step]] = [[] for _ in range(len(images))]
    for step in steps:
        for row in step.chosen.nonzero()[:, 0].tolist():
            programs[row].append(step)
    for row, program in enumerate(programs):
        if program:
            # Memory of its own: products of matrices may round by where their operands begin.
            image, values = images[row : row + 1].clone(), table[row : row + 1]
            for step in program:
                image = step.operation(image, *(values[:, column] for column in step.columns))
            images[row] = image[0]
    return images


def _together(images: Tensor, steps: Sequence[_Step], table: Tensor) -> Tensor:
    rows = [step.chosen.nonzero()[:, 0] for step in steps]
    if not rows:
        return images
    # All that chance says goes over in two transfers.
    everything = torch.cat(rows).to(images.device, non_blocking=True)
    there = torch.split(everything, [len(own) for own in rows])
    table = table.to(images.device, non_blocking=True)
    for step, own in zip(steps, there, strict=True):
        values = table.index_select(0, own)
        changed = step.operation(
            images.index_select(0, own), *(values[:, column] for column in step.columns)
        )
        images.index_copy_(0, own, changed)
    return images


@lru_cache(maxsize=4)
def _stain_tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Stains to RGB density, and back."""
    matrix = F.normalize(torch.tensor(STAINS, dtype=torch.float64), dim=1)
    return matrix.float().to(device), torch.linalg.inv(matrix).float().to(device)


def _band(taps: Tensor, size: int) -> Tensor:
    """Weights (B, radius + 1), middle first -> (B, size, size): source by target, mirrored."""
    steps = _steps_between(size, taps.shape[1] - 1, taps.device)
    return (taps @ steps.flatten(1)).view(-1, size, size)


@lru_cache(maxsize=8)
def _steps_between(size: int, radius: int, device: torch.device) -> Tensor:
    """(radius + 1, size, size): how often source j lies k places from target i, mirrored."""
    counts = torch.zeros(radius + 1, size, size)
    target = torch.arange(size)
    for offset in range(-radius, radius + 1):
        source = (target + offset).abs()
        source = torch.where(source >= size, 2 * (size - 1) - source, source)
        counts[abs(offset)].index_put_((source, target), torch.ones(size), accumulate=True)
    return counts.to(device)


def _per_image(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)
