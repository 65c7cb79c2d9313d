"""What a recipe would cost, without training: steps, parameters, FLOPs, memory.

Networks are built on torch's meta device, so nothing is allocated. F is the FLOPs of one image
forward through a network, counted by `torch.utils.flop_counter` (a multiply-add counts as two;
matrix products, convolutions and attention only). Backward is taken as 2 F, as 1 F where only the
input's gradient is wanted. For one image

    dino         3 (2 F_global + n F_local) + 2 F_global, heads included
    gen-dino     the same, 3 F_global for the student's view of the blend, and F_global for each
                 teacher view of its other sources; with quality weights 2 F_backbone more
    autoencoder  3 F; a perceptual loss adds 3 F_encoder, a discriminator 9 F of its own, and with
                 both F_encoder more
    ldm          3 F, and F_encoder with alignment, whose projector is left out; and once for each
                 patch its embedding and its latents, all mirror images
    augment      F x steps x (2 with guidance) + F_decoder + F_encoder, without redrawn images

A pretrained autoencoder counts as nothing anywhere: its sizes are in its weights.
Memory is weights + gradients + AdamW's two moments + averaged copies, plus what autograd keeps
of one forward pass at the recipe's batch size / `run.accumulate`, in fp32 and with whole attention
matrices: an upper bound for mixed precision, fused attention and activation checkpointing, which
saves memory for one more F in backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig
from pathgen.models.dino import DinoHead, DinoHeadConfig
from pathgen.models.discriminator import PatchDiscriminator
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.models.ldm import EmbeddingConditionedLDM, LDMConfig
from pathgen.pretraining import PretrainConfig
from pathgen.runs import RunConfig
from pathgen.train.dino import DinoConfig, check_views
from pathgen.train.optimize import total_steps

#: Of the rate that large matrix products reach on a device, what training is taken to reach when
#: hours are asked for: seconds = FLOPs / (SHARE x rate). `benchmarks/training.py` measures both.
SHARE = 0.4


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

    def hours(self, tflops: float) -> float:
        """At `SHARE` of `tflops`, the rate of large matrix products in TFLOP/s."""
        return self.flops / (SHARE * tflops * 1e12) / 3600


def plan_pretrain(config: PretrainConfig, images: int, stages: Sequence[str]) -> list[StagePlan]:
    """One `StagePlan` for each of `stages` when training on `images` patches."""
    makers: dict[str, Callable[[], StagePlan]] = {
        "dino": lambda: _dino("dino", config.dino, images, sources=1),
        "autoencoder": lambda: _autoencoder(config, images),
        "ldm": lambda: _ldm(config, images),
        "augment": lambda: _augment(config, images),
        "gen-dino": lambda: _dino(
            "gen-dino",
            config.gen_dino,
            images,
            sources=config.augment.interpolated_sources if config.augment.interpolated else 1,
        ),
    }
    return [makers[stage]() for stage in stages]


@dataclass(frozen=True)
class _Cost:
    """Of a network: weights; of one image forward: FLOPs, and bytes kept for it and for a batch."""

    weights: int
    flops: float
    saved_bytes: int
    fixed_bytes: int = 0


def _dino(stage: str, config: DinoConfig, images: int, *, sources: int) -> StagePlan:
    """`sources` of a blend; 1 without blends."""
    views = config.views
    check_views(views, _backbone(config.encoder.model_dump_json()))
    large, small = (
        _view_cost(config.encoder.model_dump_json(), config.head.model_dump_json(), side)
        for side in (views.global_size, views.local_size)
    )
    positive = config.blend_as == "positive"
    blends = sources > 1 and views.blend != "off" and (positive or config.disentangle_weight > 0)
    # One student view of the blend; teacher views of its other sources make the target.
    student_globals, teacher_globals = (3, 2) if blends else (2, 2)
    if blends and not positive:
        teacher_globals += (sources - 1) * (2 if views.dis_pairs == "all" else 1)
    student = student_globals * large.flops + views.local_crops * small.flops
    per_image = 3 * student + teacher_globals * large.flops
    if config.quality_weight:  # read off the tokens of both global views, beside the loss
        seen = config.encoder.model_copy(update={"image_size": views.global_size})
        per_image += 2 * _encoder_cost(seen.model_dump_json()).flops
    steps, batch = total_steps(config.optim, images), config.optim.batch_size
    saved = student_globals * large.saved_bytes + views.local_crops * small.saved_bytes
    # Views of one size go through together.
    fixed = large.fixed_bytes + (small.fixed_bytes if views.local_crops else 0)
    # student: weights, gradients, two moments; teacher: weights
    return StagePlan(stage, steps, batch, large.weights, per_image * batch * steps,
                     large.weights * 4 * 5 + fixed + saved * _held(batch, config.run))  # fmt: skip


def _autoencoder(config: PretrainConfig, images: int) -> StagePlan:
    settings, optim = config.autoencoder, config.autoencoder.optim
    if settings.model.pretrained:
        return StagePlan("autoencoder", 0, optim.batch_size, 0, 0.0, 0)
    inward, outward = _autoencoder_costs(settings.model.model_dump_json())
    steps, batch = total_steps(optim, images), optim.batch_size
    judge = 0.0
    if settings.perceptual_weight:
        judge = _encoder_cost(config.dino.encoder.model_dump_json()).flops
    each = 3 * (inward.flops + outward.flops + judge)
    weights, flops = inward.weights, each * batch * steps
    if settings.discriminator_weight:
        critic = _critic_cost(settings.discriminator_width, settings.discriminator_layers,
                              settings.model.image_size)  # fmt: skip
        weights += critic.weights
        # Its adaptive weight takes the gradient of both losses once more, to the last layer.
        flops += (9 * critic.flops + judge) * batch * max(0, steps - settings.discriminator_start)
    saved = inward.saved_bytes + outward.saved_bytes
    fixed = inward.fixed_bytes + outward.fixed_bytes
    return StagePlan("autoencoder", steps, batch, weights, flops,
                     weights * 4 * 4 + fixed + saved * _held(batch, settings.run))  # fmt: skip


def _ldm(config: PretrainConfig, images: int) -> StagePlan:
    settings = config.ldm
    cost = _denoiser_cost(settings.model.model_dump_json())
    steps, batch = total_steps(settings.optim, images), settings.optim.batch_size
    once = seen = _encoder_cost(config.dino.encoder.model_dump_json()).flops
    each = 3 * cost.flops + (seen if settings.align_weight else 0.0)
    if not config.autoencoder.model.pretrained:
        mirrors = 4 if settings.flips else 1
        once += mirrors * _autoencoder_costs(config.autoencoder.model.model_dump_json())[0].flops
    return StagePlan("ldm", steps, batch, cost.weights,
                     each * batch * steps + once * images,
                     cost.weights * 4 * 5 + cost.fixed_bytes
                     + cost.saved_bytes * _held(batch, settings.run))  # fmt: skip


def _augment(config: PretrainConfig, images: int) -> StagePlan:
    settings = config.augment
    cost = _denoiser_cost(config.ldm.model.model_dump_json())
    sources = min(images, settings.max_sources or images)
    pictures = sources * (settings.generative + settings.interpolated)
    each = cost.flops * settings.steps * (1 if settings.guidance == 1.0 else 2)
    each += _encoder_cost(config.dino.encoder.model_dump_json()).flops
    if not config.autoencoder.model.pretrained:
        each += _autoencoder_costs(config.autoencoder.model.model_dump_json())[1].flops
    batches = -(-pictures // settings.batch_size)
    return StagePlan("augment", batches * settings.steps, settings.batch_size, cost.weights,
                     each * pictures, cost.weights * 4)  # fmt: skip


def extraction_flops(encoder: EncoderConfig) -> float:
    """Of one patch through a backbone."""
    return _encoder_cost(encoder.model_dump_json()).flops


def denoising_flops(ldm: LDMConfig) -> float:
    """Of one latent through a denoiser once."""
    return _denoiser_cost(ldm.model_dump_json()).flops


def _held(batch: int, run: RunConfig) -> int:
    """Images whose activations are there at once."""
    return -(-batch // run.accumulate)


# --- networks on the meta device; by their settings as JSON, so that none is counted twice -------


@functools.cache
def _backbone(encoder: str) -> Encoder:
    with torch.device("meta"):
        return Encoder(EncoderConfig.model_validate_json(encoder))


@functools.cache
def _view_cost(encoder: str, head: str, side: int) -> _Cost:
    """A backbone and its head, on a view."""
    backbone = _backbone(encoder)
    with torch.device("meta"):
        projection = DinoHead(backbone.dim, DinoHeadConfig.model_validate_json(head))
    return _forward(lambda n: projection(backbone(_images(n, side))), backbone, projection)


@functools.cache
def _encoder_cost(encoder: str) -> _Cost:
    """A backbone alone, on a whole patch."""
    backbone = _backbone(encoder)
    return _forward(lambda n: backbone(_images(n, backbone.config.image_size)), backbone)


@functools.cache
def _autoencoder_costs(autoencoder: str) -> tuple[_Cost, _Cost]:
    """Encoding and decoding; both with the weights of the whole."""
    config = AutoencoderConfig.model_validate_json(autoencoder)
    with torch.device("meta"):
        model = Autoencoder(config)
    channels, side, _ = model.latent_shape
    return (
        _forward(lambda n: model.encode(_images(n, config.image_size)), model),
        _forward(lambda n: model.decode(_images(n, side, channels)), model),
    )


@functools.cache
def _critic_cost(width: int, layers: int, side: int) -> _Cost:
    with torch.device("meta"):
        critic = PatchDiscriminator(width, layers)
    return _forward(lambda n: critic(_images(n, side)), critic)


@functools.cache
def _denoiser_cost(ldm: str) -> _Cost:
    config = LDMConfig.model_validate_json(ldm)
    with torch.device("meta"):
        model = EmbeddingConditionedLDM(config)

    def denoise(n: int) -> Tensor:
        latents = _images(n, config.latent_size, config.latent_channels)
        embeddings = torch.empty(n, config.embedding_dim, device="meta")
        return model.denoise(latents, torch.zeros(n, dtype=torch.long, device="meta"), embeddings)

    return _forward(denoise, model)


def _forward(call: Callable[[int], Tensor], *modules: nn.Module) -> _Cost:
    """What `call(batch size)` costs; the weights of `modules` are not counted as kept."""
    with FlopCounterMode(display=False) as counter:
        one = _kept(call, 1, modules)
    two = _kept(call, 2, modules)
    weights = sum(p.numel() for module in modules for p in module.parameters())
    return _Cost(weights, float(counter.get_total_flops()), two - one, 2 * one - two)


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
