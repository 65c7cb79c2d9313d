"""A perceptual distance without foreign weights: on the patch tokens of our own encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pathgen.errors import ConfigError
from pathgen.models.encoder import Encoder, resize

#: Blocks compared when none are named: as many, evenly spaced, the last among them.
COMPARED = 4


class Perceptual(nn.Module):
    """Distance of images as a frozen encoder sees them, after LPIPS (arXiv 1801.03924).

    As LPIPS without its learned heads, which saw human judgements, and with the encoder trained
    on the same unlabelled patches in place of a network that saw labels: the patch tokens of some
    blocks, each of unit length after the encoder's last norm, and the mean squared distance of
    the two images' tokens over places and blocks; 0 to 4.

    Args:
        encoder: a ViT; put in eval mode and frozen.
        blocks: which blocks to compare, counted from 0, or from the end below 0; none: four.

    Raises:
        ConfigError: PG-C04, the encoder is no ViT or has no such block.
    """

    def __init__(self, encoder: Encoder, blocks: Sequence[int] = ()) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        depth = len(getattr(encoder.backbone, "blocks", ()))
        wrong = [block for block in blocks if not -depth <= block < depth]
        if wrong or not depth or not hasattr(encoder.backbone, "forward_intermediates"):
            raise ConfigError(
                "a perceptual loss on this encoder is not possible", code="PG-C04",
                where=encoder.config.name,
                why=f"it has {depth} transformer blocks" + (f", not {wrong}" if wrong else ""),
                hint="use a vision transformer, name other perceptual_blocks, or set "
                "perceptual_weight=0",
            )  # fmt: skip
        several = min(COMPARED, depth)
        spread = [depth * (i + 1) // several - 1 for i in range(several)]
        self.blocks = sorted({block % depth for block in blocks}) or spread

    def train(self, mode: bool = True) -> Perceptual:
        """Stays in eval mode: stochastic depth has no place in a measure."""
        return super().train(False)

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], twice -> a scalar. Gradient reaches the reconstructions only.

        Both are resized as `Encoder.encode` resizes; the reconstructions are clipped first.
        """
        with torch.no_grad():
            aims = self.tokens(images)
        found = self.tokens(reconstructions.clamp(0, 1))
        distances = [
            (a - b).square().sum(-1).mean() for a, b in zip(aims, found, strict=True)
        ]  # (B, N, D) -> (B, N) -> ()
        return torch.stack(distances).mean()

    def tokens(self, images: Tensor) -> list[Tensor]:
        """Of each block, float32 (B, N, D) of unit length."""
        encoder, backbone = self.encoder, cast(Any, self.encoder.backbone)
        seen = (resize(images.float(), encoder.config.image_size) - encoder.mean) / encoder.std
        layers = backbone.forward_intermediates(
            seen, indices=self.blocks, output_fmt="NLC", intermediates_only=True, stop_early=True
        )
        return [F.normalize(self._last_norm()(tokens).float(), dim=-1) for tokens in layers]

    def _last_norm(self) -> nn.Module:
        """Where a ViT pools by averaging, its last norm comes after the pooling."""
        backbone = cast(Any, self.encoder.backbone)
        if isinstance(backbone.norm, nn.Identity):
            return cast(nn.Module, getattr(backbone, "fc_norm", backbone.norm))
        return cast(nn.Module, backbone.norm)
