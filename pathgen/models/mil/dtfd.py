"""DTFD-MIL: Zhang et al. 2022 (arXiv 2203.12081)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathgen.models.mil.attention import GatedAttentionScore
from pathgen.models.mil.base import Aggregate, MILHead
from pathgen.models.mil.config import MILConfig
from pathgen.models.mil.division import Division, content_keys, divide
from pathgen.models.mil.packed import Packed, at_least_float32
from pathgen.models.mil.targets import Criterion, Truth


class _Tiers(NamedTuple):
    first: Tensor  # (G, S) of the pseudo-bags
    second: Tensor  # (B, S) of the bags
    attention: Tensor  # (T,) in the order of the bags
    counts: Tensor  # (B,) pseudo-bags of each


class DTFD(MILHead):
    """Two tiers of gated attention: over the patches of pseudo-bags, then over pseudo-bags.

    A bag is divided into M = min(pseudo_bags, N) pseudo-bags. The first tier makes of each a mean
    and logits; what the second reads of it says `distill`: that mean (afs), or the patch with the
    highest derived probability of the class that the pseudo-bag was given (max), or that one and
    the one with the lowest (max-min). The derived score of patch k for class c is a_k w_c h_k
    (equation 11), its softmax the probability; a head with one score compares the scores. The
    bag's logits are those of the second tier, and the loss is that of the bag plus the mean over
    its pseudo-bags, each of which counts as a bag of the same truth.

    Training divides at random. Otherwise patches are dealt in the order of a hash of their
    vectors: the same parts every time, in whatever order the bag comes.

    The evidence of a patch is its attention, over both tiers, times W h_k of the second.
    """

    def __init__(self, config: MILConfig) -> None:
        super().__init__(config)
        self.pool = GatedAttentionScore(config.embed, config.hidden)
        self.first = nn.Linear(config.embed, self.link.scores)
        self.pool_parts = GatedAttentionScore(config.embed, config.hidden)

    def aggregate(self, patches: Packed) -> Aggregate:
        found = self._tiers(patches)
        evidence = self.evidence_of(found.attention.unsqueeze(1), patches.vectors)
        return Aggregate(found.second, found.attention, evidence)

    def losses(
        self,
        bags: Tensor,
        mask: Tensor,
        truth: Truth,
        criterion: Criterion,
        coords: Tensor | None = None,
    ) -> Tensor:
        found = self._tiers(self.patches(bags, mask, coords))
        owner = torch.arange(len(mask), device=mask.device).repeat_interleave(found.counts)
        parts = criterion(self.link(at_least_float32(found.first)), truth.select(owner))  # (G,)
        total = parts.new_zeros(len(mask)).index_add(0, owner, parts)
        whole = criterion(self.link(at_least_float32(found.second)), truth)
        return whole + total / found.counts.clamp(min=1)

    def _tiers(self, patches: Packed) -> _Tiers:
        division = self._division(patches)
        parts = Packed.of_lengths(patches.vectors[division.order], division.sizes)
        attention = parts.softmax(self.pool(parts.vectors))  # (T, 1)
        means = parts.weighted(attention, parts.vectors).squeeze(1)  # (G, E)
        first = self.first(means)
        rows = self._distilled(parts, attention, first)  # (G, P) of parts.vectors; None: means
        tokens = means if rows is None else parts.vectors[rows.flatten()]
        per = 1 if rows is None else rows.shape[1]
        outer = Packed.of_lengths(tokens, [count * per for count in division.counts])
        weights = outer.softmax(self.pool_parts(tokens))  # (G P, 1)
        second = self.classify(outer.weighted(weights, tokens).squeeze(1))
        if rows is None:
            shares = attention.squeeze(1) * weights.squeeze(1)[parts.bag_of_each]
        else:
            shares = weights.new_zeros(len(attention)).index_add(
                0, rows.flatten(), weights.squeeze(1)
            )
        back = torch.zeros_like(shares).index_copy(0, division.order, shares)
        return _Tiers(first, second, back, torch.tensor(division.counts, device=back.device))

    def _division(self, patches: Packed) -> Division:
        counts = [min(self.config.dtfd.pseudo_bags, length) for length in patches.lengths]
        if self.training:
            keys = torch.rand(len(patches.vectors), device=patches.vectors.device)
        else:
            keys = content_keys(patches.stored)
        return divide(keys, patches.lengths, counts)

    @torch.no_grad()
    def _distilled(self, parts: Packed, attention: Tensor, first: Tensor) -> Tensor | None:
        """The patches (G, 1 or 2) that stand for each part, as rows."""
        if self.config.dtfd.distill == "afs":
            return None
        derived = attention * functional.linear(parts.vectors, self.first.weight)  # (T, S)
        if derived.shape[1] > 1:
            derived = at_least_float32(derived).softmax(1)
        given = first.argmax(1)[parts.bag_of_each]  # (T,)
        strength = derived.gather(1, given.unsqueeze(1)).squeeze(1)  # (T,)
        sizes = torch.tensor(parts.lengths, dtype=torch.int64, device=given.device)
        starts = sizes.cumsum(0) - sizes
        limits = torch.finfo(strength.dtype)
        found = []
        if len(sizes):
            found.append(starts + parts.spread(strength, limits.min).argmax(1))
            if self.config.dtfd.distill == "max-min":
                found.append(starts + parts.spread(strength, limits.max).argmin(1))
        return torch.stack(found, 1) if found else starts.unsqueeze(1)
