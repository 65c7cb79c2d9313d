"""TransMIL: Shao et al. 2021 (arXiv 2106.00908)."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathgen.models.mil.base import Aggregate, MILHead
from pathgen.models.mil.config import MILConfig
from pathgen.models.mil.nystrom import NystromAttention
from pathgen.models.mil.packed import Packed


class PositionEncoding(nn.Module):
    """PPEG: patches on a square, plus depth-wise convolutions of 7, 5 and 3 (algorithm 3)."""

    def __init__(self, embed: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(embed, embed, size, padding=size // 2, groups=embed) for size in (7, 5, 3)
        )

    def forward(self, tokens: Tensor, side: int) -> Tensor:
        """(1 + side^2, E) -> the same; the class token stays as it is."""
        square = tokens[1:].T.reshape(1, -1, side, side)  # (1, E, side, side)
        # Sums of convolutions are one: a third of the time of three.
        kernel, bias = self._joined()
        mixed = functional.conv2d(square, kernel, bias, padding=3, groups=len(kernel))
        return torch.cat([tokens[:1], tokens[1:] + mixed[0].flatten(1).T])

    def _joined(self) -> tuple[Tensor, Tensor]:
        """(E, 1, 7, 7) and (E,)."""
        layers = cast(list[nn.Conv2d], list(self.convolutions))
        kernels = [functional.pad(c.weight, [3 - c.kernel_size[0] // 2] * 4) for c in layers]
        biases = [c.bias for c in layers if c.bias is not None]
        return torch.stack(kernels).sum(0), torch.stack(biases).sum(0)


class TransMIL(MILHead):
    """Class token and patches: Nystrom attention, PPEG, Nystrom attention; logits from the token.

    **The order of the patches matters**: the first N' - N patches follow once more to fill a
    square of N' = ceil(sqrt(N))^2, on which PPEG sees them as neighbors. Given `coords`, patches
    are put in scan order (y, then x), and the order of the bag does not matter; without, they
    should be in it, as feature stores have them. Each bag is worked on at its own length, so
    that padding takes part in nothing.

    `attention` is that of the class token in the second layer as the Nystrom approximation has
    it, the mean over the heads, negative weights as 0, without its share for itself; a patch that
    was repeated has both shares. Patches act on each other, so there is no evidence.
    """

    def __init__(self, config: MILConfig) -> None:
        super().__init__(config)
        settings, embed = config.transmil, config.embed
        self.token = nn.Parameter(torch.empty(1, embed))
        nn.init.trunc_normal_(self.token, std=0.02)
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(embed) for _ in range(3))
        self.attention1, self.attention2 = (
            NystromAttention(embed, settings.heads, settings.landmarks, settings.iterations)
            for _ in range(2)
        )
        self.position = PositionEncoding(embed)

    def aggregate(self, patches: Packed) -> Aggregate:
        vectors, attention = [], []
        places = None if patches.coords is None else patches.split(patches.coords)
        for i, rows in enumerate(patches.split(patches.vectors)):
            if not len(rows):
                vectors.append(rows.sum(0))
                continue
            if places is None:
                vector, seen = self._read(rows)
            else:
                order = scan_order(places[i])
                vector, seen = self._read(rows[order])
                seen = torch.zeros_like(seen).index_copy(0, order, seen)
            vectors.append(vector)
            attention.append(seen)
        found = torch.cat(attention) if attention else patches.vectors.new_zeros(0)
        return Aggregate(self.classify(torch.stack(vectors)), found, None)

    def _read(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A bag (N, E) -> the class token (E,) and its attention (N,)."""
        side = math.isqrt(len(rows) - 1) + 1
        index = torch.arange(side * side, device=rows.device) % len(rows)
        tokens = torch.cat([self.token.to(rows.dtype), rows[index]])  # (1 + N', E)
        tokens = tokens + self.dropout(self.attention1(self.norm1(tokens)))
        tokens = self.position(tokens, side)
        normed = self.norm2(tokens)
        seen = self.attention2.first(normed)[1:]  # (N',)
        token = tokens[0] + self.dropout(self.attention2(normed))[0]
        shares = seen[: len(rows)].clone()
        again = seen[len(rows) :]
        shares[: len(again)] += again
        shares = shares.clamp(min=torch.finfo(shares.dtype).tiny)  # never all 0
        return self.norm(token), shares / shares.sum()


def scan_order(coords: Tensor) -> Tensor:
    """(n, 2) x, y -> (n,) rows from top to bottom, in each row from left to right."""
    order = coords[:, 0].argsort(stable=True)
    return order[coords[order, 1].argsort(stable=True)]
