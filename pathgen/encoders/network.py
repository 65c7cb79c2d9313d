"""The networks of the public encoders: a timm trunk, and how its tokens become one vector."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import timm
import torch
from timm.layers.mlp import SwiGLUPacked
from torch import Tensor, nn
from torch.nn import functional as F

from pathgen.encoders.zoo import Published
from pathgen.errors import ConfigError

#: Heads of CONCH's pooling, in both versions.
_POOL_HEADS = 8


class Network(nn.Module):
    """(B, 3, H, W), normalized -> (B, dim), by the row's rule.

    Its parameters have timm's names below ``trunk.``; CONCH's pooling has the authors' own.

    Raises:
        ConfigError: PG-C04, timm does not know or cannot build the architecture.
    """

    def __init__(self, row: Published) -> None:
        super().__init__()
        self.row = row
        self.trunk = _trunk(row)
        if row.vector == "attention":
            width = int(self.trunk.num_features)
            pool = TorchPool if row.layout == "conch" else PlainPool
            self.attn_pool_contrast = pool(row.dim, width)
            self.ln_contrast = nn.LayerNorm(row.dim)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of patch tokens; None for a CNN."""
        embed = getattr(self.trunk, "patch_embed", None)
        return None if embed is None else cast("tuple[int, int]", embed.grid_size)

    @property
    def prefix(self) -> int:
        """Tokens before those of the patches: the class token and the registers."""
        return int(getattr(self.trunk, "num_prefix_tokens", 0))

    @property
    def prefix_positions(self) -> int:
        """Position embeddings before those of the patches."""
        return 0 if getattr(self.trunk, "no_embed_class", False) else self.prefix

    def forward(self, images: Tensor) -> Tensor:
        if self.row.vector == "pooled":
            return cast(Tensor, self.trunk(images))
        if self.row.vector == "third":
            (stage,) = self.trunk.forward_intermediates(images, [3], intermediates_only=True)
            return cast(Tensor, stage.mean(dim=(2, 3)))  # (B, D, h, w) -> (B, D)
        tokens = self.trunk.forward_features(images)  # (B, prefix + N, D), normed
        if self.row.vector == "attention":
            return cast(Tensor, self.ln_contrast(self.attn_pool_contrast(tokens)))
        vectors = []
        if "cls" in self.row.vector:
            vectors.append(tokens[:, 0])
        if "mean" in self.row.vector:
            vectors.append(tokens[:, self.prefix :].mean(dim=1))
        return torch.cat(vectors, dim=1)


class TorchPool(nn.Module):
    """CONCH: one learned query attends to all tokens. (B, N, D) -> (B, dim).

    Lu MY et al. Nat Med 2024;30:863-74.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, dim))
        self.attn = nn.MultiheadAttention(
            dim, _POOL_HEADS, kdim=width, vdim=width, batch_first=True
        )
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        keys = self.ln_k(tokens)
        query = self.ln_q(self.query).expand(len(tokens), -1, -1)
        return cast(Tensor, self.attn(query, keys, keys, need_weights=False)[0][:, 0])


class PlainPool(nn.Module):
    """CONCH v1.5: the same without biases. (B, N, D) -> (B, dim).

    Ding T et al. Nat Med 2025.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(1, dim))
        self.ln_q, self.ln_k = nn.LayerNorm(dim), nn.LayerNorm(width)
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_kv = nn.Linear(width, 2 * dim, bias=False)
        self.to_out = nn.Linear(dim, dim, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.to_q(self.ln_q(self.query)).expand(len(tokens), -1, -1)
        keys, values = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        q, k, v = (_in_heads(tokens) for tokens in (query, keys, values))
        pooled = F.scaled_dot_product_attention(q, k, v)  # (B, heads, 1, dim / heads)
        return cast(Tensor, self.to_out(pooled.flatten(1)))


def _in_heads(tokens: Tensor) -> Tensor:
    """(B, N, D) -> (B, heads, N, D / heads)."""
    count, length, width = tokens.shape
    return tokens.reshape(count, length, _POOL_HEADS, width // _POOL_HEADS).transpose(1, 2)


def _trunk(row: Published) -> Any:
    settings: dict[str, Any] = {"num_classes": 0, **row.settings}
    if row.vector not in ("pooled", "third"):
        settings["img_size"] = row.image_size
    if row.swiglu:
        settings |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    if row.norm_eps is not None:
        settings["norm_layer"] = partial(nn.LayerNorm, eps=row.norm_eps)
    if not timm.is_model(row.network):
        raise ConfigError(
            "timm has no such model", code="PG-C04", where=row.network,
            hint="a newer timm may have it: pip install -U timm",
        )  # fmt: skip
    try:
        return timm.create_model(row.network, **settings)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            "timm cannot build this model", code="PG-C04", where=row.name, why=str(error)
        ) from error
