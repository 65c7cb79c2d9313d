"""A Transformer that reads a bag as a set: no positions."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathgen.models.mil.base import Aggregate, MILHead
from pathgen.models.mil.config import MILConfig
from pathgen.models.mil.division import content_keys, divide
from pathgen.models.mil.packed import Packed, at_least_float32


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to tokens (Vaswani et al. 2017, arXiv 1706.03762)."""

    def __init__(self, embed: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(embed, 3 * embed)
        self.project = nn.Linear(embed, embed)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """(S, n, E) and (S, n) bool, or None where every token is real -> (S, n, E)."""
        q, k, v = self._split(self.query_key_value(tokens))
        there = None if mask is None else mask[:, None, None]  # (S, 1, 1, n)
        out = functional.scaled_dot_product_attention(q, k, v, there)
        return self.project(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def first(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the first token sees: (S, n, E) -> (S, 1, E), and the weights (S, heads, n)."""
        q, k, v = self._split(self.query_key_value(tokens))
        near = q[:, :, :1] / q.shape[-1] ** 0.5  # before the product, which float16 must hold
        scores = at_least_float32(near @ k.mT)  # (S, heads, 1, n)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        out = weights.to(v.dtype) @ v  # (S, heads, 1, d)
        return self.project(out.transpose(1, 2).flatten(2)), weights.squeeze(2)

    def _split(self, joined: Tensor) -> Tensor:
        """(S, n, 3 E) -> (3, S, heads, n, d)."""
        return joined.reshape(*joined.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: MILConfig) -> None:
        super().__init__()
        settings, embed = config.transformer, config.embed
        width = max(1, round(settings.mlp_ratio * embed))
        self.norm1, self.norm2 = nn.LayerNorm(embed), nn.LayerNorm(embed)
        self.attention = SelfAttention(embed, settings.heads)
        self.mlp = nn.Sequential(nn.Linear(embed, width), nn.GELU(), nn.Linear(width, embed))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        tokens = tokens + self.dropout(self.attention(self.norm1(tokens), mask))
        return tokens + self.dropout(self.mlp(self.norm2(tokens)))  # type: ignore[no-any-return]

    def first(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The first token alone, and its attention: in the last block nobody reads the others."""
        seen, weights = self.attention.first(self.norm1(tokens), mask)
        token = tokens[:, :1] + self.dropout(seen)
        return token + self.dropout(self.mlp(self.norm2(token))), weights


class TransformerHead(MILHead):
    """A class token and the patches through `layers` blocks; logits from the class token.

    A bag of more than `max_instances` patches is divided into the fewest parts that are not
    larger, dealt in the order of a hash of the patches' vectors, so that the order of the bag
    does not matter. Each part is encoded with the class token on its own, one at a time, and the
    bag's vector is the mean of theirs, weighted by their patches: no patch is left out, and time
    and memory grow with N, not with N squared.

    `attention` is that of the class token to the patches in the last block, the mean over the
    heads, without its share for itself. Patches act on each other, so there is no evidence.
    """

    def __init__(self, config: MILConfig) -> None:
        super().__init__(config)
        self.token = nn.Parameter(torch.empty(1, 1, config.embed))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.transformer.layers))
        self.norm = nn.LayerNorm(config.embed)

    def aggregate(self, patches: Packed) -> Aggregate:
        limit = self.config.transformer.max_instances
        if max(patches.lengths, default=0) <= limit:
            tokens, attention = self._encode(patches)
            there = torch.tensor(patches.lengths, device=tokens.device) > 0
            vector = torch.where(there.unsqueeze(1), tokens, 0.0)
            return Aggregate(self.classify(vector), attention, None)
        counts = [-(-length // limit) for length in patches.lengths]
        division = divide(content_keys(patches.stored), patches.lengths, counts)
        parts = torch.split(patches.vectors[division.order], list(division.sizes))
        encoded = [self._encode(Packed.of_lengths(part, [len(part)])) for part in parts]
        tokens = torch.cat([token for token, _ in encoded])  # (G, E)
        outer = Packed.of_lengths(tokens, division.counts)
        sizes = torch.tensor(division.sizes, device=tokens.device)
        whole = patches.mask.sum(1)[outer.bag_of_each]
        weights = sizes / whole  # (G,)
        vector = outer.weighted(weights.unsqueeze(1), tokens).squeeze(1)
        shares = [seen * weight for (_, seen), weight in zip(encoded, weights, strict=True)]
        attention = torch.cat(shares)
        attention = torch.zeros_like(attention).index_copy(0, division.order, attention)
        return Aggregate(self.classify(vector), attention, None)

    def _encode(self, patches: Packed) -> tuple[Tensor, Tensor]:
        """(B, E) class tokens after the last norm, and the attention of each patch (T,)."""
        tokens = patches.spread(patches.vectors)  # (B, n, E)
        token = self.token.to(tokens.dtype).expand(len(tokens), -1, -1)
        tokens = torch.cat([token, tokens], 1)
        mask = None if patches.whole else functional.pad(patches.mask, (1, 0), value=True)
        blocks = cast(list[Block], list(self.blocks))
        for block in blocks[:-1]:
            tokens = block(tokens, mask)
        token, weights = blocks[-1].first(tokens, mask)  # (B, 1, E), (B, heads, 1 + n)
        seen = weights.detach().mean(1)[:, 1:]
        seen = seen.flatten() if patches.whole else seen[patches.mask]
        seen = seen.clamp(min=torch.finfo(seen.dtype).tiny)  # never all 0
        share = patches.spread(seen).sum(1)
        return self.norm(token.squeeze(1)), seen / share[patches.bag_of_each]
