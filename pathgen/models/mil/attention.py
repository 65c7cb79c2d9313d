"""Attention-based pooling: Ilse, Tomczak & Welling 2018 (arXiv 1802.04712)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pathgen.models.mil.base import Aggregate, MILHead
from pathgen.models.mil.config import MILConfig
from pathgen.models.mil.packed import Packed


class AttentionScore(nn.Module):
    """e = w^T tanh(V h): equation 8, before the softmax; `rows` of them."""

    def __init__(self, embed: int, hidden: int, rows: int = 1) -> None:
        super().__init__()
        self.content = nn.Linear(embed, hidden)  # V
        self.weight = nn.Linear(hidden, rows, bias=False)  # w

    def forward(self, vectors: Tensor) -> Tensor:
        """(T, E) -> (T, rows)."""
        return self.weight(torch.tanh(self.content(vectors)))  # type: ignore[no-any-return]


class GatedAttentionScore(AttentionScore):
    """e = w^T (tanh(V h) * sigmoid(U h)): equation 9, before the softmax; `rows` of them."""

    def __init__(self, embed: int, hidden: int, rows: int = 1) -> None:
        super().__init__(embed, hidden, rows)
        self.gate = nn.Linear(embed, hidden)  # U

    def forward(self, vectors: Tensor) -> Tensor:
        gated = torch.tanh(self.content(vectors)) * torch.sigmoid(self.gate(vectors))
        return self.weight(gated)  # type: ignore[no-any-return]


class ABMIL(MILHead):
    """a = softmax(e), z = sum of a h, logits = W z + b: equation 7, gated or plain.

    The evidence of a patch is a_k W h_k.
    """

    def __init__(self, config: MILConfig) -> None:
        super().__init__(config)
        score = AttentionScore if config.head == "abmil-plain" else GatedAttentionScore
        self.pool = score(config.embed, config.hidden)

    def aggregate(self, patches: Packed) -> Aggregate:
        attention = patches.softmax(self.pool(patches.vectors))  # (T, 1)
        vector = patches.weighted(attention, patches.vectors).squeeze(1)  # (B, E)
        evidence = self.evidence_of(attention, patches.vectors)
        return Aggregate(self.classify(vector), attention.squeeze(1), evidence)
