"""What a recipe would cost, without training: steps, parameters, FLOPs, memory.

Networks are built on torch's meta device, so nothing is allocated. FLOPs are counted by
`torch.utils.flop_counter` over real forward passes of those networks (a multiply-add counts as
two, matrix products, convolutions and attention only), and backward is taken as twice forward.
Memory is weights + gradients + AdamW's two moments + averaged copies, plus what autograd keeps
of one forward pass at the recipe's batch size in fp32: an upper bound for mixed precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pathgen.pretraining import PretrainConfig
from pathgen.train.dino import DinoConfig
from pathgen.train.optimize import total_steps


@dataclass(frozen=True)
class StagePlan:
    """The cost of one stage. FLOPs are for the whole stage; bytes are of device memory."""

    stage: str
    steps: int
    batch_size: int
    parameters: int
    flops: float
    memory_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_pretrain(config: PretrainConfig, images: int, stages: Sequence[str]) -> list[StagePlan]:
    """One `StagePlan` for each of `stages` when training on `images` patches."""
    makers: dict[str, Callable[[], StagePlan]] = {
        "dino": lambda: _dino("dino", config.dino, images, blend=False),
        "autoencoder": lambda: _autoencoder(config, images),
        "ldm": lambda: _ldm(config, images),
        "augment": lambda: _augment(config, images),
        "gen-dino": lambda: _dino("gen-dino", config.gen_dino, images, blend=True),
    }
    return [makers[stage]() for stage in stages]


@dataclass(frozen=True)
class _Cost:
    flops: float
    saved_bytes: int


def _forward(call: Callable[[], Tensor]) -> _Cost:
    """FLOPs of one call, and the bytes autograd keeps for its backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    kept = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal kept
        if not isinstance(tensor, nn.Parameter):
            kept += tensor.numel() * tensor.element_size()
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        call()
    return _Cost(float(counter.get_total_flops()), kept)


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _dino(stage: str, config: DinoConfig, images: int, *, blend: bool) -> StagePlan:
    from pathgen.models.dino import DinoHead
    from pathgen.models.encoder import Encoder

    with torch.device("meta"):
        encoder = Encoder(config.encoder)
        head = DinoHead(encoder.dim, config.head)
        global_views = torch.empty(1, 3, config.views.global_size, config.views.global_size)
        local_views = torch.empty(1, 3, config.views.local_size, config.views.local_size)
    large = _forward(lambda: head(encoder(global_views)))
    small = _forward(lambda: head(encoder(local_views)))
    locals_ = config.views.local_crops
    # Gen-DINO adds one student view (the interpolated image) and one teacher view (its secondary).
    student_globals, teacher_globals = (3, 3) if blend else (2, 2)
    student = student_globals * large.flops + locals_ * small.flops
    per_image = 3 * student + teacher_globals * large.flops
    steps = total_steps(config.optim, images)
    weights = _weights(encoder) + _weights(head)
    saved = student_globals * large.saved_bytes + locals_ * small.saved_bytes
    batch = config.optim.batch_size
    # student: weights, gradients, two moments; teacher: weights
    return StagePlan(stage, steps, batch, weights, per_image * batch * steps,
                     weights * 4 * 5 + saved * batch)  # fmt: skip


def _autoencoder(config: PretrainConfig, images: int) -> StagePlan:
    from pathgen.models.autoencoder import Autoencoder

    settings = config.autoencoder
    if settings.model.pretrained:
        return StagePlan("autoencoder", 0, settings.optim.batch_size, 0, 0.0, 0)
    side = settings.model.image_size
    with torch.device("meta"):
        model = Autoencoder(settings.model)
        picture = torch.empty(1, 3, side, side)
    cost = _forward(lambda: model.decode(model.encode(picture)))
    steps, batch = total_steps(settings.optim, images), settings.optim.batch_size
    weights = _weights(model)
    return StagePlan("autoencoder", steps, batch, weights, 3 * cost.flops * batch * steps,
                     weights * 4 * 4 + cost.saved_bytes * batch)  # fmt: skip


def _ldm_cost(config: PretrainConfig) -> tuple[int, _Cost]:
    from pathgen.models.ldm import EmbeddingConditionedLDM

    settings = config.ldm.model
    with torch.device("meta"):
        model = EmbeddingConditionedLDM(settings)
        latents = torch.empty(1, settings.latent_channels, settings.latent_size,
                              settings.latent_size)  # fmt: skip
        embeddings = torch.empty(1, settings.embedding_dim)
        times = torch.zeros(1, dtype=torch.long)
    return _weights(model), _forward(lambda: model.denoise(latents, times, embeddings))


def _ldm(config: PretrainConfig, images: int) -> StagePlan:
    weights, cost = _ldm_cost(config)
    steps, batch = total_steps(config.ldm.optim, images), config.ldm.optim.batch_size
    return StagePlan("ldm", steps, batch, weights, 3 * cost.flops * batch * steps,
                     weights * 4 * 5 + cost.saved_bytes * batch)  # fmt: skip


def _augment(config: PretrainConfig, images: int) -> StagePlan:
    weights, cost = _ldm_cost(config)
    settings = config.augment
    sources = min(images, settings.max_sources or images)
    pictures = sources * (settings.generative + settings.interpolated)
    passes = settings.steps * (1 if settings.guidance == 1.0 else 2)
    batches = -(-pictures // settings.batch_size)
    return StagePlan("augment", batches * settings.steps, settings.batch_size, weights,
                     cost.flops * passes * pictures, weights * 4)  # fmt: skip
