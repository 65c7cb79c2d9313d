"""Blends of two sources. Here and everywhere, `alpha` is the share of the primary."""

from __future__ import annotations

from collections.abc import Sequence

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


def mixture(embeddings: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Point among several embeddings on the unit sphere, by slerp after slerp.

    S of (B, D) and (B, S), shares that sum to 1, the primary first -> (B, D) of unit length. Two
    sources: `slerp`. With a third, the first two are blended in proportion, then that with the
    third by its share. Ours, after Gen-SIS's interpolation of two.
    """
    point, total = embeddings[0], shares[:, 0]
    for number, embedding in enumerate(embeddings[1:], 1):
        together = total + shares[:, number]
        is_last = number == len(embeddings) - 1  # then `together` is 1 but for rounding
        alpha = total if is_last else total / together.clamp(min=1e-12)
        point, total = slerp(point, embedding, alpha), together
    return point


def entangle(primary: Tensor, secondary: Tensor, alpha: Tensor) -> Tensor:
    """Blend of two teachers' raw logits: (B, K), (B, K), (B,) -> (B, K).

    After centering and softmax it is the normalized geometric mean of the two distributions.
    """
    return weighted_sum([primary, secondary], torch.stack([alpha, 1 - alpha], 1))


def weighted_sum(parts: Sequence[Tensor], shares: Tensor) -> Tensor:
    """S of (B, K), weighted by (B, S) -> (B, K)."""
    shares = shares.to(parts[0])
    total = shares[:, :1] * parts[0]
    for number, part in enumerate(parts[1:], 1):
        total = total + shares[:, number : number + 1] * part
    return total


def _right_angle(vectors: Tensor) -> Tensor:
    """(B, D) unit vectors -> some vector at right angles to each, the same one every time."""
    axis = F.one_hot(vectors.abs().argmin(-1), vectors.shape[-1]).to(vectors)
    return axis - (axis * vectors).sum(-1, keepdim=True) * vectors
