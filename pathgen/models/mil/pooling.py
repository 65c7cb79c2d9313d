"""Heads without attention: mean, maximum, best patch."""

from __future__ import annotations

import torch
from torch.nn import functional

from pathgen.models.mil.base import Aggregate, MILHead
from pathgen.models.mil.packed import Packed


class MeanHead(MILHead):
    """z = sum of h / N, logits = W z + b. Every patch counts the same."""

    def aggregate(self, patches: Packed) -> Aggregate:
        attention = patches.even()
        vector = patches.weighted(attention.unsqueeze(1), patches.vectors).squeeze(1)  # (B, E)
        evidence = self.evidence_of(attention.unsqueeze(1), patches.vectors)
        return Aggregate(self.classify(vector), attention, evidence)


class MaxHead(MILHead):
    """z_d = the largest h_d, logits = W z + b.

    Attention is the share of the dimensions that a patch decides; those who tie share one.
    """

    def aggregate(self, patches: Packed) -> Aggregate:
        largest = patches.largest(patches.vectors)  # (B, E)
        shares = patches.wins(patches.vectors, largest)  # (T, E)
        evidence = self.evidence_of(torch.ones_like(shares[:, :1]), shares * patches.vectors)
        return Aggregate(self.classify(largest), shares.mean(-1), evidence)


class InstanceMaxHead(MILHead):
    """Score each patch, s_k = W h_k + b; a logit is the largest score of its output.

    The gradient passes through the top patch alone: with one score this is the instance
    classifier that CLAM calls MIL_fc (Lu et al. 2021, arXiv 2004.09666). With several, each has
    a top patch of its own, whichever class is the positive one. Attention is the share of the
    outputs that a patch decides.
    """

    def aggregate(self, patches: Packed) -> Aggregate:
        # Without the bias, which takes part in no comparison: an empty bag has it alone.
        parts = functional.linear(patches.vectors, self.classify.weight)  # (T, S)
        largest = patches.largest(parts)  # (B, S)
        shares = patches.wins(parts, largest)
        evidence = None if self.training else shares * parts
        return Aggregate(largest + self.classify.bias, shares.mean(-1), evidence)
