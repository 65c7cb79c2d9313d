"""The networks and losses of DINO and Gen-DINO agree with their papers and with other code."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pathgen.data.loading import steps_per_epoch
from pathgen.errors import ConfigError, RunError
from pathgen.models.dino import DinoHead, DinoHeadConfig, StudentTeacher
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.models.interpolation import entangle, slerp
from pathgen.models.losses import DinoLoss, entropy
from pathgen.runs import RunConfig
from pathgen.train.engine import Engine
from pathgen.train.optimize import (
    OptimConfig,
    Optimizer,
    cosine,
    parameter_groups,
    ramp,
    total_steps,
)

TINY = EncoderConfig(
    image_size=32,
    kwargs={"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    drop_path=0.2,
)
HEAD = DinoHeadConfig(hidden=32, bottleneck=16, prototypes=40)


def logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


# --- the loss ------------------------------------------------------------------------------


def test_loss_and_center_agree_with_lightly() -> None:
    from lightly.loss import DINOLoss

    ours, theirs = DinoLoss(40), DINOLoss(40, student_temp=0.1, center_momentum=0.9)
    for step in range(4):  # the center of one step enters the loss of the next
        student = [logits(5, 40, seed=10 * step + i) for i in range(6)]
        teacher = [logits(5, 40, seed=100 + 10 * step + i) for i in range(2)]
        expected = theirs(teacher, student, teacher_temp=0.07)
        found = ours(student, teacher, 0.07)
        ours.update_center(teacher)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(ours.center, theirs.center.flatten())


def test_loss_agrees_with_two_loops_in_float64() -> None:
    loss = DinoLoss(16).double()
    loss.center.copy_(logits(16, seed=9, dtype=torch.float64))
    student = [logits(3, 16, seed=i, dtype=torch.float64) for i in range(5)]
    teacher = [logits(3, 16, seed=50 + i, dtype=torch.float64) for i in range(2)]

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    terms = []
    for i, t in enumerate(teacher):
        q = softmax((t.numpy() - loss.center.numpy()) / 0.04)
        for j, s in enumerate(student):
            if i != j:
                p = softmax(s.numpy() / 0.1)
                terms.append(np.mean([-(q[b] * np.log(p[b])).sum() for b in range(3)]))
    assert loss(student, teacher, 0.04).item() == pytest.approx(np.mean(terms), rel=1e-12)
    assert len(terms) == 2 * 5 - 2


def test_loss_of_half_precision_logits_is_computed_in_single() -> None:
    loss = DinoLoss(40)
    student = [logits(4, 40, seed=i).bfloat16() for i in range(2)]
    teacher = [logits(4, 40, seed=9 + i).bfloat16() for i in range(2)]
    found = loss(student, teacher, 0.04)
    assert found.dtype == torch.float32
    wide = [[x.float() for x in group] for group in (student, teacher)]
    assert torch.equal(found, loss(wide[0], wide[1], 0.04))


def test_entropy_is_zero_for_certainty_and_log_k_for_none() -> None:
    assert entropy(torch.eye(4)).item() == 0
    assert entropy(torch.full((2, 8), 1 / 8)).item() == pytest.approx(math.log(8))


# --- disentanglement -----------------------------------------------------------------------


def test_at_both_ends_of_alpha_disentangling_is_plain_cross_entropy() -> None:
    loss = DinoLoss(40)
    loss.center.copy_(logits(40, seed=1))
    student, primary, secondary = (logits(3, 40, seed=i) for i in (2, 3, 4))
    for alpha, source in ((1.0, primary), (0.0, secondary)):
        found = loss.disentangle(student, primary, secondary, torch.full((3,), alpha), 0.04)
        target = ((source - loss.center) / 0.04).softmax(-1)
        expected = -(target * F.log_softmax(student / 0.1, -1)).sum(-1).mean()
        assert torch.equal(found, expected)
        # ... and it is what DINO's own loss says of that pair of views.
        nothing = torch.zeros_like(student)
        pair = loss([nothing, student], [source], 0.04)
        torch.testing.assert_close(found, pair)


def test_mixing_logits_before_centering_is_the_normalized_geometric_mean() -> None:
    loss = DinoLoss(40).double()
    loss.center.copy_(logits(40, seed=1, dtype=torch.float64))
    a, b = (logits(5, 40, seed=i, dtype=torch.float64) / 20 for i in (2, 3))
    alpha = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0], dtype=torch.float64)
    found = loss.target(entangle(a, b, alpha), 0.04)
    w = alpha[:, None]
    mean = loss.target(a, 0.04) ** w * loss.target(b, 0.04) ** (1 - w)
    torch.testing.assert_close(found, mean / mean.sum(-1, keepdim=True))


def test_arithmetic_target_is_mixup_and_differs() -> None:
    geometric, arithmetic = DinoLoss(40), DinoLoss(40, target="arithmetic")
    s, a, b = (logits(3, 40, seed=i) for i in range(3))
    alpha = torch.tensor([0.2, 0.5, 0.8])
    mixed = alpha[:, None] * geometric.target(a, 0.04) + (1 - alpha)[:, None] * (
        geometric.target(b, 0.04)
    )
    expected = -(mixed * F.log_softmax(s / 0.1, -1)).sum(-1).mean()
    found = arithmetic.disentangle(s, a, b, alpha, 0.04)
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found, geometric.disentangle(s, a, b, alpha, 0.04))


# --- slerp ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), dim=st.integers(2, 40), alpha=st.floats(0, 1))
def test_slerp_turns_at_constant_speed_on_the_unit_sphere(
    seed: int, dim: int, alpha: float
) -> None:
    a = logits(3, dim, seed=seed, dtype=torch.float64)
    b = logits(3, dim, seed=seed + 1, dtype=torch.float64)
    share = torch.full((3,), alpha, dtype=torch.float64)
    point = slerp(a, b, share)
    torch.testing.assert_close(point.norm(dim=-1), torch.ones(3, dtype=torch.float64))
    # Angles by the chord, which is exact where acos is not.
    unit_a, unit_b = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    whole = 2 * torch.asin(((unit_a - unit_b).norm(dim=-1) / 2).clamp(max=1))
    to_b = 2 * torch.asin(((point - unit_b).norm(dim=-1) / 2).clamp(max=1))
    torch.testing.assert_close(to_b, share * whole, atol=1e-6, rtol=1e-6)


def test_slerp_ends_are_the_sources_and_alpha_is_the_share_of_the_primary() -> None:
    a, b = logits(4, 384, seed=1), logits(4, 384, seed=2)
    assert torch.equal(slerp(a, b, torch.ones(4)), F.normalize(a, dim=-1))
    torch.testing.assert_close(slerp(a, b, torch.zeros(4)), F.normalize(b, dim=-1))
    near = slerp(a, b, torch.full((4,), 0.8))
    assert (F.cosine_similarity(near, a) > F.cosine_similarity(near, b)).all()
    torch.testing.assert_close(
        slerp(a, b, torch.full((4,), 0.3)), slerp(b, a, torch.full((4,), 0.7))
    )


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_slerp_of_equal_and_opposite_embeddings_stays_on_the_sphere(alpha: float) -> None:
    a = torch.stack([torch.eye(6)[0], torch.ones(6), logits(6, seed=3)])
    share = torch.full((3,), alpha)
    unit = F.normalize(a, dim=-1)
    torch.testing.assert_close(slerp(a, 2 * a, share), unit)
    opposite = slerp(a, -3 * a, share)
    torch.testing.assert_close(opposite.norm(dim=-1), torch.ones(3))
    # Half a turn at constant speed.
    expected = torch.full((3,), math.cos(math.pi * (1 - alpha)))
    torch.testing.assert_close((opposite * unit).sum(-1), expected, atol=1e-5, rtol=0)


def test_slerp_and_target_agree_on_which_end_is_which() -> None:
    a, b = logits(2, 40, seed=1), logits(2, 40, seed=2)
    ones = torch.ones(2)
    assert torch.equal(slerp(a, b, ones), F.normalize(a, dim=-1))
    assert torch.equal(entangle(a, b, ones), a)


# --- the head and the pair -----------------------------------------------------------------


def test_head_agrees_with_lightly_given_the_same_weights() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lightly uses torch's older weight_norm
        from lightly.models.modules import DINOProjectionHead

        theirs = DINOProjectionHead(24, 32, 16, 40)
    ours = DinoHead(24, HEAD)
    linear = [m for m in ours.mlp if isinstance(m, nn.Linear)]
    other = [m for m in theirs.layers if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for mine, its in zip(linear, other, strict=True):
            mine.weight.copy_(its.weight)
            mine.bias.copy_(its.bias)
        weight = ours.last_layer.parametrizations.weight
        weight.original0.copy_(theirs.last_layer.weight_g)
        weight.original1.copy_(theirs.last_layer.weight_v)
    features = logits(7, 24)
    torch.testing.assert_close(ours(features), theirs(features))


def test_prototypes_have_unit_length_and_keep_it() -> None:
    head = DinoHead(24, HEAD)
    torch.testing.assert_close(head.last_layer.weight.norm(dim=1), torch.ones(40))
    lengths = head.last_layer.parametrizations.weight.original0
    assert not lengths.requires_grad
    free = DinoHead(24, HEAD.model_copy(update={"norm_last_layer": False}))
    assert free.last_layer.parametrizations.weight.original0.requires_grad


def test_teacher_starts_equal_has_no_drop_path_and_gets_no_gradient() -> None:
    pair = StudentTeacher(TINY, HEAD)
    views = [torch.rand(3, 3, 32, 32), torch.rand(3, 3, 32, 32)]
    first = pair.teacher(views)
    assert all(torch.equal(a, b) for a, b in zip(first, pair.teacher(views), strict=True))
    pair.trained.eval()
    for mine, its in zip(pair.student(views), first, strict=True):
        torch.testing.assert_close(mine, its)
    assert not any(x.requires_grad for x in first)
    assert not any(p.requires_grad for p in pair.encoder().parameters())
    sum(x.sum() for x in pair.student(views)).backward()  # type: ignore[union-attr]
    assert all(p.grad is None for p in pair.encoder().parameters())


def test_views_of_mixed_sizes_come_back_in_order() -> None:
    pair = StudentTeacher(TINY, HEAD).eval()
    views = [torch.rand(2, 3, side, side) for side in (32, 16, 32, 16, 16)]
    together = pair.student(views)
    for view, found in zip(views, together, strict=True):
        torch.testing.assert_close(found, pair.student([view])[0])


def test_teacher_follows_as_an_exponential_mean() -> None:
    pair = StudentTeacher(TINY, HEAD)
    with torch.no_grad():
        for p in pair.trained.parameters():
            p.add_(torch.randn_like(p))
    before = [p.clone() for p in pair._teacher.parameters()]
    pair.follow(0.9)
    student = list(pair.trained.parameters())
    for now, old, s in zip(pair._teacher.parameters(), before, student, strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * s)
    pair.follow(0.0)
    for now, s in zip(pair._teacher.parameters(), student, strict=True):
        torch.testing.assert_close(now, s)


# --- the encoder ---------------------------------------------------------------------------


def test_encoder_is_timm_with_its_normalization_and_an_extra_nothing() -> None:
    encoder = Encoder(TINY).eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = torch.tensor(TINY.mean), torch.tensor(TINY.std)
    plain = (images.permute(0, 2, 3, 1) - mean) / std
    everything = encoder.backbone.forward_features(plain.permute(0, 3, 1, 2))
    torch.testing.assert_close(encoder(images), everything[:, 0])
    torch.testing.assert_close(encoder.tokens(images), everything[:, 1:])
    assert encoder.dim == 24
    assert encoder.patch_size == 8


@pytest.mark.parametrize("name", ["resnet18", "test_vit", "test_convnext"])
def test_encoder_takes_other_timm_models(name: str) -> None:
    encoder = Encoder.from_timm(name, pretrained=False)
    side = encoder.config.image_size
    assert encoder(torch.rand(2, 3, side, side)).shape == (2, encoder.dim)
    assert encoder.tokens(torch.rand(2, 3, side, side)).shape[::2] == (2, encoder.dim)
    patches = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)
    found = encoder.encode(patches)
    assert found.shape == (2, encoder.dim)
    assert found.dtype == np.float32


def test_encode_resizes_like_torchvision_and_leaves_the_mode_alone() -> None:
    from torchvision.transforms.v2 import functional as tv

    encoder = Encoder(TINY).train()
    patches = np.random.default_rng(0).integers(0, 256, (2, 50, 50, 3), dtype=np.uint8)
    found = encoder.encode(patches)
    assert encoder.training
    assert np.array_equal(found, encoder.encode(patches))  # no drop path while encoding
    images = torch.from_numpy(patches).permute(0, 3, 1, 2).float() / 255
    resized = tv.resize(images, [32, 32], tv.InterpolationMode.BICUBIC, antialias=True)
    with torch.no_grad():
        expected = encoder.eval()(resized.clamp(0, 1))
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_weights_decide_the_id() -> None:
    encoder = Encoder(TINY)
    first = encoder.id
    again = Encoder(TINY)
    again.load_state_dict(encoder.state_dict())
    assert again.id == first
    with torch.no_grad():
        again.backbone.cls_token.add_(1)
    assert again.id != first


def test_an_unknown_or_impossible_backbone_says_so() -> None:
    with pytest.raises(ConfigError, match="vit_small_patch16_224") as caught:
        Encoder(EncoderConfig(name="vit_smal_patch16_224"))
    assert caught.value.code == "PG-C04"
    with pytest.raises(ConfigError, match="cannot build"):
        Encoder(EncoderConfig(kwargs={"no_such_setting": 1}))


# --- schedules, groups, clipping -----------------------------------------------------------


def reference_schedule(base: float, final: float, warmup: int, total: int) -> np.ndarray:
    """A linear rise over `warmup` points including both ends, then half a cosine."""
    rise = np.linspace(0.0, base, warmup)
    turn = np.arange(total - warmup) / max(total - warmup, 1)
    return np.concatenate([rise, final + (base - final) * (1 + np.cos(np.pi * turn)) / 2])


@settings(max_examples=50, deadline=None)
@given(
    base=st.floats(1e-6, 1), final=st.floats(0, 1), total=st.integers(1, 300), share=st.floats(0, 1)
)
def test_cosine_is_dinos_schedule(base: float, final: float, total: int, share: float) -> None:
    warmup = int(share * total)
    found = [cosine(base, final, step, total, warmup=warmup) for step in range(total)]
    np.testing.assert_allclose(found, reference_schedule(base, final, warmup, total), rtol=1e-9)


def test_published_recipe_learning_rate() -> None:
    # 1,281,167 images in batches of 512, 100 epochs of which 10 warm up: peak 1e-3.
    optim = OptimConfig(batch_size=512)
    epoch, steps = steps_per_epoch(1_281_167, 512), total_steps(optim, 1_281_167)
    assert (epoch, steps) == (2502, 250_200)
    peak = optim.lr * optim.batch_size / 256
    rates = [cosine(peak, optim.min_lr, s, steps, warmup=10 * epoch) for s in (0, 25_019, 25_020)]
    assert rates == pytest.approx([0.0, 1e-3, 1e-3])
    assert cosine(0.996, 1.0, 0, steps) == pytest.approx(0.996)
    assert cosine(0.04, 0.4, steps // 2, steps) == pytest.approx(0.22)


def test_temperature_ramp_is_linspace_then_constant() -> None:
    expected = [*np.linspace(0.04, 0.07, 30), 0.07, 0.07]
    assert [ramp(0.04, 0.07, e, 30) for e in range(32)] == pytest.approx(expected)
    assert ramp(0.04, 0.07, 0, 0) == 0.07


def test_biases_and_one_dimensional_parameters_are_not_decayed() -> None:
    pair = StudentTeacher(TINY, HEAD)
    decayed, plain = (group["params"] for group in parameter_groups(pair.trained, 0.04))
    names = {id(p): name for name, p in pair.trained.named_parameters()}
    assert all(p.ndim > 1 for p in decayed)
    assert all(p.ndim == 1 or names[id(p)].endswith(".bias") for p in plain)
    assert any("norm" in names[id(p)] for p in plain)
    assert any("pos_embed" in names[id(p)] for p in decayed)
    trained = [p for p in pair.trained.parameters() if p.requires_grad]
    assert len(decayed) + len(plain) == len(trained)


class Scales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))


def gradient_seen(optimizer: Optimizer, loss: Tensor, watched: list[nn.Parameter]) -> list[Tensor]:
    seen: list[Tensor] = []
    optimizer.adamw.register_step_pre_hook(
        lambda *_: seen.extend(p.grad.clone() for p in watched)  # type: ignore[union-attr]
    )
    optimizer.step(loss)
    return seen


def test_each_parameter_is_clipped_on_its_own() -> None:
    model = Scales()
    optimizer = Optimizer(model, Engine(RunConfig(device="cpu")), clip_norm=3.0)
    loss = (100 * model.large).sum() + (0.1 * model.small).sum()
    large, small = gradient_seen(optimizer, loss, [model.large, model.small])
    assert large.norm().item() == pytest.approx(3.0, rel=1e-5)
    assert torch.equal(small, torch.full((4, 4), 0.1))  # a global clip would shrink it


def test_global_clipping_agrees_with_torch() -> None:
    model, other = Scales(), Scales()
    optimizer = Optimizer(model, Engine(RunConfig(device="cpu")), clip_norm=1.0, clip="global")
    loss = (7 * model.large).sum() + (2 * model.small).sum()
    found = gradient_seen(optimizer, loss, [model.large, model.small])
    ((7 * other.large).sum() + (2 * other.small).sum()).backward()
    nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    for mine, its in zip(found, other.parameters(), strict=True):
        torch.testing.assert_close(mine, its.grad)


def test_frozen_parameters_stay_and_others_move() -> None:
    model = Scales()
    optimizer = Optimizer(model, Engine(RunConfig(device="cpu")), weight_decay=0.5)
    optimizer.step((model.large + model.small).sum(), frozen=[model.small])
    assert torch.equal(model.small, torch.ones(4, 4))
    assert not torch.equal(model.large, torch.ones(4, 4))


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    model = Scales()
    optimizer = Optimizer(model, Engine(RunConfig(device="cpu")))
    with pytest.raises(RunError) as caught:
        optimizer.step((model.large * math.inf).sum())
    assert caught.value.code == "PG-T03"
    assert torch.equal(model.large, torch.ones(4, 4))


def test_set_decays_the_first_group_only() -> None:
    pair = StudentTeacher(TINY, HEAD)
    optimizer = Optimizer(pair.trained, Engine(RunConfig(device="cpu")))
    optimizer.set(lr=0.5, weight_decay=0.3)
    assert [g["lr"] for g in optimizer.adamw.param_groups] == [0.5, 0.5]
    assert [g["weight_decay"] for g in optimizer.adamw.param_groups] == [0.3, 0.0]
