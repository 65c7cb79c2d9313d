"""The patches of a batch of bags, without the padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """The T true patches of B bags padded to n, bag after bag.

    What the padding holds is never read, so that not even nan there matters. When nothing is
    padded no copy is made.
    """

    vectors: Tensor
    """(T, E)"""
    stored: Tensor
    """(T, dim), as given"""
    mask: Tensor
    """(B, n) bool, true where there is a patch"""
    lengths: Sequence[int]
    """(B,) patches of each bag, T together"""
    coords: Tensor | None = None
    """(T, 2)"""

    @classmethod
    def of(cls, bags: Tensor, mask: Tensor, coords: Tensor | None = None) -> Packed:
        """(B, n, dim), (B, n) bool and (B, n, 2) -> what the mask says is there."""
        lengths = [int(length) for length in mask.sum(1).tolist()]
        whole = sum(lengths) == mask.numel()
        stored = bags.flatten(0, 1) if whole else bags[mask]  # (T, dim)
        if coords is not None:
            coords = coords.flatten(0, 1) if whole else coords[mask]
        return cls(stored, stored, mask, lengths, coords)

    @classmethod
    def of_lengths(cls, vectors: Tensor, lengths: Sequence[int]) -> Packed:
        """Rows (T, E) that stand bag after bag, as many as `lengths` says."""
        sizes = torch.tensor(lengths, dtype=torch.int64, device=vectors.device)
        longest = max(lengths, default=0)
        mask = torch.arange(longest, device=vectors.device) < sizes.unsqueeze(1)
        return cls(vectors, vectors, mask, lengths)

    @property
    def whole(self) -> bool:
        """Whether nothing is padded."""
        return len(self.vectors) == self.mask.numel()

    def of_vectors(self, vectors: Tensor) -> Packed:
        """The same patches with other vectors (T, E)."""
        return replace(self, vectors=vectors)

    def split(self, values: Tensor) -> Sequence[Tensor]:
        """(T, ...) -> a view of each bag's rows."""
        return torch.split(values, list(self.lengths))

    def spread(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """(T, ...) -> (B, n, ...), `fill` in the padding."""
        if self.whole:
            return values.reshape(*self.mask.shape, *values.shape[1:])
        out = values.new_full((*self.mask.shape, *values.shape[1:]), fill)
        return out.index_put((self.mask,), values)

    def softmax(self, scores: Tensor) -> Tensor:
        """(T, C) -> (T, C), which sum to one over each bag's patches; at least float32."""
        scores = at_least_float32(scores)
        # The least finite number of the type, not -inf: the row of an empty bag is not nan.
        shares = self.spread(scores, torch.finfo(scores.dtype).min).softmax(1)
        return shares.flatten(0, 1) if self.whole else shares[self.mask]

    def weighted(self, weights: Tensor, values: Tensor) -> Tensor:
        """Weights (T, C) and values (T, E) -> (B, C, E): each bag's weighted sums."""
        if values.dtype == torch.float16:  # in which 1 / N of a large bag is hardly a number
            values = values.float()
        weights = weights.to(values.dtype)
        with torch.autocast(values.device.type, enabled=False):
            if self.whole:
                return torch.bmm(self.spread(weights).mT, self.spread(values))
            parts = zip(self.split(weights), self.split(values), strict=True)
            return torch.stack([part.mT @ rows for part, rows in parts])

    def largest(self, values: Tensor) -> Tensor:
        """(T, C) -> (B, C): each bag's largest of each column, 0 for an empty bag."""
        if self.whole and self.mask.shape[1]:
            return self.spread(values).amax(1)
        return torch.stack([v.amax(0) if len(v) else v.sum(0) for v in self.split(values)])

    @torch.no_grad()
    def wins(self, values: Tensor, largest: Tensor) -> Tensor:
        """(T, C) and (B, C) -> (T, C): one for who has its bag's largest, shared if they tie."""
        bag = self.bag_of_each
        wins = (values == largest[bag]).to(at_least_float32(values).dtype)
        count = torch.zeros_like(largest, dtype=wins.dtype).index_add(0, bag, wins)  # (B, C)
        return wins / count[bag]

    @property
    def bag_of_each(self) -> Tensor:
        """(T,) int64."""
        lengths = torch.tensor(self.lengths, dtype=torch.int64, device=self.mask.device)
        bags = torch.arange(len(lengths), device=self.mask.device)
        return bags.repeat_interleave(lengths, output_size=len(self.vectors))

    def even(self) -> Tensor:
        """(T,): one over the size of the bag that a patch is in."""
        sizes = self.mask.sum(1).clamp(min=1).to(at_least_float32(self.vectors).dtype)
        return (1 / sizes)[self.bag_of_each]


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision made single; the rest as it is."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
