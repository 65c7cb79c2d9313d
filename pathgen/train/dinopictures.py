"""What DINO sees and where it looks, for a person."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from pathgen.data.views import Views
from pathgen.models.attention import class_attention
from pathgen.models.encoder import Encoder
from pathgen.train.sheets import Picture, to_pixels

Sheet = Sequence[Sequence[Picture]]
SAMPLES, LOCALS, HEADS = 6, 4, 6


def crop_sheet(views: Views) -> Sheet:
    """A row a patch: its global crops, some local ones, and its blend with the second source."""
    columns = {f"global {i + 1}": view for i, view in enumerate(views.global_crops)}
    columns |= {f"local {i + 1}": view for i, view in enumerate(views.local_crops[:LOCALS])}
    rows: list[list[Picture]] = [[] for _ in range(min(SAMPLES, len(views.global_crops[0])))]
    for name, view in columns.items():
        for row, pixels in zip(rows, to_pixels(view[: len(rows)]), strict=True):
            row.append(Picture(name, pixels))
    if views.synthetic is not None:
        for row, flags in zip(rows, views.synthetic.tolist(), strict=False):
            for i, flag in enumerate(flags):
                if flag:
                    row[i] = row[i]._replace(caption=f"{row[i].caption}, synthetic")
    blend = views.blend
    if blend is not None:
        alphas = blend.alpha.tolist()
        images, others = to_pixels(blend.image[:SAMPLES]), to_pixels(blend.secondary[:SAMPLES])
        for number, sample in enumerate(blend.rows[:SAMPLES].tolist()):
            if sample < len(rows):
                rows[sample].append(Picture(f"blend, {alphas[number]:.2f}", images[number]))
                rows[sample].append(Picture("its second", others[number]))
    return rows


def attention_sheet(encoder: Encoder, images: Tensor) -> Sheet | None:
    """A row a patch: the image, and where each head's class token looks; None without one."""
    images = images[:SAMPLES]
    maps = class_attention(encoder, images)
    if maps is None:
        return None
    maps = maps[:, :HEADS]
    maps = maps / maps.amax((-2, -1), keepdim=True).clamp_min(1e-12)
    grown = F.interpolate(maps, images.shape[-2:], mode="nearest")
    rows = []
    for pixels, heads in zip(to_pixels(images), grown, strict=True):
        shown = to_pixels(heads[:, None].expand(-1, 3, -1, -1))
        looks = [Picture(f"head {i + 1}", look) for i, look in enumerate(shown)]
        rows.append([Picture("image", pixels), *looks])
    return rows
