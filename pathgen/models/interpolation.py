"""Blends of two sources. Here and everywhere, `alpha` is the share of the primary."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def slerp(primary: Tensor, secondary: Tensor, alpha: Tensor) -> Tensor:
    """Point on the arc between two embeddings: alpha 1 gives the primary, 0 the secondary.

    (B, D), (B, D), (B,) -> (B, D), D of 2 or more. Both are taken to unit length first, and so
    is the result. Of the many arcs between opposite embeddings a fixed one is taken.
    Gen-SIS (arXiv 2412.01672), interpolated augmentation.
    """
    primary, secondary = F.normalize(primary, dim=-1), F.normalize(secondary, dim=-1)
    cosine = (primary * secondary).sum(-1, keepdim=True)
    across = secondary - cosine * primary  # the secondary's part at right angles to the primary
    sine = across.norm(dim=-1, keepdim=True)
    opposite_or_equal = sine < 1e-6
    across = torch.where(opposite_or_equal, _right_angle(primary), across)
    # atan2 keeps its precision at both ends, where acos of the cosine loses half its digits.
    angle = torch.atan2(sine, cosine) * (1 - alpha.to(primary).unsqueeze(-1))
    return angle.cos() * primary + angle.sin() * F.normalize(across, dim=-1)


def entangle(primary: Tensor, secondary: Tensor, alpha: Tensor) -> Tensor:
    """Blend of two teachers' raw logits: (B, K), (B, K), (B,) -> (B, K).

    After centering and softmax it is the normalized geometric mean of the two distributions.
    """
    alpha = alpha.to(primary).unsqueeze(-1)
    return alpha * primary + (1 - alpha) * secondary


def _right_angle(vectors: Tensor) -> Tensor:
    """(B, D) unit vectors -> some vector at right angles to each, the same one every time."""
    axis = F.one_hot(vectors.abs().argmin(-1), vectors.shape[-1]).to(vectors)
    return axis - (axis * vectors).sum(-1, keepdim=True) * vectors
