"""A linear classifier on frozen features."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from pathgen.config import Config


class LinearHeadConfig(Config):
    """What a head is like."""

    dim: int = Field(ge=1)
    """length of a feature"""
    classes: tuple[str, ...]
    """names, in the order of the logits"""
    blocks: int = Field(default=4, ge=1)
    """how many of the encoder's last blocks give their class tokens"""
    encoder_id: str = ""
    """whose features it was trained on; written by training"""


class LinearHead(nn.Module):
    """One linear layer; weights start as N(0, 0.01), as DINO's protocol has it."""

    def __init__(self, config: LinearHeadConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.dim, len(config.classes))
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, dim) -> (B, classes) logits."""
        logits: Tensor = self.linear(features)
        return logits
