"""What a recipe would cost, without training: steps, parameters, FLOPs, memory.

Networks are built on torch's meta device, so nothing is allocated. FLOPs are counted by
`torch.utils.flop_counter` over real forward passes of those networks (a multiply-add counts as
two, matrix products, convolutions and attention only), and backward is taken as twice forward.
Memory is weights + gradients + AdamW's two moments + averaged copies, plus what autograd keeps
of one forward pass at the recipe's batch size, in fp32 and with whole attention matrices: an upper
bound for mixed precision and fused attention.
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
    """FLOPs of one image forward; bytes kept for each image, and once for a batch."""

    flops: float
    saved_bytes: int
    fixed_bytes: int = 0


def _forward(call: Callable[[int], Tensor], *modules: nn.Module) -> _Cost:
    """What `call(batch size)` costs; the weights of `modules` are not counted as kept."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call(1)
    one, two = (_kept(call, batch, modules) for batch in (1, 2))
    return _Cost(float(counter.get_total_flops()), two - one, 2 * one - two)


def _kept(call: Callable[[int], Tensor], batch: int, modules: Sequence[nn.Module]) -> int:
    """Bytes that autograd keeps until the backward pass."""
    known = {_storage(weight) for module in modules for weight in module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in known:  # a transposed weight is still that weight
            kept[_storage(tensor)] = tensor  # several operations keep the same tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call(batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _images(n: int, side: int, channels: int = 3) -> Tensor:
    return torch.empty(n, channels, side, side, device="meta")


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _dino(stage: str, config: DinoConfig, images: int, *, blend: bool) -> StagePlan:
    from pathgen.models.dino import DinoHead
    from pathgen.models.encoder import Encoder

    with torch.device("meta"):
        encoder = Encoder(config.encoder)
        head = DinoHead(encoder.dim, config.head)
    large, small = (
        _forward(lambda n, side=side: head(encoder(_images(n, side))), encoder, head)  # type: ignore[misc]
        for side in (config.views.global_size, config.views.local_size)
    )
    locals_ = config.views.local_crops
    # Gen-DINO adds one student view (the interpolated image) and one teacher view (its secondary).
    student_globals, teacher_globals = (3, 3) if blend else (2, 2)
    student = student_globals * large.flops + locals_ * small.flops
    per_image = 3 * student + teacher_globals * large.flops
    steps = total_steps(config.optim, images)
    weights = _weights(encoder) + _weights(head)
    saved = student_globals * large.saved_bytes + locals_ * small.saved_bytes
    # Views of one size go through together.
    fixed = large.fixed_bytes + (small.fixed_bytes if locals_ else 0)
    batch = config.optim.batch_size
    # student: weights, gradients, two moments; teacher: weights
    return StagePlan(stage, steps, batch, weights, per_image * batch * steps,
                     weights * 4 * 5 + fixed + saved * batch)  # fmt: skip


def _autoencoder(config: PretrainConfig, images: int) -> StagePlan:
    from pathgen.models.autoencoder import Autoencoder

    settings = config.autoencoder
    if settings.model.pretrained:
        return StagePlan("autoencoder", 0, settings.optim.batch_size, 0, 0.0, 0)
    side = settings.model.image_size
    with torch.device("meta"):
        model = Autoencoder(settings.model)
    cost = _forward(lambda n: model.decode(model.encode(_images(n, side))), model)
    steps, batch = total_steps(settings.optim, images), settings.optim.batch_size
    weights = _weights(model)
    return StagePlan("autoencoder", steps, batch, weights, 3 * cost.flops * batch * steps,
                     weights * 4 * 4 + cost.fixed_bytes + cost.saved_bytes * batch)  # fmt: skip


def _ldm_cost(config: PretrainConfig) -> tuple[int, _Cost]:
    from pathgen.models.ldm import EmbeddingConditionedLDM

    settings = config.ldm.model
    with torch.device("meta"):
        model = EmbeddingConditionedLDM(settings)

    def denoise(n: int) -> Tensor:
        latents = _images(n, settings.latent_size, settings.latent_channels)
        embeddings = torch.empty(n, settings.embedding_dim, device="meta")
        return model.denoise(latents, torch.zeros(n, dtype=torch.long, device="meta"), embeddings)

    return _weights(model), _forward(denoise, model)


def _ldm(config: PretrainConfig, images: int) -> StagePlan:
    weights, cost = _ldm_cost(config)
    steps, batch = total_steps(config.ldm.optim, images), config.ldm.optim.batch_size
    return StagePlan("ldm", steps, batch, weights, 3 * cost.flops * batch * steps,
                     weights * 4 * 5 + cost.fixed_bytes + cost.saved_bytes * batch)  # fmt: skip


def _augment(config: PretrainConfig, images: int) -> StagePlan:
    weights, cost = _ldm_cost(config)
    settings = config.augment
    sources = min(images, settings.max_sources or images)
    pictures = sources * (settings.generative + settings.interpolated)
    passes = settings.steps * (1 if settings.guidance == 1.0 else 2)
    batches = -(-pictures // settings.batch_size)
    return StagePlan("augment", batches * settings.steps, settings.batch_size, weights,
                     cost.flops * passes * pictures, weights * 4)  # fmt: skip
