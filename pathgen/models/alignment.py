"""Representation alignment: a denoiser's hidden tokens are drawn to those of a frozen encoder.

REPA (arXiv 2410.06940) for transformers; for UNets the middle of the network, as U-REPA
(arXiv 2503.18414) found best. Only training knows of it: nothing of it is saved with the model.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pathgen.errors import ConfigError
from pathgen.models.ldm import EmbeddingConditionedLDM


class Alignment(nn.Module):
    """A small MLP from the hidden tokens of one layer of a denoiser to an encoder's patch tokens.

    It watches the layer: after each `model.denoise`, `loss` is about what went through there.

    Args:
        token_dim: length of the encoder's tokens.
        layer: which; see `watched_layer`.
        width: of the MLP's two hidden layers.
    """

    def __init__(
        self, model: EmbeddingConditionedLDM, token_dim: int, *, layer: int = 0, width: int = 2048
    ) -> None:
        super().__init__()
        watched, channels = watched_layer(model, layer)
        self.project = nn.Sequential(
            nn.Linear(channels, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, token_dim),
        )  # fmt: skip
        self._seen: Tensor | None = None
        watched.register_forward_hook(self._keep)

    def loss(self, tokens: Tensor) -> Tensor:
        """Negative cosine of projected hidden tokens and tokens, mean over all: a scalar.

        tokens (B, N, token_dim) of the clean images, row by row of a square. Where the two grids
        differ the projected one is resized, bilinearly.
        """
        assert self._seen is not None, "denoise comes first"
        hidden, self._seen = self._seen, None
        projected = self.project(hidden)
        side, wanted = math.isqrt(projected.shape[1]), math.isqrt(tokens.shape[1])
        if side != wanted:
            grid = projected.transpose(1, 2).unflatten(2, (side, side))
            grid = F.interpolate(
                grid.float(), (wanted, wanted), mode="bilinear", antialias=wanted < side
            )
            projected = grid.flatten(2).transpose(1, 2)
        return -F.cosine_similarity(projected.float(), tokens.float(), dim=-1).mean()

    def _keep(self, module: nn.Module, given: Any, hidden: Tensor) -> None:
        if hidden.ndim == 4:
            hidden = hidden.flatten(2).transpose(1, 2)
        self._seen = hidden  # (B, N, channels)


def watched_layer(model: EmbeddingConditionedLDM, layer: int) -> tuple[nn.Module, int]:
    """The layer and the length of its tokens.

    DiT: block `layer` of 1 to depth; 0: the end of the first third, about REPA's 8th of 28.
    UNet: 0: the middle block; `layer` of 1 to the number of levels: that block on the way up.

    Raises ConfigError for a layer that is not there.
    """
    if model.config.kind == "dit":
        blocks = model.dit.blocks
        last, channels = len(blocks), model.config.dit.width
        number = layer or max(1, round(last / 3.5))
        if 0 <= layer <= last:
            return blocks[number - 1], channels
    else:
        widths = model.config.block_out_channels
        last = len(widths)
        if layer == 0:
            return model.unet.mid_block, widths[-1]
        if 0 < layer <= last:
            return model.unet.up_blocks[layer - 1], widths[last - layer]
    raise ConfigError(
        "the denoiser has no such layer", where="ldm.align_layer",
        why=f"{layer} is not within 0 to {last}", hint="0 takes the usual one",
    )  # fmt: skip
