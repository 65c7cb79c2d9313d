"""A transformer over latent patches as denoiser: DiT (arXiv 2212.09748), the network of SiT too."""

from __future__ import annotations

import math
from typing import cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from pathgen.config import Config

#: Length of the sine-cosine code of a time.
TIME_CODE = 256


class DiTConfig(Config):
    """Sizes; the defaults are DiT-S/2. B: 768, 12, 12. L: 1024, 24, 16. XL: 1152, 28, 16."""

    width: int = Field(default=384, ge=4)
    depth: int = Field(default=12, ge=1)
    heads: int = Field(default=6, ge=1)
    patch: int = Field(default=2, ge=1)
    """Side, in latent pixels, of the square that becomes one token."""
    mlp_ratio: float = Field(default=4.0, gt=0)
    qk_norm: bool = False
    """Normalize queries and keys, which keeps attention's logits small in low precision."""

    @model_validator(mode="after")
    def _fits(self) -> DiTConfig:
        if self.width % self.heads:
            raise ValueError("heads must divide width")
        if self.width % 4:
            raise ValueError("width must be a multiple of 4, for sines and cosines of x and y")
        return self


class DiT(nn.Module):
    """Latents to latents, told time and condition by scale, shift and gate of every block.

    The condition enters as Linear(condition) added to the code of the time (AdaLN-zero). Every
    block starts as the identity and the last layer at zero: an untrained network answers 0.

    Args:
        channels, size: of a latent (channels, size, size).
        condition_dim: length of the condition; zeros are the null one, before the Linear.
    """

    positions: Tensor

    def __init__(self, config: DiTConfig, *, channels: int, size: int, condition_dim: int) -> None:
        super().__init__()
        self.config = config
        self.side = size // config.patch
        width = config.width
        self.embed = nn.Conv2d(channels, width, config.patch, config.patch)
        self.register_buffer("positions", grid_code(self.side, width), persistent=False)
        self.time = nn.Sequential(nn.Linear(TIME_CODE, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(condition_dim, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, channels * config.patch**2)
        self._start()

    def forward(self, latents: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        """(B, C, h, w), (B,), (B, D) -> (B, C, h, w)."""
        tokens = self.embed(latents).flatten(2).transpose(1, 2)  # (B, N, width), row by row
        tokens = tokens + self.positions.to(tokens)
        code = wave_code(times, TIME_CODE).to(tokens)
        told = self.time(code) + self.condition(condition)  # (B, width)
        for block in self.blocks:
            tokens = block(tokens, told)
        shift, scale = self.modulation(told).unsqueeze(1).chunk(2, dim=-1)
        squares = self.out(self.norm(tokens) * (1 + scale) + shift)  # (B, N, C p p)
        grid = squares.transpose(1, 2).unflatten(2, (self.side, self.side))
        return F.pixel_shuffle(grid, self.config.patch)

    def _start(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.embed.weight.flatten(1))
        nn.init.zeros_(cast(Tensor, self.embed.bias))
        for layer in (self.time[0], self.time[2], self.condition):
            nn.init.normal_(cast(Tensor, layer.weight), std=0.02)
        zero = [self.modulation[1], self.out]
        zero += [cast(Block, block).modulation[1] for block in self.blocks]
        for layer in zero:
            nn.init.zeros_(cast(Tensor, layer.weight))


class Block(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by what the network is told."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, hidden = config.width, int(config.width * config.mlp_ratio)
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        head = width // config.heads
        self.query_norm = _HeadNorm(head, eps=1e-6) if config.qk_norm else nn.Identity()
        self.key_norm = _HeadNorm(head, eps=1e-6) if config.qk_norm else nn.Identity()
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width)
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, tokens: Tensor, told: Tensor) -> Tensor:
        """(B, N, width), (B, width) -> (B, N, width)."""
        # Each (B, 1, width): shift, scale and gate of attention, then of the MLP.
        six: tuple[Tensor, ...] = self.modulation(told).unsqueeze(1).chunk(6, dim=-1)
        shift, scale, gate = six[:3]
        tokens = tokens + gate * self._attend(self.attention_norm(tokens) * (1 + scale) + shift)
        shift, scale, gate = six[3:]
        changed: Tensor = self.mlp(self.mlp_norm(tokens) * (1 + scale) + shift)
        return tokens + gate * changed

    def _attend(self, tokens: Tensor) -> Tensor:
        split = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = split.unbind()  # each (B, heads, N, width / heads)
        queries, keys = self.query_norm(queries), self.key_norm(keys)
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        return cast(Tensor, self.project(mixed.transpose(1, 2).flatten(2)))


class _HeadNorm(nn.RMSNorm):
    """In the precision of its input: with the float32 weight that autocast leaves there is no fused
    kernel, and torch warns of it."""

    def forward(self, x: Tensor) -> Tensor:
        weight = cast(Tensor, self.weight).to(x.dtype)
        return F.rms_norm(x, list(self.normalized_shape), weight, self.eps)


def wave_code(values: Tensor, width: int) -> Tensor:
    """Cosines and sines at wavelengths from 2 pi to 20,000 pi: (...) -> (..., width)."""
    half = width // 2
    powers = torch.arange(half, dtype=torch.float32, device=values.device) / half
    angles = values.float().unsqueeze(-1) * torch.exp(-math.log(10_000) * powers)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def grid_code(side: int, width: int) -> Tensor:
    """Fixed code of the places of a square, row by row: (side * side, width), half x, half y."""
    place = wave_code(torch.arange(side), width // 2)  # (side, width / 2)
    x = place.unsqueeze(0).expand(side, -1, -1)
    y = place.unsqueeze(1).expand(-1, side, -1)
    return torch.cat([x, y], dim=-1).flatten(0, 1)
