"""What every head is: bag and mask to logits and attention."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathgen.models.mil.config import MILConfig
from pathgen.models.mil.links import LINKS
from pathgen.models.mil.packed import Packed, at_least_float32
from pathgen.models.mil.targets import Criterion, Truth


class BagOutput(NamedTuple):
    """What a head says of B bags padded to n patches; float32, or float64 from a double head."""

    logits: Tensor
    """(B, outputs); an ordinal head's fall with the class, see `targets.probabilities`"""
    attention: Tensor
    """(B, n), not negative, sums to one over the true entries of the mask, 0 elsewhere; all 0
    for an empty bag"""
    evidence: Tensor | None
    """(B, n, outputs), what each patch adds to each logit: their sum, and the logits of an empty
    bag, are the logits. None in training mode, and from heads whose patches act on each other"""


class Aggregate(NamedTuple):
    """What a head makes of T packed patches of B bags, before the target's link."""

    scores: Tensor  # (B, S), S = 1 for ordinal, else outputs
    attention: Tensor  # (T,)
    evidence: Tensor | None  # (T, S)


class MILHead(nn.Module):
    """Standardize, embed, aggregate, answer. What the padding holds never matters.

    Neither does the order of a bag, but for `TransMIL`. `center` and `scale` (dim,) belong to
    the head, so that it takes features as they are stored. A bag without patches has attention 0
    everywhere and is classified from a zero vector, that is by the biases alone.
    """

    #: The name in a model folder: which head it is says the config.
    stored_as: ClassVar[str] = "MILHead"

    center: Tensor
    scale: Tensor

    def __init__(self, config: MILConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("center", torch.zeros(config.dim))
        self.register_buffer("scale", torch.ones(config.dim))
        self.embed = nn.Linear(config.dim, config.embed)
        self.dropout = nn.Dropout(config.dropout)
        self.link = LINKS[config.target](config.outputs)
        self.classify = nn.Linear(config.embed, self.link.scores)

    @classmethod
    def of_config(cls, config: MILConfig) -> MILHead:
        """The head that `config` names."""
        from pathgen.models.mil.registry import build_head

        return build_head(config)

    def forward(self, bags: Tensor, mask: Tensor, coords: Tensor | None = None) -> BagOutput:
        """What the head says of a batch.

        Args:
            bags: (B, n, dim) padded features, any float type.
            mask: (B, n) bool, true where there is a patch.
            coords: (B, n, 2) level-0 pixels x, y. `TransMIL` reads them, no other head does.
        """
        return self.answer(self.patches(bags, mask, coords))

    def losses(
        self,
        bags: Tensor,
        mask: Tensor,
        truth: Truth,
        criterion: Criterion,
        coords: Tensor | None = None,
    ) -> Tensor:
        """(B,) training losses: the criterion on the logits, where a head does not add its own."""
        return criterion(self.answer(self.patches(bags, mask, coords)).logits, truth)

    def standardize(self, center: Tensor, scale: Tensor) -> None:
        """Set mean and spread (dim,) of the training features."""
        self.center.copy_(center)
        self.scale.copy_(scale)

    def expect(self, truth: Truth, weight: Tensor | None = None) -> None:
        """Begin from the training bags' truth, before the first step.

        Regression needs this (mean and deviation of the values); ordinal puts its thresholds at
        the (weighted) shares of the classes; other targets begin at zero whatever is given.
        """
        self.link.expect(truth, weight)

    def patches(self, bags: Tensor, mask: Tensor, coords: Tensor | None = None) -> Packed:
        """Pack, standardize, embed: relu(W (x - center) / scale + b), with dropout."""
        packed = Packed.of(bags, mask, coords)
        per = 1 / self.scale
        # One pass over the features; in float32 whatever autocast says, for means can be large.
        x = torch.addcmul(-self.center * per, packed.stored.to(per), per)
        embedded = functional.relu(self.embed(x), inplace=True)  # (T, dim) -> (T, E)
        return packed.of_vectors(self.dropout(embedded))

    def answer(self, patches: Packed) -> BagOutput:
        """The batch's answer from its embedded patches."""
        scores, attention, evidence = self.aggregate(patches)
        if evidence is not None:
            evidence = patches.spread(self.link.evidence(at_least_float32(evidence)))
        logits = self.link(at_least_float32(scores))
        return BagOutput(logits, patches.spread(at_least_float32(attention)), evidence)

    @abstractmethod
    def aggregate(self, patches: Packed) -> Aggregate:
        """The scores of each bag, and which patches made them."""
        raise NotImplementedError

    def evidence_of(self, weights: Tensor, vectors: Tensor) -> Tensor | None:
        """weights (T, 1 or S) * W vectors (T, E) -> (T, S); None in training mode."""
        if self.training:
            return None
        return weights * functional.linear(vectors, self.classify.weight)
