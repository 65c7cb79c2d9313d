"""DINO's loss, and the disentanglement loss that Gen-DINO adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from pathgen.models.interpolation import entangle

Target = Literal["geometric", "arithmetic"]


class DinoLoss(nn.Module):
    """Cross-entropy from each teacher view to every other student view (arXiv 2104.14294).

    Logits are (B, prototypes) tensors, one a view, straight from the heads. `center` is the
    running mean of the teacher's logits, (prototypes,).

    Args:
        target: how `disentangle` blends two teachers. "geometric" mixes raw logits before
            centering, as Gen-SIS does (arXiv 2412.01672, Algorithm 1); "arithmetic" mixes the
            two distributions, for ablation.
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
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], teacher_temperature: float
    ) -> Tensor:
        """Mean over pairs; view i of the student never answers view i of the teacher."""
        answers = [self._answer(logits) for logits in student]
        pairs = [
            _cross_entropy(answer, self.target(logits, teacher_temperature))
            for i, logits in enumerate(teacher)
            for j, answer in enumerate(answers)
            if i != j
        ]
        return torch.stack(pairs).mean()

    def disentangle(
        self,
        student: Tensor,
        primary: Tensor,
        secondary: Tensor,
        alpha: Tensor,
        teacher_temperature: float,
    ) -> Tensor:
        """The student saw the blend; the target is the blend of what the teacher saw apart.

        (B, K) three times and alpha (B,), the share of the primary -> a scalar.
        """
        if self.blend == "geometric":
            target = self.target(entangle(primary, secondary, alpha), teacher_temperature)
        else:
            target = entangle(
                self.target(primary, teacher_temperature),
                self.target(secondary, teacher_temperature),
                alpha,
            )
        return _cross_entropy(self._answer(student), target)

    def target(self, logits: Tensor, temperature: float) -> Tensor:
        """Centered and sharpened teacher distribution, without gradient: (B, K) -> (B, K)."""
        return ((_full(logits.detach()) - self.center) / temperature).softmax(-1)

    @torch.no_grad()
    def start_center(self, teacher: Sequence[Tensor]) -> None:
        """Put the center at the mean of these logits, as if it had always seen such batches."""
        self.center.copy_(torch.cat(list(teacher)).float().mean(0))

    @torch.no_grad()
    def update_center(self, teacher: Sequence[Tensor]) -> None:
        """Once a step, from the ordinary global views alone: blends would count sources twice."""
        batch = _full(torch.cat(list(teacher))).mean(0)
        self.center.mul_(self.center_momentum).add_(batch, alpha=1 - self.center_momentum)

    def _answer(self, logits: Tensor) -> Tensor:
        return (_full(logits) / self.student_temperature).log_softmax(-1)


def entropy(distribution: Tensor) -> Tensor:
    """Mean entropy in nats: (B, K) probabilities -> a scalar. 0 or log K hints at collapse."""
    surprise: Tensor = torch.special.entr(distribution)
    return surprise.sum(-1).mean()


def _cross_entropy(log_answer: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of -sum(target * log answer)."""
    return -(target * log_answer).sum(-1).mean()


def _full(logits: Tensor) -> Tensor:
    """Half precision is too coarse for a softmax over thousands of prototypes."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
