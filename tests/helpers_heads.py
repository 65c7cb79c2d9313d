"""Heads with weights that are not small, and bags to show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pathgen.models.mil import HEADS, MILConfig, MILHead, Target, Truth, build_head
from pathgen.models.mil.targets import outputs_of

DIM, CLASSES = 6, 4
NAMES = tuple(HEADS)
WITH_EVIDENCE = tuple(name for name in NAMES if name not in ("transmil", "transformer"))
SETS = tuple(name for name in NAMES if name != "transmil")  # for which order means nothing

Weights = dict[str, NDArray[np.float64]]


def make(name: str, target: Target = "classes", *, seed: int = 0, **settings: Any) -> MILHead:
    """In eval mode; biases, thresholds and standardization are not zero."""
    given: dict[str, Any] = {
        "embed": 8, "hidden": 5, "dim": DIM, "outputs": outputs_of(target, CLASSES),
        "transmil": {"heads": 2, "landmarks": 4}, "transformer": {"heads": 2},
        "clam": {"k_sample": 3}, "dtfd": {"pseudo_bags": 3},
    }  # fmt: skip
    head = build_head(MILConfig(head=name, target=target, **(given | settings)))  # type: ignore[arg-type]
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in head.parameters():
            fan = max(1, weights[0].numel()) if weights.dim() > 1 else 1
            weights += torch.randn(weights.shape, generator=random) * 1.5 / fan**0.5
    head.standardize(
        torch.linspace(-1, 1, head.config.dim), torch.linspace(0.5, 2, head.config.dim)
    )
    return head.eval()


def bags_of(lengths: Sequence[int], seed: int = 0, pad: float = 0.0, dim: int = DIM) -> Any:
    """Bags (B, n, dim) with `pad` in the padding, and their mask (B, n)."""
    random = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    bags = torch.randn(len(lengths), longest, dim, generator=random) * 2
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return torch.where(mask[..., None], bags, pad), mask


def truth_of(n: int) -> Truth:
    """Something for every target."""
    return Truth(
        labels=torch.arange(n) % CLASSES,
        values=torch.linspace(40, 80, n),
        time=torch.arange(n, 0, -1).float(),
        event=torch.arange(n) % 3 != 2,
    )


def weights_of(head: MILHead) -> Weights:
    return {name: value.detach().double().numpy() for name, value in head.state_dict().items()}


def embedded(w: Weights, bag: torch.Tensor) -> NDArray[np.float64]:
    """(n, dim) -> (n, E) as the first layer has it, in numpy."""
    x = (bag.double().numpy() - w["center"]) / w["scale"]
    return np.maximum(x @ w["embed.weight"].T + w["embed.bias"], 0)


def softmax(x: NDArray[np.float64], axis: int = 0) -> NDArray[np.float64]:
    e = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(e / e.sum(axis, keepdims=True))


def gated(w: Weights, name: str, h: NDArray[np.float64]) -> NDArray[np.float64]:
    """Attention (n, rows) of a gated pool called `name`."""
    content = np.tanh(h @ w[f"{name}.content.weight"].T + w[f"{name}.content.bias"])
    gate = 1 / (1 + np.exp(-(h @ w[f"{name}.gate.weight"].T + w[f"{name}.gate.bias"])))
    return softmax((content * gate) @ w[f"{name}.weight.weight"].T)


def linear(w: Weights, name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(x @ w[f"{name}.weight"].T + w[f"{name}.bias"])
