"""From patches to views in two halves: cut on the CPU, then turn and color where training is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathgen.data.augmentation import ATTEMPTS, crop, draw_boxes, turn
from pathgen.data.colors import ColorDraw, change_colors
from pathgen.data.loading import center_square
from pathgen.data.patches import as_tensor
from pathgen.data.viewconfig import ViewConfig
from pathgen.parallel import Share

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]

#: Uniform numbers that one view takes: its box, its turn, its colors.
BOX = 2 * ATTEMPTS + 2
TURN = 3
COLOR = 20
PER_VIEW = BOX + TURN + COLOR


class Cut(NamedTuple):
    """One view of each image of a batch, before its turn and colors, and what they will be."""

    images: Tensor
    """uint8 (B, 3, S, S)"""
    uniform: NDArray[np.float64]
    """(B, TURN + COLOR) in [0, 1)"""
    strength: NDArray[np.float64]
    """(B,) in [0, 1]: how strongly each is augmented"""
    kind: int
    """0 and 1: the first and second global crop, 2: a local one"""


class BlendCuts(NamedTuple):
    """As `Blend`, cut."""

    image: Cut
    others: list[list[Cut]]
    shares: Tensor
    rows: Tensor
    share: Share


class Cuts(NamedTuple):
    """As `Views`, cut; `views` are the two global ones and then the local ones."""

    views: list[Cut]
    blend: BlendCuts | None
    synthetic: Tensor
    missing: int
    indices: Tensor
    blended: float


def cut(
    images: Images,
    uniform: NDArray[np.float64],
    strength: NDArray[np.float64],
    config: ViewConfig,
    kind: int,
) -> Cut:
    """A random resized crop of each image; `uniform` is (B, PER_VIEW)."""
    is_local = kind == 2
    size = config.local_size if is_local else config.global_size
    low, high = config.local_scale if is_local else config.global_scale
    smallest = low + (1 - strength[:, None]) * (high - low)
    sides = np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2)
    boxes = draw_boxes(uniform[:, :BOX], sides[:, 0], sides[:, 1], (smallest, high))
    batch = torch.empty((len(images), 3, size, size), dtype=torch.uint8)
    for out, image, box in zip(batch, images, np.stack(boxes, axis=1).tolist(), strict=True):
        top, left, height, width = box
        out.copy_(crop(as_tensor(image), top, left, height, width, size))
    return Cut(batch, uniform[:, BOX:], strength, kind)


def mix(sources: Sequence[Images], shares: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
    """Sum of the sources, pixel by pixel, by their `shares` (b, S); S lists of b images.

    Where sizes differ, centered squares of the smallest side are mixed.
    """
    mixed = []
    for place, weights in enumerate(shares):
        images = [source[place] for source in sources]
        if len({image.shape for image in images}) > 1:
            side = min(min(image.shape[:2]) for image in images)
            images = [center_square(image, side).permute(1, 2, 0).numpy() for image in images]
        total = sum(weight * image for weight, image in zip(weights, images, strict=True))
        mixed.append(np.rint(total).clip(0, 255).astype(np.uint8))
    return mixed


def finish_all(
    cuts: Sequence[Cut], config: ViewConfig, device: torch.device | None
) -> list[Tensor]:
    """Cuts of one size -> float32 views (B, 3, S, S) in [0, 1] on `device`, each in its place."""
    if not cuts:
        return []
    if device is None or device.type == "cpu":
        return [_finish(one.images.clone(), [one], config) for one in cuts]
    there = torch.cat([one.images.to(device, non_blocking=True) for one in cuts])
    return list(torch.split(_finish(there, cuts, config), [len(one.images) for one in cuts]))


def _finish(images: Tensor, cuts: Sequence[Cut], config: ViewConfig) -> Tensor:
    """`images` are those of all `cuts`, one after the other."""
    turns = np.concatenate([one.uniform[:, :TURN] for one in cuts])
    flips = turns[:, :2] < (config.horizontal_flip, config.vertical_flip)
    quarters = np.floor(4 * turns[:, 2]) * config.quarter_turns
    horizontal, vertical = torch.from_numpy(flips.T.copy())
    images = turn(images, horizontal, vertical, torch.from_numpy(quarters))
    draws = [_colors(one, config) for one in cuts]
    colors = ColorDraw(*(torch.cat(parts) for parts in zip(*draws, strict=True)))
    return change_colors(images.float().div_(255), colors, config.blur_radius)


def _colors(one: Cut, config: ViewConfig) -> ColorDraw:
    """Uniform numbers as what happens to each image."""
    jitter, factors, order, stain, scale, shift, gray, blur, sigma, solarize = np.split(
        one.uniform[:, TURN:], np.cumsum([1, 4, 4, 1, 3, 3, 1, 1, 1]), axis=1
    )
    strength = one.strength[:, None]
    strengths = (config.brightness, config.contrast, config.saturation, config.hue)
    signed = 2 * factors - 1
    low, high = config.sigmas

    def flags(uniform: NDArray[np.float64], share: float) -> Tensor:
        return torch.from_numpy(uniform[:, 0] < share * one.strength)

    return ColorDraw(
        jitter=flags(jitter, config.jitter),
        factors=_floats(signed * strengths * strength + (1.0, 1.0, 1.0, 0.0)),
        order=torch.from_numpy(order.argsort(1)),
        stain=flags(stain, config.stain),
        stain_scale=_floats(1 + (2 * scale - 1) * config.stain_scale * strength),
        stain_shift=_floats((2 * shift - 1) * config.stain_shift * strength),
        gray=flags(gray, config.gray),
        blur=flags(blur, config.blur[one.kind]),
        sigma=_floats((low + (high - low) * sigma * strength)[:, 0]),
        solarize=flags(solarize, config.solarize if one.kind == 1 else 0.0),
    )


def _floats(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
