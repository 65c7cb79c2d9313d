"""From a head's raw scores to the logits of its target."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathgen.models.mil.config import Target
from pathgen.models.mil.targets import Truth


class Link(nn.Module):
    """The logits are the scores: classes."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.scores = outputs

    def forward(self, scores: Tensor) -> Tensor:
        """(B, scores) -> (B, outputs)."""
        return scores

    def evidence(self, parts: Tensor) -> Tensor:
        """What patches add to the scores (..., scores) -> what they add to the logits."""
        return parts

    def expect(self, truth: Truth, weight: Tensor | None = None) -> None:
        """Begin from what the training bags' truth says by itself."""


class Thresholds(Link):
    """One score against K - 1 thresholds that never cross.

    The logit of "above class k" is s - t_k: CORAL's shared weights with a bias a class (Cao,
    Mirjalili & Raschka 2020, arXiv 1901.07884, section 3.3). There the biases are in order at
    the optimum; here t_k = t_0 + the sum of softplus(gap) keeps them so on the way. They begin
    where every class is equally probable at score 0.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.scores = 1
        self.first = nn.Parameter(torch.zeros(1))  # t_0
        self.gaps = nn.Parameter(torch.zeros(outputs - 1))
        self._start(torch.ones(outputs + 1))

    @property
    def thresholds(self) -> Tensor:
        """(K - 1,), rising."""
        return torch.cat([self.first, self.first + functional.softplus(self.gaps).cumsum(0)])

    def forward(self, scores: Tensor) -> Tensor:
        return scores - self.thresholds  # (B, 1) - (K - 1,)

    def evidence(self, parts: Tensor) -> Tensor:
        return parts.expand(*parts.shape[:-1], len(self.gaps) + 1)

    def expect(self, truth: Truth, weight: Tensor | None = None) -> None:
        """Put the thresholds where the classes have their (weighted) shares at score 0."""
        if truth.labels is None:
            raise ValueError("the truth has no labels")
        counts = torch.bincount(truth.labels.cpu(), minlength=len(self.gaps) + 2).float()
        self._start(counts if weight is None else counts * weight.cpu())

    @torch.no_grad()
    def _start(self, counts: Tensor) -> None:
        # One more of each: a class that is rare or absent keeps a finite place.
        shares = (counts + 1).double() / (counts + 1).sum()
        thresholds = shares.cumsum(0)[:-1].logit()
        self.first.copy_(thresholds[:1])
        self.gaps.copy_(thresholds.diff().expm1().log())  # the inverse of softplus


class Affine(Link):
    """A number in the unit of its target: center + spread * score."""

    center: Tensor
    spread: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.register_buffer("center", torch.zeros(1))
        self.register_buffer("spread", torch.ones(1))

    def forward(self, scores: Tensor) -> Tensor:
        return self.center + self.spread * scores

    def evidence(self, parts: Tensor) -> Tensor:
        return self.spread * parts

    def expect(self, truth: Truth, weight: Tensor | None = None) -> None:
        """Score 0 is the mean of the values and 1 is a standard deviation above it."""
        if truth.values is None:
            raise ValueError("the truth has no values")
        spread, center = torch.std_mean(truth.values.double(), correction=0)
        self.center.fill_(float(center))
        self.spread.fill_(float(spread) or 1.0)


class Centered(Link):
    """A log hazard ratio to the mean training bag: score - center.

    Cox's likelihood leaves a constant open. Without a common zero, the risks that heads of
    several folds say could not stand in one ranking.
    """

    center: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.register_buffer("center", torch.zeros(1))

    def forward(self, scores: Tensor) -> Tensor:
        return scores - self.center


LINKS: dict[Target, type[Link]] = {
    "classes": Link,
    "ordinal": Thresholds,
    "regression": Affine,
    "survival": Centered,
}
