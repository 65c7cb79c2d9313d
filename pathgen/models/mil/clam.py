"""CLAM: Lu et al. 2021 (arXiv 2004.09666)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pathgen.models.mil.attention import GatedAttentionScore
from pathgen.models.mil.base import Aggregate, MILHead
from pathgen.models.mil.config import MILConfig
from pathgen.models.mil.packed import Packed, at_least_float32
from pathgen.models.mil.targets import Criterion, Truth


class CLAM(MILHead):
    """Gated attention whose best and worst patches also train an instance classifier a class.

    `clam-sb` has one attention row; `clam-mb` one for each output, of which the output reads its
    own mean, and its `attention` is the row of the largest score. With k = min(k_sample, N), the
    k patches of highest attention are positive and the k of lowest negative for the instance
    classifier of the bag's class; with `subtyping` the k highest of each other class are negative
    for that class, and the sum is divided by the number of classes. The loss is 0.7 of the bag
    plus 0.3 of the instances. A target without classes has the bag's loss alone.

    The evidence of a patch for output c is a_kc w_c h_k.
    """

    def __init__(self, config: MILConfig) -> None:
        super().__init__(config)
        rows = self.link.scores if config.head == "clam-mb" else 1
        self.pool = GatedAttentionScore(config.embed, config.hidden, rows)
        self.instances = None
        if config.target in ("classes", "ordinal"):
            classes = config.outputs + (config.target == "ordinal")
            self.instances = nn.Linear(config.embed, 2 * classes)

    def aggregate(self, patches: Packed) -> Aggregate:
        attention = patches.softmax(self.pool(patches.vectors))  # (T, R)
        scores = self._scores(patches, attention)
        best = scores.argmax(1)[patches.bag_of_each] if attention.shape[1] > 1 else 0
        shown = attention[torch.arange(len(attention), device=attention.device), best]
        return Aggregate(scores, shown, self.evidence_of(attention, patches.vectors))

    def losses(
        self,
        bags: Tensor,
        mask: Tensor,
        truth: Truth,
        criterion: Criterion,
        coords: Tensor | None = None,
    ) -> Tensor:
        patches = self.patches(bags, mask, coords)
        attention = patches.softmax(self.pool(patches.vectors))
        logits = self.link(at_least_float32(self._scores(patches, attention)))
        whole = criterion(logits, truth)
        if self.instances is None or truth.labels is None:
            return whole
        share = self.config.clam.instance_weight
        parts = zip(
            patches.split(patches.vectors),
            patches.split(attention.detach()),
            truth.labels.tolist(),
            strict=True,
        )
        instances = torch.stack([self._instance_loss(*part) for part in parts])
        return (1 - share) * whole + share * instances

    def _scores(self, patches: Packed, attention: Tensor) -> Tensor:
        vectors = patches.weighted(attention, patches.vectors)  # (B, R, E)
        if vectors.shape[1] == 1:
            return self.classify(vectors.squeeze(1))  # type: ignore[no-any-return]
        return torch.einsum("bse,se->bs", vectors, self.classify.weight) + self.classify.bias

    def _instance_loss(self, vectors: Tensor, attention: Tensor, label: int) -> Tensor:
        """(n, E), (n, R) and the bag's class -> ()."""
        if self.instances is None or not len(vectors):
            return at_least_float32(vectors).sum()
        classes = self.instances.out_features // 2
        k = min(self.config.clam.k_sample, len(vectors))
        total = torch.zeros((), device=vectors.device)
        for c in range(classes) if self.config.clam.subtyping else [label]:
            row = attention[:, c if attention.shape[1] == classes else 0]
            chosen, positive = row.topk(k).indices, c == label
            if positive:
                chosen = torch.cat([chosen, row.topk(k, largest=False).indices])
            wanted = torch.arange(len(chosen), device=vectors.device) < (k if positive else 0)
            weight, bias = self.instances.weight[2 * c : 2 * c + 2], self.instances.bias
            logits = functional.linear(vectors[chosen], weight, bias[2 * c : 2 * c + 2])
            total = total + self._measure(at_least_float32(logits), wanted.long()).mean()
        return total / classes if self.config.clam.subtyping else total

    def _measure(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.config.clam.instance_loss == "ce":
            return functional.cross_entropy(logits, labels, reduction="none")
        return smooth_svm(logits, labels)


def smooth_svm(logits: Tensor, labels: Tensor) -> Tensor:
    """Smooth top-1 SVM: log of the sum over j of exp(s_j + [j != y] - s_y).

    Berrada, Zisserman & Kumar 2018 (arXiv 1802.07595) at temperature 1 and margin 1.

    (n, C) and (n,) int64 -> (n,).
    """
    margin = 1 - functional.one_hot(labels, logits.shape[1]).to(logits)
    return (logits + margin).logsumexp(1) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)
