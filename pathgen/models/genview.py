"""GenView without CLIP: which tokens are foreground, how bold a view may be, how good a pair is.

GenView (arXiv 2403.12003) reads the foreground of an image off CLIP's patch tokens, gives images
with more of it noisier variations, and weights each pair of views by how much its foregrounds
agree beyond its backgrounds. The same arithmetic is here on the patch tokens of any encoder; for
unlabelled data only, our own DINO teacher.

Tokens are (B, N, D): N = rows * columns of a grid over the image, row by row, as `Encoder.tokens`
gives them. Where the paper and the released code differ, the paper is followed and it is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pathgen.errors import ConfigError

#: Share of all tokens that are not foreground: the paper's 40 % foreground. The released code
#: reads its threshold where a histogram reaches 0.65.
QUANTILE = 0.60
#: Foreground shares above which each higher noise level begins.
EDGES = (0.2, 0.4, 0.6, 0.8)
LEVEL_STEP = 100
#: Levels of the schedule by which noise is put on an embedding.
LEVELS = 1000
#: What keeps a division from being by zero, as released.
SMALL = 1e-7


@dataclass(frozen=True)
class Foreground:
    """A direction among patch tokens and how far along it the foreground begins."""

    direction: Tensor
    """(D,) of unit length, float32"""
    threshold: float

    @classmethod
    def fit(
        cls,
        tokens: Sequence[Tensor],
        guide: Sequence[Tensor] | None = None,
        quantile: float = QUANTILE,
    ) -> Self:
        """From the tokens of many images, batches of (B, N, D).

        The direction is the first principal one; its sign means nothing, so it is turned until
        projections are higher where `guide` is: (B, N) for each batch, such as `saturation`, high
        on tissue. Without a guide the tokens at the border of the (square) grid are taken for
        background, as in natural images. Tokens are projected as they are, without their mean, as
        released; the threshold is the `quantile` of all projections.

        Raises:
            ConfigError: fewer than two tokens, all of them alike, or no guide and no square grid.
        """
        moments = _Moments()
        guides: Sequence[Tensor | None] = [None] * len(tokens) if guide is None else guide
        for batch, rises in zip(tokens, guides, strict=True):
            moments.add(batch, rises)
        direction = moments.direction()
        projected = [(batch.float() @ direction.to(batch.device)).flatten() for batch in tokens]
        threshold = np.quantile(torch.cat(projected).cpu().double().numpy(), quantile)
        return cls(direction, float(threshold))

    def projection(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N), float32."""
        return tokens.float() @ self.direction.to(tokens.device)

    def share(self, tokens: Tensor) -> Tensor:
        """Share of foreground tokens of each image, (B, N, D) -> (B,) in [0, 1]."""
        return (self.projection(tokens) > self.threshold).float().mean(1)

    def soft(self, tokens: Tensor) -> Tensor:
        """The projection stretched to [0, 1] in each image, (B, N, D) -> (B, N)."""
        found = self.projection(tokens)
        low, high = found.amin(1, keepdim=True), found.amax(1, keepdim=True)
        return (found - low) / (high - low + SMALL)


def noise_level(share: Tensor) -> Tensor:
    """Foreground share (B,) in [0, 1] -> noise level (B,) int64 of 0, 100, 200, 300, 400.

    GenView's table, each range without its lower and with its upper end: up to 0.2 none, up to
    0.4 100, and so on. The more foreground, the more noise leaves its subject recognizable.
    """
    edges = torch.tensor(EDGES, dtype=share.dtype, device=share.device)
    return torch.bucketize(share, edges) * LEVEL_STEP


def remaining(level: Tensor) -> Tensor:
    """Share of the variance that is still the embedding's, 1 at level 0 and 0 at `LEVELS`.

    The squared-cosine schedule of improved diffusion (arXiv 2102.09672, eq. 17), by which
    unCLIP's image embeddings are noised.
    """
    turn = math.pi / 2 / 1.008
    start = math.cos(0.008 * turn) ** 2
    return (((level.double() / LEVELS + 0.008) * turn).cos().square() / start).clamp(0, 1)


def noised(embeddings: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Embeddings (B, D) at noise levels (B,), of unit length, float32.

    As unCLIP does: scaled until a component has unit variance (a unit vector times sqrt(D)), then
    sqrt(a) x + sqrt(1 - a) noise with a = `remaining(level)`, and back to unit length. Noise is
    standard normal, (B, D). The cosine to the original is close to sqrt(a): 0.99, 0.94, 0.88 and
    0.80 at levels 100 to 400. Level 0 gives the unit embedding itself.
    """
    left = remaining(level).to(embeddings.device).float()[:, None]
    scaled = F.normalize(embeddings.float(), dim=1) * math.sqrt(embeddings.shape[1])
    mixed = left.sqrt() * scaled + (1 - left).sqrt() * noise.to(scaled)
    return F.normalize(mixed, dim=1)


def pair_quality(first: Tensor, second: Tensor, foreground: Foreground) -> Tensor:
    """q = s_f - s_b of each pair of views, tokens (B, N, D) twice -> (B,) in [-2, 2].

    Cosine of the two foregrounds minus that of the two backgrounds, each pooled by the soft map
    of its own view: high where the subject is the same and its surroundings are not. 0 for equal
    views. Without gradient.
    """
    with torch.no_grad():
        (front, back), (other_front, other_back) = (
            _pooled(tokens.float(), foreground.soft(tokens)) for tokens in (first, second)
        )
        alike = F.cosine_similarity(front, other_front, dim=1)
        return alike - F.cosine_similarity(back, other_back, dim=1)


def quality_weights(quality: Tensor, gamma: float = 1.0) -> Tensor:
    """Loss weights B softmax(gamma q) of a batch's pairs, (B,) -> (B,), mean 1, no gradient.

    Give the qualities of the *global* batch: with several processes gather them first and take
    your own rows of what comes back. Each process's share alone, as in the released code, makes
    the weights depend on how many processes there are.
    """
    return len(quality) * torch.softmax(gamma * quality.detach().float(), 0)


def saturation(images: Tensor, patch: int) -> Tensor:
    """Mean saturation (of HSV) under each token, (B, 3, H, W) in [0, 1] -> (B, N).

    Stain is colored, glass and fat are not: what turns a direction towards the tissue.
    """
    high, low = images.float().amax(1), images.float().amin(1)
    found = (high - low) / high.clamp_min(SMALL)
    return F.avg_pool2d(found[:, None], patch).flatten(1)


def _pooled(tokens: Tensor, soft: Tensor) -> tuple[Tensor, Tensor]:
    """Mean tokens (B, D) of the foreground and of the background."""
    means = []
    for weights in (soft, 1 - soft):
        shares = weights / (weights.sum(1, keepdim=True) + SMALL)
        means.append((shares.unsqueeze(1) @ tokens).squeeze(1))  # (B, 1, N) (B, N, D) -> (B, D)
    return means[0], means[1]


class _Moments:
    """Sums in float64 from which the principal direction and its sign follow."""

    def __init__(self) -> None:
        self.count = 0
        self.total: NDArray[np.float64] | float = 0.0
        self.squares: NDArray[np.float64] | float = 0.0
        self.guide = 0.0
        self.guided: NDArray[np.float64] | float = 0.0

    def add(self, tokens: Tensor, guide: Tensor | None) -> None:
        if guide is None:
            guide = inside(tokens.shape[1]).expand(len(tokens), -1)
        flat = tokens.flatten(0, 1).double().cpu().numpy()  # (B, N, D) -> (B N, D)
        weights = guide.flatten().double().cpu().numpy()
        self.count += len(flat)
        self.total = self.total + flat.sum(0)
        self.squares = self.squares + flat.T @ flat
        self.guide += float(weights.sum())
        self.guided = self.guided + weights @ flat

    def direction(self) -> Tensor:
        """(D,) of unit length, along which the guide rises."""
        if self.count < 2:
            raise ConfigError("too few tokens to find a foreground in", where="tokens")
        mean = np.asarray(self.total) / self.count
        covariance = np.asarray(self.squares) / self.count - np.outer(mean, mean)
        values, vectors = np.linalg.eigh(covariance)
        if values[-1] <= 1e-12 * max(1.0, float(mean @ mean)):
            raise ConfigError("all tokens are alike: no foreground in them", where="tokens")
        first = vectors[:, -1]
        rise = (np.asarray(self.guided) / self.count - self.guide / self.count * mean) @ first
        turned = -first if rise < 0 else first
        return torch.from_numpy(turned.astype(np.float32))


def inside(count: int) -> Tensor:
    """(N,) 1 inside a square grid of tokens and 0 at its border."""
    side = math.isqrt(count)
    if side * side != count or side < 3:
        raise ConfigError(
            "the border of the tokens is not known", where="tokens",
            why=f"{count} tokens are no square grid with an inside", hint="give a guide",
        )  # fmt: skip
    grid = torch.zeros(side, side)
    grid[1:-1, 1:-1] = 1
    return grid.flatten()
