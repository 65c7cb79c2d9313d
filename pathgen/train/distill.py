"""One batch through student and teacher: what DINO and Gen-DINO minimize.

DINO: arXiv 2104.14294; the blends: Gen-SIS, arXiv 2412.01672, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pathgen.data.views import Views
from pathgen.models.chance import holding
from pathgen.models.dino import StudentTeacher
from pathgen.models.losses import DinoLoss, entropy
from pathgen.parallel import Share

BlendAs = Literal["disentangle", "positive"]


class DinoTerms(NamedTuple):
    """What one batch gave: scalars but for the last; the first is the loss to minimize."""

    total: Tensor
    dino: Tensor
    blend: Tensor | None
    """of the blends alone; 0 where only other parts of the whole batch have some"""
    teacher_entropy: Tensor
    teacher_mean: Tensor
    """(prototypes,): where the center is to move, from the ordinary global views"""


def dino_loss(
    pair: StudentTeacher,
    loss: DinoLoss,
    views: Views,
    temperature: float,
    weight: float,
    *,
    blend_as: BlendAs = "disentangle",
    weights: Tensor | None = None,
) -> DinoTerms:
    """One batch through both networks: the whole method, and nothing about training.

    The teacher sees the ordinary global views and the blend's further sources, never the blend.
    The blend's primary is the first global view of the same sample, real or synthetic; both of
    its global views, where the further sources come with two.
    `loss.center` stays: it moves once a step, to the `teacher_mean` of all passes and processes.
    Means are over these views; a blend's term is scaled so that its mean over equal parts of a
    batch is the mean over all blends.

    Args:
        temperature: the teacher's.
        weight: lambda of the disentanglement; at 0 the blend is not looked at.
        blend_as: "positive" makes the blend one more student view of the primary, among all
            other pairs; `weight` then has no part in it.
        weights: (B,), mean 1 over the batch: how much each sample counts in DINO's own loss.
    """
    teacher = pair.teacher(views.global_crops)
    answers = pair.student([*views.global_crops, *views.local_crops])
    dino = loss(answers, teacher, temperature, weights)
    share = _blended(views) if weight or blend_as == "positive" else 0.0
    total, blend = dino, None
    if share:
        blend = _blend_loss(pair, loss, views, teacher, temperature, blend_as)
        blend = torch.zeros_like(dino) if blend is None else blend
        if blend_as == "positive":
            # Two teacher views, each with all but its own: these pairs, and two a blend.
            pairs, more = 2 * (len(answers) - 1), 2 * share
            total = (pairs * dino + more * blend) / (pairs + more)
        else:
            total = dino + weight * blend
    with torch.no_grad():
        sharpness = torch.stack([entropy(loss.target(t, temperature)) for t in teacher]).mean()
    return DinoTerms(total, dino, blend, sharpness, loss.mean_of(teacher))


def _blend_loss(
    pair: StudentTeacher,
    loss: DinoLoss,
    views: Views,
    teacher: Sequence[Tensor],
    temperature: float,
    blend_as: BlendAs,
) -> Tensor | None:
    """Mean over the blends of these views, scaled to be a part of that over the whole batch."""
    blend = views.blend
    if blend is None:
        return None
    count = len(blend.rows)
    with holding(blend.share or Share(0, count, count)):  # whose stochastic depth is drawn
        (student,) = pair.student([blend.image])
    rows = blend.rows.to(student.device, non_blocking=True)
    primary = [logits[rows] for logits in teacher]
    if blend_as == "positive":
        found = loss.positive(student, primary, temperature)
    else:
        # All in one pass, then one list a source again.
        further = iter(pair.teacher([view for other in blend.others for view in other]))
        others = [[next(further) for _ in other] for other in blend.others]
        sources = [primary[: len(others[0])], *others]
        found = loss.disentangle_all(student, sources, blend.shares, temperature)
    return found * (count / len(teacher[0]) / _blended(views))


def _blended(views: Views) -> float:
    """Share of the whole batch that has a blend."""
    if views.blended is not None:
        return views.blended
    return 0.0 if views.blend is None else len(views.blend.rows) / len(views.global_crops[0])
