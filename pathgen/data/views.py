"""What DINO and Gen-DINO see of a patch.

Gen-SIS (arXiv 2412.01672): with self-augmentations, one of the two global views shows the
generative counterpart of the patch, and an interpolated image of it and a stored second patch
feeds the disentanglement loss. Without, this is DINO's multi-crop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pathgen.data import loading
from pathgen.data.counterparts import Counterparts
from pathgen.data.cuts import PER_VIEW, BlendCuts, Cut, Cuts, Images, cut, finish_all, mix
from pathgen.data.loading import image_loader, steps_per_epoch
from pathgen.data.neighbors import Neighbors
from pathgen.data.patches import PatchDataset
from pathgen.data.viewconfig import PRESETS, ViewConfig
from pathgen.parallel import Share

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

#: All rows of a batch.
ALL = slice(None)


class Blend(NamedTuple):
    """Blended images for the student, and their further sources for the teacher.

    Only samples that have an interpolated image are here, so b may be less than B.
    """

    image: Tensor
    """float32 (b, 3, G, G): a view of the blend"""
    others: list[list[Tensor]]
    """for the second source (and the third of a three-way mixture) one view, or two with
    `dis_pairs: all`, each float32 (b, 3, G, G)"""
    shares: Tensor
    """float32 (b, S): share of each of the S sources, the primary first, as stored; sums to 1"""
    rows: Tensor
    """int64 (b,), on the CPU: which samples of the batch are the primaries, rising"""
    share: Share | None = None
    """which they are of all blends of the whole batch; None: all"""

    @property
    def secondary(self) -> Tensor:
        """float32 (b, 3, G, G): a view of the real second patch."""
        return self.others[0][0]

    @property
    def alpha(self) -> Tensor:
        """float32 (b,): share of the primary."""
        return self.shares[:, 0]


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
    blended: float | None = None
    """share of the whole batch that has a blend, where this is a part of it"""

    def to(self, device: torch.device) -> Views:
        """The images elsewhere."""

        def there(image: Tensor) -> Tensor:
            return image.to(device, non_blocking=True)

        blend = self.blend
        if blend is not None:
            others = [[there(view) for view in views] for views in blend.others]
            blend = blend._replace(
                image=there(blend.image), others=others, shares=there(blend.shares)
            )
        return self._replace(
            global_crops=[there(view) for view in self.global_crops],
            local_crops=[there(view) for view in self.local_crops],
            blend=blend,
        )

    def part(self, rows: slice) -> Views:
        """Some rows of the batch, `rows` with a start and a stop; `missing` stays the whole's."""
        blend, blended = self.blend, self.blended
        if blend is not None:
            if blended is None:
                blended = len(blend.rows) / len(self.global_crops[0])
            blend = _part(blend, rows)
        return self._replace(
            global_crops=[view[rows] for view in self.global_crops],
            local_crops=[view[rows] for view in self.local_crops],
            blend=blend,
            synthetic=None if self.synthetic is None else self.synthetic[rows],
            indices=None if self.indices is None else self.indices[rows],
            blended=blended,
        )


def _part(blend: Blend, rows: slice) -> Blend | None:
    """The blends whose primaries are among `rows`, counted from the first of these."""
    first, stop = np.searchsorted(blend.rows.numpy(), [rows.start, rows.stop]).tolist()
    if first == stop:
        return None
    all_of_them = blend.share or Share(0, len(blend.rows), len(blend.rows))
    return Blend(
        image=blend.image[first:stop],
        others=[[view[first:stop] for view in views] for views in blend.others],
        shares=blend.shares[first:stop],
        rows=blend.rows[first:stop] - rows.start,
        share=Share(all_of_them.first + first, all_of_them.first + stop, all_of_them.total),
    )


class ViewMaker:
    """Makes the views of any patches at any step; equal arguments give equal views.

    Chance is drawn per (seed, step, purpose, view) with one row per sample, so real views are
    the same to the bit whether or not there are augmentations beside them, and whichever rows
    of the batch are made.

    Args:
        sources: the real patches.
        augmentations: synthetic images of them; none gives plain multi-crop.

    Raises:
        NoInputError: no patches. DataError: PG-D04, the augmentations are of other patches.
        ConfigError: PG-C12, neighbors are asked of sources that know none.
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
        self.neighbors = Neighbors(self.patches) if config.neighbor_share else None

    def __call__(self, step: int, indices: NDArray[np.int64], rows: slice = ALL) -> Views:
        """Views of the items `indices` (B,), or of `rows` of them, as step `step` sees them."""
        return finish(self.cut(step, indices, rows), self.config)

    def cut(self, step: int, indices: NDArray[np.int64], rows: slice = ALL) -> Cuts:
        """The same, cropped but neither turned nor colored: what is worth sending to a device."""
        config, n = self.config, len(indices)
        real = self.patches.images(indices[rows])
        synthetic, shown, missing = self._synthetic(step, indices, rows)
        beside = self._beside(step, indices, rows, real, shown[:, 1])
        views = []
        for view in range(2 + config.local_crops):
            own = beside if view == 1 else real
            images = [
                other if other is not None and flag else mine
                for mine, other, flag in zip(own, synthetic, shown[:, view], strict=True)
            ]
            uniform = self._uniform(loading.VIEWS, step, view, n)[rows]
            strength = np.where(shown[:, view], config.synthetic_strength, 1.0)
            views.append(cut(images, uniform, strength, config, min(view, 2)))
        blend, blended = self._blend(step, indices, rows, real)
        return Cuts(
            views=views,
            blend=blend,
            synthetic=torch.from_numpy(shown[:, :2].copy()),
            missing=missing,
            indices=torch.from_numpy(indices[rows].copy()),
            blended=blended,
        )

    def _synthetic(
        self, step: int, indices: NDArray[np.int64], rows: slice
    ) -> tuple[list[NDArray[np.uint8] | None], NDArray[np.bool_], int]:
        """An image or None per sample; whether each view shows it (B, views); how many lack one."""
        n, views = len(indices[rows]), 2 + self.config.local_crops
        images: list[NDArray[np.uint8] | None] = [None] * n
        shown = np.zeros((n, views), np.bool_)
        if self.counterparts is None:
            return images, shown, 0
        chance = self._chance(loading.SYNTHETIC, step, len(indices), 1 + views)[rows]
        wanted = chance[:, 0] < self.config.synthetic_share
        found = self.counterparts.generative.pick(indices[rows], chance[:, 1])
        samples = np.flatnonzero(wanted & (found >= 0))
        for sample, image in zip(
            samples, self.counterparts.synthetic.images(found[samples]), strict=True
        ):
            images[sample] = image
        second = chance[samples, 2] < 0.5  # exactly one of the two, either as often
        shown[samples, second.astype(np.int64)] = True
        share = round(self.config.local_synthetic_share * self.config.local_crops)
        rank = chance[:, 3:].argsort(1).argsort(1)
        shown[samples, 2:] = rank[samples] < share
        return images, shown, int((wanted & (found < 0)).sum())

    def _beside(
        self,
        step: int,
        indices: NDArray[np.int64],
        rows: slice,
        real: Images,
        taken: NDArray[np.bool_],
    ) -> Images:
        """What a real second global view is cut from: the patch itself or one that touches it."""
        if self.neighbors is None:
            return real
        chance = self._chance(loading.NEIGHBORS, step, len(indices), 2)[rows]
        found = self.neighbors.pick(indices[rows], chance[:, 1])
        wanted = (chance[:, 0] < self.config.neighbor_share) & (found >= 0) & ~taken
        samples, images = np.flatnonzero(wanted), list(real)
        for sample, image in zip(samples, self.patches.images(found[samples]), strict=True):
            images[sample] = image
        return images

    def _blend(
        self, step: int, indices: NDArray[np.int64], rows: slice, real: Images
    ) -> tuple[BlendCuts | None, float]:
        """The blends of `rows`, and the share of the whole batch that has one."""
        if self.counterparts is None or self.config.blend == "off":
            return None, 0.0
        n = len(indices)
        # Not of `BLEND`: numpy takes (seed, purpose, step) for (seed, purpose, step, 0), a view's.
        chance = self._chance(loading.PICK, step, n)
        picked = self.counterparts.interpolated.pick(indices, chance)
        has_one = picked >= 0
        blended = float(has_one.mean())
        samples = np.flatnonzero(has_one[rows])
        if not len(samples):
            return None, blended
        picked = picked[rows][samples]
        shares = self.counterparts.shares[picked]
        further = self.counterparts.others[picked].T  # (S - 1, b) items
        patches = [self.patches.images(items) for items in further]

        def view(images: Images, stream: int, kind: int, strength: float = 1.0) -> Cut:
            uniform = self._uniform(loading.BLEND, step, stream, n)[rows][samples]
            return cut(images, uniform, np.full(len(samples), strength), self.config, kind)

        if self.config.blend == "pixel":
            image = mix([[real[sample] for sample in samples.tolist()], *patches], shares)
        else:
            image = self.counterparts.synthetic.images(picked)
        # The student's view is drawn as a second global crop, the teacher's as a first one.
        others = [[view(images, 2 * k, 0)] for k, images in enumerate(patches)]
        if self.config.dis_pairs == "all":
            for k, (items, images) in enumerate(zip(further, patches, strict=True)):
                chance = self._chance(loading.SECOND, step, n, k + 1, 2)[rows][samples, k]
                others[k].append(view(self._varied(items, images, chance), 2 * k + 3, 1))
        first = int(has_one[: rows.start].sum()) if rows.start else 0
        return BlendCuts(
            image=view(image, 1, 1, self.config.synthetic_strength),
            others=others,
            shares=torch.from_numpy(shares),
            rows=torch.from_numpy(samples),
            share=Share(first, first + len(samples), int(has_one.sum())),
        ), blended

    def _varied(
        self, items: NDArray[np.int64], images: Images, chance: NDArray[np.float64]
    ) -> Images:
        """Each patch's generative image, with the probability of one; `chance` is (b, 2)."""
        assert self.counterparts is not None
        found = self.counterparts.generative.pick(items, chance[:, 1])
        samples = np.flatnonzero((found >= 0) & (chance[:, 0] < self.config.synthetic_share))
        varied = list(images)
        for sample, image in zip(
            samples, self.counterparts.synthetic.images(found[samples]), strict=True
        ):
            varied[sample] = image
        return varied

    def _chance(self, purpose: int, step: int, *shape: int) -> NDArray[np.float64]:
        return loading.generator(self.seed, purpose, step).random(shape)

    def _uniform(self, purpose: int, step: int, view: int, n: int) -> NDArray[np.float64]:
        return loading.generator(self.seed, purpose, step, view).random((n, PER_VIEW))


def finish(cuts: Cuts, config: ViewConfig, device: torch.device | None = None) -> Views:
    """Turn and color what was cut, on `device`: uint8 crops -> float views.

    On the CPU the result is the same to the bit wherever and with whatever beside it is done.
    """
    extra: list[Cut] = []
    if cuts.blend is not None:
        extra = [cuts.blend.image, *(view for views in cuts.blend.others for view in views)]
    large = finish_all([*cuts.views[:2], *extra], config, device)
    blend = None
    if cuts.blend is not None:
        rest = iter(large[3:])
        others = [[next(rest) for _ in views] for views in cuts.blend.others]
        shares = cuts.blend.shares
        if device is not None:
            shares = shares.to(device, non_blocking=True)
        blend = Blend(large[2], others, shares, cuts.blend.rows, cuts.blend.share)
    return Views(
        global_crops=large[:2],
        local_crops=finish_all(cuts.views[2:], config, device),
        blend=blend,
        synthetic=cuts.synthetic,
        missing=cuts.missing,
        indices=cuts.indices,
        blended=cuts.blended,
    )


class _CutSteps(loading.Steps[Cuts]):
    def __init__(self, maker: ViewMaker, batch_size: int, rows: slice) -> None:
        self.maker, self.rows = maker, rows
        self.order = loading.Order(len(maker.patches), batch_size, maker.seed)

    def batch(self, step: int) -> Cuts:
        return self.maker.cut(step, self.order(step), self.rows)


class _ViewSteps(loading.Steps[Views]):
    def __init__(self, cuts: _CutSteps) -> None:
        self.cuts = cuts

    def batch(self, step: int) -> Views:
        return finish(self.cuts.batch(step), self.cuts.maker.config)


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
    rows: slice = ALL,
    device: torch.device | None = None,
) -> Iterator[Views]:
    """Views of shuffled patches, epoch after epoch, for steps `start_step` to `steps` - 1.

    Step s is the same, to the bit, whatever `workers` and `start_step` are. Incomplete batches
    are dropped; fewer patches than a batch are repeated within it.

    Args:
        batch_size: of all processes together.
        rows: which of its rows this process makes. They are what they are in the whole batch.
        device: where the views come. Unless it is the CPU, workers send bytes and draws, and
            the device turns and colors them.

    Raises:
        NoInputError: no patches. DataError: PG-D02 an image cannot be read, PG-D04 the
        augmentations are of other patches. ConfigError: PG-C12, image folders have no neighbors.
    """
    cuts = _CutSteps(ViewMaker(config, sources, augmentations, seed=seed), batch_size, rows)
    if device is None or device.type == "cpu":
        yield from loading.stream(
            _ViewSteps(cuts), workers=workers, start_step=start_step, steps=steps
        )
        return
    pin = device.type == "cuda"
    for made in loading.stream(
        cuts, workers=workers, start_step=start_step, steps=steps, pin_memory=pin
    ):
        yield finish(made, config, device)
