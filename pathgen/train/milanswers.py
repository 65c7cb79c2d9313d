"""What a slide head says of bags."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pathgen.data.bags import Bags
from pathgen.models.mil import MILHead
from pathgen.models.mil.targets import choices, probabilities
from pathgen.models.precision import Precision, autocast
from pathgen.train.milbatches import Ahead, answering_plan, batches, worth_a_thread


class BagPrediction(NamedTuple):
    """What a head says of N bags."""

    probabilities: NDArray[np.float64]
    """(N, classes); (N, 0) of a target without classes"""
    attention: list[NDArray[np.float32]]
    """(n,) per bag, sums to one"""
    logits: NDArray[np.float64]
    """(N, outputs); of a regression the value, of survival the risk"""
    chosen: NDArray[np.int64]
    """(N,) the class named: the most probable, of ordered classes the median; 0 without classes"""


@torch.no_grad()
def predict(head: MILHead, bags: Bags, *, precision: Precision = "fp32") -> BagPrediction:
    """What a head says of every bag, all of its patches used, on the device where the head is."""
    head.eval()
    attention: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(bags)
    logits = np.zeros((len(bags), head.config.outputs))
    plan = answering_plan(bags.sizes)
    made = batches(bags, plan, places=wants_places(head))
    with Ahead(made, worth_a_thread(bags, plan)) as ahead:
        answer(head, ahead, precision, logits, attention)
    return prediction(head, logits, attention)


def answer(
    head: MILHead,
    made: Ahead,
    precision: Precision,
    logits: NDArray[np.float64],
    attention: list[NDArray[np.float32]] | None,
) -> None:
    """Write each batch's logits, and its attention where that is wanted, in the bags' places."""
    device = head.center.device
    for batch in made:
        _, vectors, mask, coords = batch.to(device)
        with autocast(precision, device):
            output = head(vectors, mask, coords)
        logits[batch.rows] = output.logits.double().cpu().numpy()
        if attention is None:
            continue
        said = output.attention.float().cpu().numpy()
        for row, weights, there in zip(batch.rows, said, batch.mask.sum(1).tolist(), strict=True):
            attention[int(row)] = weights[:there].copy()


def prediction(
    head: MILHead, logits: NDArray[np.float64], attention: list[NDArray[np.float32]]
) -> BagPrediction:
    target = head.config.target
    if target not in ("classes", "ordinal"):
        none = np.zeros(len(logits), np.int64)
        return BagPrediction(np.zeros((len(logits), 0)), attention, logits, none)
    chances = probabilities(target, torch.from_numpy(logits))
    return BagPrediction(chances.numpy(), attention, logits, choices(target, chances).numpy())


def wants_places(head: MILHead) -> bool:
    return head.config.head == "transmil"  # no other head reads coordinates
