"""A bag of vectors to one prediction: attention-based multiple-instance learning.

Ilse, Tomczak & Welling 2018 (arXiv 1802.04712), equations 7 to 9, after one linear layer with
ReLU and with a multi-class output.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from pathgen.config import Config


class PoolingConfig(Config):
    """What a head is like, apart from what its data decide."""

    pooling: Literal["gated", "attention", "mean", "max"] = "gated"
    embed: int = Field(default=256, ge=1)
    """length of a patch's vector after the first layer"""
    hidden: int = Field(default=128, ge=1)
    """width of the attention layers"""
    dropout: float = Field(default=0.25, ge=0, lt=1)
    """after the first layer"""


class MILConfig(PoolingConfig):
    """A whole head."""

    dim: int = Field(ge=1)
    """length of a feature"""
    classes: int = Field(ge=2)


class BagOutput(NamedTuple):
    """What a head says of B bags padded to n patches."""

    logits: Tensor  # (B, classes)
    attention: Tensor  # (B, n), sums to one over the true entries of the mask, 0 elsewhere


class MILHead(nn.Module):
    """Standardize, embed, pool, classify. Order and padding of a bag do not matter.

    `center` and `scale` (dim,) belong to the head, so that it takes features as they are stored.
    A bag without patches has attention 0 everywhere and is classified from a zero vector, that
    is by the bias alone; `load_bags` leaves such bags out.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, config: MILConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("center", torch.zeros(config.dim))
        self.register_buffer("scale", torch.ones(config.dim))
        self.embed = nn.Linear(config.dim, config.embed)
        self.dropout = nn.Dropout(config.dropout)
        self.pool = POOLINGS[config.pooling](config)
        self.classify = nn.Linear(config.embed, config.classes)

    def forward(self, bags: Tensor, mask: Tensor) -> BagOutput:
        """(B, n, dim) padded bags and (B, n) bool, true where there is a patch."""
        there = mask.unsqueeze(-1)  # (B, n, 1)
        # First of all, so that not even nan in the padding matters.
        bags = torch.where(there, (bags - self.center) / self.scale, 0.0)
        embedded = self.dropout(functional.relu(self.embed(bags)))  # (B, n, E)
        pooled, attention = self.pool(torch.where(there, embedded, 0.0), mask)
        return BagOutput(self.classify(pooled), attention)

    def standardize(self, center: Tensor, scale: Tensor) -> None:
        """Set mean and spread (dim,) of the training features."""
        self.center.copy_(center)
        self.scale.copy_(scale)


class Pooled(NamedTuple):
    """(B, E) and (B, n)."""

    vector: Tensor
    attention: Tensor


class AttentionPool(nn.Module):
    """a = softmax(w^T tanh(V h)), z = sum of a h."""

    def __init__(self, config: PoolingConfig) -> None:
        super().__init__()
        self.content = nn.Linear(config.embed, config.hidden)  # V
        self.weight = nn.Linear(config.hidden, 1, bias=False)  # w

    def score(self, embedded: Tensor) -> Tensor:
        """(B, n, E) -> (B, n)."""
        return self.weight(torch.tanh(self.content(embedded))).squeeze(-1)  # type: ignore[no-any-return]

    def forward(self, embedded: Tensor, mask: Tensor) -> Pooled:
        scores = self.score(embedded)
        # The least finite number, not -inf: an empty bag must not give nan, nor its gradient.
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        attention = torch.where(mask, scores.softmax(-1), 0.0)
        return Pooled(_weighted(attention, embedded), attention)


class GatedAttentionPool(AttentionPool):
    """a = softmax(w^T (tanh(V h) * sigmoid(U h))), z = sum of a h."""

    def __init__(self, config: PoolingConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.embed, config.hidden)  # U

    def score(self, embedded: Tensor) -> Tensor:
        gated = torch.tanh(self.content(embedded)) * torch.sigmoid(self.gate(embedded))
        return self.weight(gated).squeeze(-1)  # type: ignore[no-any-return]


class MeanPool(nn.Module):
    """Every patch counts the same."""

    def __init__(self, config: PoolingConfig) -> None:
        super().__init__()

    def forward(self, embedded: Tensor, mask: Tensor) -> Pooled:
        attention = mask.to(embedded.dtype) / mask.sum(-1, keepdim=True).clamp(min=1)
        return Pooled(_weighted(attention, embedded), attention)


class MaxPool(nn.Module):
    """Largest value of each dimension; attention is the share of dimensions a patch decides."""

    def __init__(self, config: PoolingConfig) -> None:
        super().__init__()

    def forward(self, embedded: Tensor, mask: Tensor) -> Pooled:
        # Embedded values are not negative, so a zero more changes no maximum of a full bag.
        largest = functional.pad(embedded, (0, 0, 0, 1)).amax(1)  # (B, E)
        wins = (embedded == largest.unsqueeze(1)) & mask.unsqueeze(-1)  # (B, n, E)
        shares = wins / wins.sum(1, keepdim=True).clamp(min=1)  # those who tie share a dimension
        return Pooled(largest, shares.mean(-1))


POOLINGS: dict[str, type[nn.Module]] = {
    "gated": GatedAttentionPool,
    "attention": AttentionPool,
    "mean": MeanPool,
    "max": MaxPool,
}


def _weighted(attention: Tensor, embedded: Tensor) -> Tensor:
    return torch.bmm(attention.unsqueeze(1), embedded).squeeze(1)  # (B, n), (B, n, E) -> (B, E)
