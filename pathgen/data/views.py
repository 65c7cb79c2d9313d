"""What DINO and Gen-DINO see of a patch.

Gen-SIS (arXiv 2412.01672): with self-augmentations, one of the two global views shows the
generative counterpart of the patch, and an interpolated image of it and a stored second patch
feeds the disentanglement loss. Without, this is DINO's multi-crop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from pathgen.config import Config
from pathgen.data import loading
from pathgen.data.augmentation import ATTEMPTS, ColorDraw, change_colors, crop, draw_boxes, turn
from pathgen.data.counterparts import Counterparts
from pathgen.data.loading import image_loader, steps_per_epoch
from pathgen.data.patches import PatchDataset, as_tensor

if TYPE_CHECKING:
    from pathgen.data.sources import PatchSource
    from pathgen.stores.augmentations import SelfAugmentationStore

__all__ = [
    "PRESETS",
    "Blend",
    "ViewConfig",
    "ViewMaker",
    "Views",
    "image_loader",
    "steps_per_epoch",
    "view_loader",
]

Share = float
Range = tuple[float, float]

#: Settings that a preset gives where none are given. "dino" is the classes' own defaults.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "dino": {},
    "pathology": {
        "vertical_flip": 0.5,
        "quarter_turns": True,
        "hue": 0.0,
        "stain": 0.8,
        "gray": 0.0,
        "solarize": 0.0,
    },
}


class ViewConfig(Config):
    """Crops and colors of the views. The defaults are DINO's.

    `preset: pathology` has no up and no hue: vertical flips, quarter turns and stain jitter
    in place of hue, gray and solarization. A setting that is given wins over the preset.
    """

    preset: Literal["dino", "pathology"] = "dino"
    global_size: int = Field(default=224, ge=8)
    global_scale: Range = (0.4, 1.0)
    """area of a global crop as a share of the patch"""
    local_size: int = Field(default=96, ge=8)
    local_scale: Range = (0.05, 0.4)
    local_crops: int = Field(default=8, ge=0)

    synthetic_share: Share = Field(default=1.0, ge=0, le=1)
    """probability that one of the two global views is synthetic"""
    local_synthetic_share: Share = Field(default=0.5, ge=0, le=1)
    """of such a sample, the share of local crops cut from the synthetic image"""

    horizontal_flip: Share = Field(default=0.5, ge=0, le=1)
    vertical_flip: Share = Field(default=0.0, ge=0, le=1)
    quarter_turns: bool = False
    jitter: Share = Field(default=0.8, ge=0, le=1)
    """probability of the next four, done in random order"""
    brightness: float = Field(default=0.4, ge=0, le=1)
    contrast: float = Field(default=0.4, ge=0, le=1)
    saturation: float = Field(default=0.2, ge=0, le=1)
    hue: float = Field(default=0.1, ge=0, le=0.5)
    stain: Share = Field(default=0.0, ge=0, le=1)
    """probability of jitter in hematoxylin-eosin-DAB space"""
    stain_scale: float = Field(default=0.2, ge=0, lt=1)
    """each stain's density is multiplied by 1 - this to 1 + this"""
    stain_shift: float = Field(default=0.02, ge=0, lt=1)
    """and has minus this to plus this added, in optical density"""
    gray: Share = Field(default=0.2, ge=0, le=1)
    blur: tuple[Share, Share, Share] = (1.0, 0.1, 0.5)
    """probability for the first global, the second global, and the local crops"""
    blur_sigma: Range = (0.1, 2.0)
    """pixels of every crop when global crops have 224; less when they have less"""
    solarize: Share = Field(default=0.2, ge=0, le=1)
    """probability for the second global crop"""

    @model_validator(mode="before")
    @classmethod
    def _lay_over_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        return {**PRESETS.get(str(values.get("preset", "dino")), {}), **values}

    @model_validator(mode="after")
    def _ranges_rise(self) -> ViewConfig:
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} must rise within (0, 1]")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError("blur_sigma must rise from above 0")
        if not all(0 <= share <= 1 for share in self.blur):
            raise ValueError("blur holds three probabilities")
        return self

    @property
    def sigmas(self) -> Range:
        """Range of the blur's sigma in pixels; DINO's 0.1 to 2 would wipe out a crop of 64."""
        scale = self.global_size / 224
        return self.blur_sigma[0] * scale, self.blur_sigma[1] * scale


class Blend(NamedTuple):
    """Interpolated images for the student, and their second sources for the teacher.

    Only samples that have an interpolated image are here, so b may be less than B.
    """

    image: Tensor
    """float32 (b, 3, G, G): a view of the interpolated image"""
    secondary: Tensor
    """float32 (b, 3, G, G): a view of the real second patch"""
    alpha: Tensor
    """float32 (b,): share of the primary, as stored with the image"""
    rows: Tensor
    """int64 (b,): which samples of the batch are the primaries"""


class Views(NamedTuple):
    """One batch. Images are float32 in [0, 1], not yet normalized."""

    global_crops: list[Tensor]
    """two, each (B, 3, global_size, global_size)"""
    local_crops: list[Tensor]
    """`local_crops` of them, each (B, 3, local_size, local_size)"""
    blend: Blend | None
    synthetic: Tensor | None = None
    """bool (B, 2): which global crops show a synthetic image"""
    missing: int = 0
    """samples that should have shown one and have none, so that both views are real"""
    indices: Tensor | None = None
    """int64 (B,): items of the `PatchDataset` over the same sources"""


#: Uniform numbers that one view takes: its box, its turn, its colors.
_BOX = 2 * ATTEMPTS + 2
_TURN = 3
_COLOR = 20
_PER_VIEW = _BOX + _TURN + _COLOR


class ViewMaker:
    """Makes the views of any patches at any step; equal arguments give equal views.

    Chance is drawn per (seed, step, purpose, view) with one row per sample, so real views are
    the same to the bit whether or not there are augmentations beside them.

    Args:
        sources: the real patches.
        augmentations: synthetic images of them; none gives plain multi-crop.

    Raises:
        NoInputError: no patches. DataError: PG-D04, the augmentations are of other patches.
    """

    def __init__(
        self,
        config: ViewConfig,
        sources: PatchSource | Sequence[PatchSource],
        augmentations: Sequence[SelfAugmentationStore] = (),
        *,
        seed: int,
    ) -> None:
        self.config, self.seed = config, seed
        self.patches: PatchDataset = loading.numbered(sources)
        self.counterparts = Counterparts(self.patches, augmentations) if augmentations else None

    def __call__(self, step: int, indices: NDArray[np.int64]) -> Views:
        """Views of the items `indices` (B,) as step `step` sees them."""
        config, n = self.config, len(indices)
        real = self.patches.images(indices)
        synthetic, shown, missing = self._synthetic(step, indices)
        crops = []
        for view in range(2 + config.local_crops):
            images = [
                other if other is not None and flag else own
                for own, other, flag in zip(real, synthetic, shown[:, view], strict=True)
            ]
            uniform = self._uniform(loading.VIEWS, step, view, n)
            crops.append(_view(images, uniform, config, min(view, 2)))
        return Views(
            global_crops=crops[:2],
            local_crops=crops[2:],
            blend=self._blend(step, indices),
            synthetic=torch.from_numpy(shown[:, :2].copy()),
            missing=missing,
            indices=torch.from_numpy(indices.copy()),
        )

    def _synthetic(
        self, step: int, indices: NDArray[np.int64]
    ) -> tuple[list[NDArray[np.uint8] | None], NDArray[np.bool_], int]:
        """An image or None per sample; whether each view shows it (B, views); how many lack one."""
        n, views = len(indices), 2 + self.config.local_crops
        images: list[NDArray[np.uint8] | None] = [None] * n
        shown = np.zeros((n, views), np.bool_)
        if self.counterparts is None:
            return images, shown, 0
        chance = loading.generator(self.seed, loading.SYNTHETIC, step).random((n, 1 + views))
        wanted = chance[:, 0] < self.config.synthetic_share
        rows = self.counterparts.generative.pick(indices, chance[:, 1])
        samples = np.flatnonzero(wanted & (rows >= 0))
        for sample, image in zip(
            samples, self.counterparts.synthetic.images(rows[samples]), strict=True
        ):
            images[sample] = image
        second = chance[samples, 2] < 0.5  # exactly one of the two, either as often
        shown[samples, second.astype(np.int64)] = True
        share = round(self.config.local_synthetic_share * self.config.local_crops)
        rank = chance[:, 3:].argsort(1).argsort(1)
        shown[samples, 2:] = rank[samples] < share
        return images, shown, int((wanted & (rows < 0)).sum())

    def _blend(self, step: int, indices: NDArray[np.int64]) -> Blend | None:
        if self.counterparts is None:
            return None
        chance = loading.generator(self.seed, loading.BLEND, step).random(len(indices))
        rows = self.counterparts.interpolated.pick(indices, chance)
        samples = np.flatnonzero(rows >= 0)
        if not len(samples):
            return None
        rows = rows[samples]
        pictures = {
            1: self.counterparts.synthetic.images(rows),
            0: self.patches.images(self.counterparts.secondary[rows]),
        }
        # The student's view is drawn as a second global crop, the teacher's as a first one.
        image, secondary = (
            _view(
                pictures[view],
                self._uniform(loading.BLEND, step, view, len(indices))[samples],
                self.config,
                view,
            )
            for view in (1, 0)
        )
        return Blend(
            image=image,
            secondary=secondary,
            alpha=torch.from_numpy(self.counterparts.alpha[rows]),
            rows=torch.from_numpy(samples),
        )

    def _uniform(self, purpose: int, step: int, view: int, n: int) -> NDArray[np.float64]:
        return loading.generator(self.seed, purpose, step, view).random((n, _PER_VIEW))


def _view(
    images: Sequence[NDArray[np.uint8]],
    uniform: NDArray[np.float64],
    config: ViewConfig,
    kind: int,
) -> Tensor:
    """Crop, turn and color: kind 0 and 1 are the global crops, 2 a local one."""
    is_local = kind == 2
    size = config.local_size if is_local else config.global_size
    scale = config.local_scale if is_local else config.global_scale
    sides = np.array([image.shape[:2] for image in images], np.int64)
    boxes = draw_boxes(uniform[:, :_BOX], sides[:, 0], sides[:, 1], scale)
    batch = torch.empty((len(images), 3, size, size), dtype=torch.uint8)
    for out, image, box in zip(batch, images, np.stack(boxes, axis=1).tolist(), strict=True):
        top, left, height, width = box
        out.copy_(crop(as_tensor(image), top, left, height, width, size))
    flips = uniform[:, _BOX : _BOX + 2] < (config.horizontal_flip, config.vertical_flip)
    quarters = np.floor(4 * uniform[:, _BOX + 2]) * config.quarter_turns
    horizontal, vertical = torch.from_numpy(flips.T.copy())
    batch = turn(batch, horizontal, vertical, torch.from_numpy(quarters))
    radius = math.ceil(3 * config.sigmas[1])
    colors = _colors(uniform[:, _BOX + _TURN :], config, kind)
    return change_colors(batch.float().div_(255), colors, radius)


def _colors(uniform: NDArray[np.float64], config: ViewConfig, kind: int) -> ColorDraw:
    """Uniform numbers (B, _COLOR) as what happens to each image."""
    jitter, factors, order, stain, scale, shift, gray, blur, sigma, solarize = np.split(
        uniform, np.cumsum([1, 4, 4, 1, 3, 3, 1, 1, 1]), axis=1
    )
    strengths = (config.brightness, config.contrast, config.saturation, config.hue)
    signed = 2 * factors - 1
    low, high = config.sigmas
    return ColorDraw(
        jitter=_flags(jitter, config.jitter),
        factors=_floats(signed * strengths + (1.0, 1.0, 1.0, 0.0)),
        order=torch.from_numpy(order.argsort(1)),
        stain=_flags(stain, config.stain),
        stain_scale=_floats(1 + (2 * scale - 1) * config.stain_scale),
        stain_shift=_floats((2 * shift - 1) * config.stain_shift),
        gray=_flags(gray, config.gray),
        blur=_flags(blur, config.blur[kind]),
        sigma=_floats(low + (high - low) * sigma[:, 0]),
        solarize=_flags(solarize, config.solarize if kind == 1 else 0.0),
    )


def _flags(uniform: NDArray[np.float64], share: float) -> Tensor:
    return torch.from_numpy(uniform[:, 0] < share)


def _floats(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


class _ViewSteps(loading.Steps[Views]):
    def __init__(self, maker: ViewMaker, batch_size: int) -> None:
        self.maker = maker
        self.order = loading.Order(len(maker.patches), batch_size, maker.seed)

    def batch(self, step: int) -> Views:
        return self.maker(step, self.order(step))


def view_loader(
    config: ViewConfig,
    sources: PatchSource | Sequence[PatchSource],
    augmentations: Sequence[SelfAugmentationStore] = (),
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    start_step: int = 0,
    steps: int,
) -> Iterator[Views]:
    """Views of shuffled patches, epoch after epoch, for steps `start_step` to `steps` - 1.

    Step s is the same, to the bit, whatever `workers` and `start_step` are. Incomplete batches
    are dropped; fewer patches than a batch are repeated within it.

    Raises:
        NoInputError: no patches. DataError: PG-D02 an image cannot be read, PG-D04 the
        augmentations are of other patches.
    """
    made = _ViewSteps(ViewMaker(config, sources, augmentations, seed=seed), batch_size)
    return loading.stream(made, workers=workers, start_step=start_step, steps=steps)
