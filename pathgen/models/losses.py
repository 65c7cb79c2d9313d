"""DINO's loss, and the disentanglement loss that Gen-DINO adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import product
from typing import Literal

import torch
from torch import Tensor, nn

from pathgen.models.interpolation import weighted_sum

Target = Literal["geometric", "arithmetic"]


class DinoLoss(nn.Module):
    """Cross-entropy from each teacher view to every other student view (arXiv 2104.14294).

    Logits are (B, prototypes) tensors, one a view, straight from the heads. `center` is the
    running mean of the teacher's logits, (prototypes,).

    Args:
        target: how blended sources make one target. "geometric" mixes raw logits before
            centering, as Gen-SIS does (arXiv 2412.01672, Algorithm 1); "arithmetic" mixes the
            distributions, for ablation.
    """

    center: Tensor

    def __init__(
        self,
        prototypes: int,
        *,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
        target: Target = "geometric",
    ) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.blend: Target = target
        self.register_buffer("center", torch.zeros(prototypes))

    def forward(
        self,
        student: Sequence[Tensor],
        teacher: Sequence[Tensor],
        teacher_temperature: float,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Mean over pairs; view i of the student never answers view i of the teacher.

        `weights` (B,), of mean 1 over the batch, count some samples more (GenView, arXiv
        2403.12003); None counts all alike.
        """
        answers = [self._answer(logits) for logits in student]
        # Every view's answer is summed once: a target meets all but its own in one product.
        everyone = reduce(torch.add, answers)
        count, total = 0, torch.zeros((), device=everyone.device)
        for i, logits in enumerate(teacher):
            target = self.target(logits, teacher_temperature)
            own = i < len(answers)
            others = everyone - answers[i] if own else everyone
            total = total + _cross_entropy(others, target, weights)
            count += len(answers) - own
        return total / count

    def disentangle(
        self,
        student: Tensor,
        primary: Tensor,
        secondary: Tensor,
        alpha: Tensor,
        teacher_temperature: float,
    ) -> Tensor:
        """The student saw the blend; the target is the blend of what the teacher saw apart.

        (B, K) three times and alpha (B,), the share of the primary -> a scalar. Algorithm 1.
        """
        shares = torch.stack([alpha, 1 - alpha], 1)
        return self.disentangle_all(student, [[primary], [secondary]], shares, teacher_temperature)

    def disentangle_all(
        self,
        student: Tensor,
        sources: Sequence[Sequence[Tensor]],
        shares: Tensor,
        teacher_temperature: float,
    ) -> Tensor:
        """The same for S sources with several teacher views each, averaged over all choices.

        Args:
            sources: logits (B, K) of each view of each source, the primary first.
            shares: (B, S), sums to 1.
        """
        targets = [
            self.mixed_target(views, shares, teacher_temperature) for views in product(*sources)
        ]
        return _cross_entropy(self._answer(student), torch.stack(targets).mean(0))

    def positive(
        self, student: Tensor, teacher: Sequence[Tensor], teacher_temperature: float
    ) -> Tensor:
        """One more student view (B, K) that answers every one of the teacher's, for ablation."""
        targets = [self.target(logits, teacher_temperature) for logits in teacher]
        return _cross_entropy(self._answer(student), torch.stack(targets).mean(0))

    def target(self, logits: Tensor, temperature: float) -> Tensor:
        """Centered and sharpened teacher distribution, without gradient: (B, K) -> (B, K)."""
        return ((_full(logits.detach()) - self.center) / temperature).softmax(-1)

    def mixed_target(self, logits: Sequence[Tensor], shares: Tensor, temperature: float) -> Tensor:
        """Target of a blend: S of (B, K) and (B, S) -> (B, K)."""
        if self.blend == "geometric":
            mixed = weighted_sum([_full(part) for part in logits], shares)
            return self.target(mixed, temperature)
        return weighted_sum([self.target(part, temperature) for part in logits], shares)

    @torch.no_grad()
    def start_center(self, teacher: Sequence[Tensor]) -> None:
        """Put the center at the mean of these logits, as if it had always seen such batches."""
        self.center.copy_(self.mean_of(teacher))

    @torch.no_grad()
    def mean_of(self, teacher: Sequence[Tensor]) -> Tensor:
        """Mean of the teacher's logits over views and samples, (prototypes,)."""
        return torch.stack([_full(logits).mean(0) for logits in teacher]).mean(0)

    @torch.no_grad()
    def move_center(self, mean: Tensor) -> None:
        """Once a step, to the mean of the ordinary global views alone, over the whole batch:
        blends would count their sources twice."""
        self.center.mul_(self.center_momentum).add_(mean, alpha=1 - self.center_momentum)

    def update_center(self, teacher: Sequence[Tensor]) -> None:
        """`move_center` to where these logits are."""
        self.move_center(self.mean_of(teacher))

    def _answer(self, logits: Tensor) -> Tensor:
        return (_full(logits) / self.student_temperature).log_softmax(-1)


def entropy(distribution: Tensor) -> Tensor:
    """Mean entropy in nats: (B, K) probabilities -> a scalar. 0 or log K hints at collapse."""
    surprise: Tensor = torch.special.entr(distribution)
    return surprise.sum(-1).mean()


def _cross_entropy(log_answer: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over the batch of -sum(target * log answer)."""
    each = -(target * log_answer).sum(-1)
    return (each if weights is None else weights * each).mean()


def _full(logits: Tensor) -> Tensor:
    """Half precision is too coarse for a softmax over thousands of prototypes."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
