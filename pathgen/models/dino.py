"""A student and the teacher that follows it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from pathgen.config import Config
from pathgen.models.encoder import Encoder, EncoderConfig


class DinoHeadConfig(Config):
    """DINO's projection head."""

    hidden: int = Field(default=2048, ge=1)
    bottleneck: int = Field(default=256, ge=1)
    prototypes: int = Field(default=65_536, ge=2)
    layers: int = Field(default=3, ge=1)
    norm_last_layer: bool = True
    """keep the prototypes at unit length: steadier, a little worse on long runs"""


class DinoHead(nn.Module):
    """Linear-GELU-Linear-GELU-Linear, unit length, then weight-normed prototypes."""

    def __init__(self, dim: int, config: DinoHeadConfig) -> None:
        super().__init__()
        self.config = config
        widths = [dim, *[config.hidden] * (config.layers - 1), config.bottleneck]
        layers: list[nn.Module] = []
        for width, following in pairwise(widths):
            layers += [_linear(width, following), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = weight_norm(nn.Linear(config.bottleneck, config.prototypes, bias=False))
        lengths = self.last_layer.parametrizations.weight.original0  # type: ignore[union-attr]
        with torch.no_grad():
            lengths.fill_(1)  # type: ignore[operator]
        lengths.requires_grad_(not config.norm_last_layer)  # type: ignore[operator]

    def forward(self, features: Tensor) -> Tensor:
        """(B, dim) -> (B, prototypes) logits."""
        hidden = self.mlp(features)
        # As published; only fp16 cannot hold so small a number.
        eps = 1e-6 if hidden.dtype == torch.float16 else 1e-12
        projected = F.normalize(hidden, dim=-1, eps=eps)
        logits: Tensor = self.last_layer(projected)
        return logits


def _linear(width: int, following: int) -> nn.Linear:
    layer = nn.Linear(width, following)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


class _Network(nn.Module):
    """An encoder with a head."""

    def __init__(self, encoder: Encoder, head: DinoHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Views [(B, 3, H, W)] -> logits [(B, K)]; views of one size are forwarded together."""
        sizes = list(dict.fromkeys(view.shape[1:] for view in views))
        groups = [[i for i, view in enumerate(views) if view.shape[1:] == size] for size in sizes]
        features = [self.encoder(torch.cat([views[i] for i in group])) for group in groups]
        logits = self.head(torch.cat(features))
        order = [i for group in groups for i in group]
        parts = logits.split([len(views[i]) for i in order])
        found = dict(zip(order, parts, strict=True))
        return [found[i] for i in range(len(views))]


class StudentTeacher(nn.Module):
    """Two networks of one shape; gradients reach the student only (arXiv 2104.14294).

    The teacher starts as a copy of the student and has no stochastic depth.
    """

    def __init__(self, encoder: EncoderConfig, head: DinoHeadConfig) -> None:
        super().__init__()
        backbone = Encoder(encoder)
        self._student = _Network(backbone, DinoHead(backbone.dim, head))
        still = backbone.config.model_copy(update={"drop_path": 0.0})
        self._teacher = _Network(Encoder(still), copy.deepcopy(self._student.head))
        self._teacher.load_state_dict(self._student.state_dict())
        self._teacher.requires_grad_(False)

    def student(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Views [(B, 3, H, W)] in [0, 1] -> logits [(B, K)], in the same order."""
        logits: list[Tensor] = self._student(views)
        return logits

    @torch.no_grad()
    def teacher(self, views: Sequence[Tensor]) -> list[Tensor]:
        """As `student`, without gradient."""
        logits: list[Tensor] = self._teacher(views)
        return logits

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student."""
        teacher: list[Tensor] = list(self._teacher.parameters())
        student: list[Tensor] = list(self._student.parameters())
        torch._foreach_lerp_(teacher, student, 1 - momentum)

    def encoder(self) -> Encoder:
        """The teacher's backbone: what a run hands on."""
        return self._teacher.encoder

    @property
    def networks(self) -> list[nn.Module]:
        """What does the work: both backbones and both heads."""
        parts = (self._student, self._teacher)
        return [net for part in parts for net in (part.encoder.backbone, part.head)]

    @property
    def trained(self) -> nn.Module:
        """The student: what the optimizer changes."""
        return self._student

    @property
    def last_layer(self) -> list[nn.Parameter]:
        """The student's prototypes, which stay as they are in the first epochs."""
        return list(self._student.head.last_layer.parameters())
