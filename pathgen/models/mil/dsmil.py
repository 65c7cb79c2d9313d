"""DSMIL: Li, Li & Eliceiri 2021 (arXiv 2011.08939)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathgen.models.mil.base import Aggregate, MILHead
from pathgen.models.mil.config import MILConfig
from pathgen.models.mil.packed import Packed, at_least_float32
from pathgen.models.mil.targets import Criterion, Truth


class _Streams(NamedTuple):
    parts: Tensor  # (T, S) W_i h, without the bias
    best: Tensor  # (B, S) the largest of each bag
    attention: Tensor  # (T, S)
    values: Tensor  # (T, E)
    bag: Tensor  # (B, S) from the bag stream


class DSMIL(MILHead):
    """A patch stream and a bag stream that looks from each output's critical patch.

    c_k = W_i h_k and m = argmax c_k for each output; a_k = softmax(<q_k, q_m> / sqrt(Q)) with
    q = W_q h; z = sum of a_k W_v h_k. The scores are (max c_k + W_b z) / 2, where W_b reads the z
    of all outputs. Each stream has half of the loss. `attention` is that of the output with the
    largest score.

    The evidence of a patch is half its score where it is the critical one, plus half of
    a_k W_b W_v h_k. An empty bag gets the mean of both streams' biases.
    """

    def __init__(self, config: MILConfig) -> None:
        super().__init__(config)
        scores = self.link.scores
        self.query = nn.Linear(config.embed, config.hidden)  # W_q
        self.value = nn.Linear(config.embed, config.embed, bias=False)  # W_v
        self.bag = nn.Linear(scores * config.embed, scores)  # W_b; `classify` is W_i

    def aggregate(self, patches: Packed) -> Aggregate:
        found = self._streams(patches)
        scores = (found.best + self.classify.bias + found.bag) / 2
        rows = torch.arange(len(found.attention), device=scores.device)
        shown = found.attention[rows, scores.argmax(1)[patches.bag_of_each]]
        return Aggregate(scores, shown, self._evidence(patches, found))

    def losses(
        self,
        bags: Tensor,
        mask: Tensor,
        truth: Truth,
        criterion: Criterion,
        coords: Tensor | None = None,
    ) -> Tensor:
        found = self._streams(self.patches(bags, mask, coords))
        streams = found.best + self.classify.bias, found.bag
        one, other = (criterion(self.link(at_least_float32(s)), truth) for s in streams)
        return (one + other) / 2

    def _streams(self, patches: Packed) -> _Streams:
        parts = functional.linear(patches.vectors, self.classify.weight)
        queries = self.query(patches.vectors)  # (T, Q)
        pairs = zip(patches.split(queries), patches.split(parts), strict=True)
        scores = torch.cat([_to_critical(*pair) for pair in pairs])  # (T, S)
        attention = patches.softmax(scores)
        values = self.value(patches.vectors)
        vectors = patches.weighted(attention, values)  # (B, S, E)
        bag = self.bag(vectors.flatten(1))
        return _Streams(parts, patches.largest(parts), attention, values, bag)

    def _evidence(self, patches: Packed, found: _Streams) -> Tensor | None:
        if self.training:
            return None
        alone = patches.wins(found.parts, found.best) * found.parts
        weights = self.bag.weight.reshape(self.link.scores, self.link.scores, -1)  # (S, S, E)
        each = torch.einsum("te,ore->tor", found.values, weights)  # (T, S outputs, S rows)
        return (alone + (each * found.attention.unsqueeze(1)).sum(-1)) / 2


def _to_critical(queries: Tensor, parts: Tensor) -> Tensor:
    """(n, Q) and (n, S) of a bag -> (n, S): products with the query of each critical patch."""
    if not len(parts):
        return at_least_float32(queries.new_zeros(parts.shape))
    queries = at_least_float32(queries)  # for squares of long queries are beyond float16
    critical = queries[parts.argmax(0)] / math.sqrt(queries.shape[1])  # (S, Q)
    with torch.autocast(queries.device.type, enabled=False):
        return queries @ critical.mT
