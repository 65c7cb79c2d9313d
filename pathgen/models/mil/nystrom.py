"""Nystrom attention: Xiong et al. 2021 (arXiv 2102.03902)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathgen.models.mil.packed import at_least_float32

#: Tokens that the convolution over the values looks at, as in the paper.
KERNEL = 33


class NystromAttention(nn.Module):
    """softmax(Q K'^T) pinv(softmax(Q' K'^T)) softmax(Q' K^T) V plus a convolution of V.

    Q' and K' are the means of `landmarks` segments of as equal length as can be, so that nothing
    is padded. The outer factors are never held: each product is one memory-efficient attention.
    With no more tokens than landmarks the attention is exact.
    """

    def __init__(self, embed: int, heads: int, landmarks: int, iterations: int) -> None:
        super().__init__()
        self.heads, self.landmarks, self.iterations = heads, landmarks, iterations
        self.query_key_value = nn.Linear(embed, 3 * embed, bias=False)
        self.project = nn.Linear(embed, embed)
        self.local = nn.Conv2d(
            heads, heads, (KERNEL, 1), padding=(KERNEL // 2, 0), groups=heads, bias=False
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, E) -> (n, E)."""
        q, k, v = self._split(tokens)
        attend = functional.scaled_dot_product_attention
        if len(tokens) <= self.landmarks:
            out = attend(q[None], k[None], v[None])[0]
        else:
            few_q, few_k = segment_means(q, self.landmarks), segment_means(k, self.landmarks)
            far = attend(few_q[None], k[None], v[None])[0]  # (heads, m, d)
            near = self._inner(few_q, few_k, far).to(v.dtype)
            out = attend(q[None], few_k[None], near[None])[0]
        out = out + self.local(v[None])[0]
        return self.project(out.transpose(0, 1).flatten(1))  # type: ignore[no-any-return]

    @torch.no_grad()
    def first(self, tokens: Tensor) -> Tensor:
        """Weights (n,) of the first token for all, the mean over the heads: (n, E) -> (n,).

        The approximated row of the attention matrix; what the approximation makes negative is 0.
        """
        q, k, _ = self._split(tokens)
        q, k = at_least_float32(q), at_least_float32(k)
        with torch.autocast(tokens.device.type, enabled=False):
            scale = q.shape[-1] ** -0.5
            if len(tokens) <= self.landmarks:
                seen: Tensor = (q[:, :1] @ k.mT * scale).softmax(-1).mean((0, 1))
                return seen
            few_q, few_k = segment_means(q, self.landmarks), segment_means(k, self.landmarks)
            row = (q[:, :1] @ few_k.mT * scale).softmax(-1)  # (heads, 1, m)
            row = row @ pseudo_inverse((few_q @ few_k.mT * scale).softmax(-1), self.iterations)
            total = k.new_zeros(len(tokens))
            for one, query, key in zip(row, few_q, k, strict=True):  # (m, n) of one head at a time
                total += (one @ (query @ key.mT * scale).softmax(-1))[0].clamp(min=0)
        return total / self.heads

    def _split(self, tokens: Tensor) -> Tensor:
        """(n, E) -> (3, heads, n, d)."""
        joined = self.query_key_value(tokens)
        return joined.reshape(len(tokens), 3, self.heads, -1).permute(1, 2, 0, 3)  # type: ignore[no-any-return]

    def _inner(self, few_q: Tensor, few_k: Tensor, far: Tensor) -> Tensor:
        """The small factor's pseudo-inverse times (heads, m, d), not in half precision."""
        few_q, few_k, far = (at_least_float32(part) for part in (few_q, few_k, far))
        with torch.autocast(far.device.type, enabled=False):
            inner = (few_q @ few_k.mT * few_q.shape[-1] ** -0.5).softmax(-1)  # (heads, m, m)
            return pseudo_inverse(inner, self.iterations) @ far


def segment_means(values: Tensor, segments: int) -> Tensor:
    """(heads, n, d) -> (heads, segments, d), n >= segments; the first n % segments are longer."""
    size, more = divmod(values.shape[1], segments)
    longer, rest = torch.split(values, [more * (size + 1), (segments - more) * size], 1)
    heads, _, width = values.shape
    means = [
        longer.reshape(heads, more, size + 1, width).mean(2),
        rest.reshape(heads, segments - more, size, width).mean(2),
    ]
    return torch.cat(means, 1)


def pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """Moore-Penrose inverse of (..., m, m) by the iteration of the paper's equation 11.

    It begins with A^T / (|A|_1 |A|_inf) of each matrix by itself.
    """
    size = matrix.abs()
    norms = size.sum(-2).amax(-1) * size.sum(-1).amax(-1)  # (...)
    inverse = matrix.mT / norms[..., None, None]
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    for _ in range(iterations):
        product = matrix @ inverse
        inner = 15 * identity - product @ (7 * identity - product)
        inverse = inverse @ (13 * identity - product @ inner) / 4
    return inverse
