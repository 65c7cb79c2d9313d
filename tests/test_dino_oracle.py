"""DINO in numbers: head, loss, center, schedules, groups and clipping as in facebookresearch/dino.

Oracles: formulas of the paper and its code's conventions written out in float64 numpy on fixed
tensors, and lightly's modules given the same weights.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_dino import Textures, random_loader, random_views, reference_schedule, tiny
from torch import Tensor, nn

from pathgen.checkpoints import read_checkpoint
from pathgen.models.dino import DinoHead, DinoHeadConfig, StudentTeacher
from pathgen.models.encoder import EncoderConfig
from pathgen.models.losses import DinoLoss, entropy
from pathgen.runs import Run
from pathgen.train import dino as module
from pathgen.train.dino import train_dino
from pathgen.train.optimize import OptimConfig

TINY = EncoderConfig(
    image_size=32,
    kwargs={"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    drop_path=0.2,
)
HEAD = DinoHeadConfig(hidden=32, bottleneck=16, prototypes=40)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 3


# --- the loss -----------------------------------------------------------------------------


def test_loss_gradient_and_center_agree_with_lightly() -> None:
    from lightly.loss import DINOLoss

    # Theirs keeps the center as (1, 1, K) and moves it in `forward`; ours when it is told to.
    ours, theirs = DinoLoss(40), DINOLoss(40, student_temp=0.1, center_momentum=0.9)
    for step in range(4):  # the center of one step enters the loss of the next
        student = [logits(5, 40, seed=10 * step + i).requires_grad_() for i in range(6)]
        copies = [x.detach().clone().requires_grad_() for x in student]
        teacher = [logits(5, 40, seed=100 + 10 * step + i) for i in range(2)]
        expected = theirs(teacher, copies, teacher_temp=0.07)
        found = ours(student, teacher, 0.07)
        ours.update_center(teacher)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(ours.center, theirs.center.flatten())
        found.backward()
        expected.backward()
        for mine, its in zip(student, copies, strict=True):
            torch.testing.assert_close(mine.grad, its.grad)


def test_loss_agrees_with_two_loops_in_float64() -> None:
    loss = DinoLoss(16).double()
    loss.center.copy_(logits(16, seed=9, dtype=torch.float64))
    student = [logits(3, 16, seed=i, dtype=torch.float64) for i in range(5)]
    teacher = [logits(3, 16, seed=50 + i, dtype=torch.float64) for i in range(2)]

    terms = []
    for i, t in enumerate(teacher):
        q = softmax((t.numpy() - loss.center.numpy()) / 0.04)
        for j, s in enumerate(student):
            if i != j:
                p = softmax(s.numpy() / 0.1)
                terms.append(np.mean([-(q[b] * np.log(p[b])).sum() for b in range(3)]))
    assert loss(student, teacher, 0.04).item() == pytest.approx(np.mean(terms), rel=1e-12)
    assert len(terms) == 2 * 5 - 2


def test_center_is_the_running_mean_of_both_global_views_in_float64() -> None:
    loss = DinoLoss(16, center_momentum=0.9).double()
    center = np.zeros(16)
    for step in range(5):
        teacher = [logits(3, 16, seed=2 * step + i, dtype=torch.float64) for i in range(2)]
        loss.update_center(teacher)
        batch = np.concatenate([t.numpy() for t in teacher]).sum(0) / 6
        center = center * 0.9 + batch * 0.1
    np.testing.assert_allclose(loss.center.numpy(), center, rtol=1e-12)


def test_weights_count_samples_and_ones_change_nothing() -> None:
    """GenView's B_i / sum form: the mean of w_i times the sample's own loss."""
    loss = DinoLoss(16).double()
    student = [logits(4, 16, seed=i, dtype=torch.float64) for i in range(3)]
    teacher = [logits(4, 16, seed=50 + i, dtype=torch.float64) for i in range(2)]
    weights = torch.tensor([0.5, 2.0, 1.2, 0.3], dtype=torch.float64)
    each = np.zeros(4)
    for i, t in enumerate(teacher):
        q = softmax(t.numpy() / 0.04)
        for j, x in enumerate(student):
            if i != j:
                each += -(q * np.log(softmax(x.numpy() / 0.1))).sum(-1) / 4
    found = loss(student, teacher, 0.04, weights).item()
    assert found == pytest.approx((weights.numpy() * each).mean(), rel=1e-12)
    ones = loss(student, teacher, 0.04, torch.ones(4, dtype=torch.float64))
    assert torch.equal(ones, loss(student, teacher, 0.04))


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


# --- the head -----------------------------------------------------------------------------


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
    features = logits(7, 24).requires_grad_()
    copy = features.detach().clone().requires_grad_()
    found, expected = ours(features), theirs(copy)
    torch.testing.assert_close(found, expected)
    (found * logits(7, 40, seed=1)).sum().backward()
    (expected * logits(7, 40, seed=1)).sum().backward()
    torch.testing.assert_close(features.grad, copy.grad)
    torch.testing.assert_close(weight.original1.grad, theirs.last_layer.weight_v.grad)
    for mine, its in zip(linear, other, strict=True):
        torch.testing.assert_close(mine.weight.grad, its.weight.grad)
        torch.testing.assert_close(mine.bias.grad, its.bias.grad)
    assert weight.original0.grad is None  # lengths of 1 are kept


def test_head_is_its_formula_in_float64() -> None:
    head = DinoHead(24, HEAD.model_copy(update={"norm_last_layer": False})).double()
    weight = head.last_layer.parametrizations.weight
    with torch.no_grad():
        weight.original0.uniform_(0.5, 2)
        for layer in head.mlp:
            if isinstance(layer, nn.Linear):
                layer.bias.normal_()
    features = logits(5, 24, dtype=torch.float64)
    x = features.numpy()
    linear = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    for number, layer in enumerate(linear):
        x = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        if number < 2:  # GELU with the error function
            x = np.array([[0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in row] for row in x])
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    v, g = weight.original1.detach().numpy(), weight.original0.detach().numpy()
    expected = x @ (g * v / np.linalg.norm(v, axis=1, keepdims=True)).T
    np.testing.assert_allclose(head(features).detach().numpy(), expected, rtol=1e-10)


def test_head_starts_as_published() -> None:
    torch.manual_seed(0)
    head = DinoHead(384, DinoHeadConfig(hidden=512, bottleneck=64, prototypes=1000))
    linear = [layer for layer in head.mlp if isinstance(layer, nn.Linear)]
    assert len(linear) == 3
    for layer in linear:
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.02)
        assert abs(layer.weight.mean().item()) < 1e-3
        assert not layer.bias.any()
    weight = head.last_layer.parametrizations.weight
    assert torch.equal(weight.original0, torch.ones(1000, 1))
    bound = 1 / math.sqrt(64)  # torch's own for a linear layer
    assert weight.original1.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert head.last_layer.bias is None


def test_short_vectors_are_still_scaled_to_unit_length() -> None:
    """An epsilon of 1e-6 would let vectors below it shrink; the published one is 1e-12."""
    head = DinoHead(24, HEAD)
    with torch.no_grad():
        for layer in head.mlp:
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(1e-3)
    small = head.mlp(logits(4, 24)).norm(dim=1)
    assert (small < 1e-7).all()
    unit = head.last_layer.weight
    found = head(logits(4, 24))
    expected = torch.nn.functional.normalize(head.mlp(logits(4, 24)).double()).float() @ unit.T
    torch.testing.assert_close(found, expected)


def test_prototypes_have_unit_length_and_keep_it() -> None:
    head = DinoHead(24, HEAD)
    torch.testing.assert_close(head.last_layer.weight.norm(dim=1), torch.ones(40))
    lengths = head.last_layer.parametrizations.weight.original0
    assert not lengths.requires_grad
    free = DinoHead(24, HEAD.model_copy(update={"norm_last_layer": False}))
    assert free.last_layer.parametrizations.weight.original0.requires_grad


# --- a whole training ------------------------------------------------------------------------


def test_a_training_is_the_published_loop_written_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six steps of `train_dino` against a plain loop in the order of main_dino.py."""
    config = tiny(
        encoder=tiny().encoder.model_copy(update={"drop_path": 0.0}),
        optim=OptimConfig(steps=6, batch_size=8, lr=0.02, warmup_steps=3, clip_norm=0.05),
        teacher_temperature=0.07, warmup_teacher_temperature=0.04, warmup_teacher_epochs=3,
        freeze_last_layer_epochs=1,
    )  # fmt: skip
    monkeypatch.setattr(module, "view_loader", random_loader)
    run = Run.start(tmp_path / "run", "dino", config, {})
    train_dino(config, [Textures(16)], run)  # 2 steps an epoch

    torch.manual_seed(config.run.seed)
    pair = StudentTeacher(config.encoder, config.head)
    student, teacher = pair._student, pair._teacher
    named = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
    bare = [p for n, p in named if n.endswith(".bias") or len(p.shape) == 1]
    rest = [p for n, p in named if not (n.endswith(".bias") or len(p.shape) == 1)]
    adamw = torch.optim.AdamW([{"params": rest}, {"params": bare, "weight_decay": 0.0}])
    rates = reference_schedule(0.02 * 8 / 256, 1e-6, 3, 6)
    decays = reference_schedule(0.04, 0.4, 0, 6)
    momenta = reference_schedule(0.996, 1.0, 0, 6)
    temperatures = [*np.linspace(0.04, 0.07, 3), 0.07]
    center = torch.zeros(64)
    for step in range(6):
        epoch = step // 2
        for number, group in enumerate(adamw.param_groups):
            group["lr"] = rates[step]
            if number == 0:
                group["weight_decay"] = decays[step]
        views = random_views(step, 8, blend=False)
        with torch.no_grad():
            said = [teacher.head(teacher.encoder(x)) for x in views.global_crops]
        crops = [*views.global_crops, *views.local_crops]
        answers = [student.head(student.encoder(x)) for x in crops]
        total, terms = torch.zeros(()), 0
        for i, t in enumerate(said):
            q = torch.softmax((t - center) / temperatures[epoch], -1)
            for j, x in enumerate(answers):
                if i != j:
                    total = total + (-q * torch.log_softmax(x / 0.1, -1)).sum(-1).mean()
                    terms += 1
        adamw.zero_grad()
        (total / terms).backward()
        clipped = 0
        for name, p in student.named_parameters():
            if p.grad is not None:
                share = 0.05 / (p.grad.norm(2) + 1e-6)
                if share < 1:
                    p.grad.mul_(share)
                    clipped += 1
            if epoch < 1 and "last_layer" in name:
                p.grad = None
        assert clipped  # else nothing is seen of it
        adamw.step()
        with torch.no_grad():
            for t, x in zip(teacher.parameters(), student.parameters(), strict=True):
                t.mul_(momenta[step]).add_((1 - momenta[step]) * x)
            center = center * 0.9 + 0.1 * torch.cat(said).mean(0)

    parts = read_checkpoint(run.checkpoints()[-1])["parts"]
    torch.testing.assert_close(parts["loss"]["center"], center, atol=1e-6, rtol=1e-4)
    for name, value in pair.state_dict().items():
        torch.testing.assert_close(parts["pair"][name], value, atol=2e-6, rtol=1e-4)
