"""Cox's proportional hazards on a batch of bags."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def cox_losses(
    risk: Tensor, time: Tensor, event: Tensor, ties: Literal["efron", "breslow"] = "efron"
) -> Tensor:
    """Each bag's share of the negative log partial likelihood, whose sum is that of the batch.

    A bag with an event at time t gives log(sum over the bags still at risk at t of exp(risk)) -
    risk. Of the d events at one time, Breslow takes this sum for each; Efron takes l / d of the
    tied events' own hazards away from the l-th (l = 0 .. d - 1), and each has the mean of the d.
    A bag without an event gives 0, and so does one alone: the risk sets are those of the batch,
    so the loss of small batches is one of small risk sets.

    Args:
        risk: (B,) log hazard ratio.
        time: (B,) to the event or to the last time without one.
        event: (B,) bool, or 0 and 1.
        ties: Efron 1977 or Breslow 1974; the same without ties.

    Returns:
        (B,) of the type of `risk`.
    """
    if not len(risk):
        return risk
    time, event = time.to(risk.device), event.to(risk.device).bool()
    at_risk = time >= time.unsqueeze(1)  # (B, B): in row i, who is left at the time of i
    tied = (time == time.unsqueeze(1)) & event & event.unsqueeze(1)  # (B, B)
    # Each row by its own largest hazard, which is that of a bag at risk: no sum is 0.
    largest = risk.detach().expand_as(at_risk).masked_fill(~at_risk, -torch.inf).amax(1)
    hazard = (risk - largest.unsqueeze(1)).masked_fill(~at_risk, -torch.inf).exp()  # (B, B)
    total = hazard.sum(1)  # (B,)
    if ties == "breslow":
        logs = total.log()
    else:
        count = tied.sum(1).clamp(min=1)  # d
        taken = torch.arange(int(count.max()), device=risk.device)  # l
        shares = taken.to(risk) / count.unsqueeze(1)  # (B, largest d)
        tied_total = (hazard * tied).sum(1, keepdim=True)  # (B, 1)
        real = taken < count.unsqueeze(1)
        left = torch.where(real, total.unsqueeze(1) - shares * tied_total, 1.0)
        logs = left.log().sum(1) / count
    return torch.where(event, logs + largest - risk, 0.0)
