"""What reconstructions are judged by: PSNR, SSIM, the encoder's tokens, and a critic."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pathgen.errors import ConfigError
from pathgen.models.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    critic_loss,
    fooling_loss,
)
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.models.perceptual import Perceptual
from pathgen.models.quality import psnr, ssim

TINY = {"patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}


def encoder(drop_path: float = 0.0, **more: object) -> Encoder:
    torch.manual_seed(0)
    return Encoder(
        EncoderConfig(
            name="vit_tiny_patch16_224", image_size=24, drop_path=drop_path, kwargs=TINY | more
        )
    )


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    """Images and others near them, 3 of 24 x 20 pixels."""
    chance = torch.Generator().manual_seed(0)
    images = torch.rand(3, 3, 24, 20, generator=chance)
    return images, (images + 0.1 * torch.randn(images.shape, generator=chance)).clamp(0, 1)


def test_psnr_is_that_of_scikit_image(pair: tuple[Tensor, Tensor]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    for one, other, ours in zip(*pair, psnr(*pair), strict=True):
        theirs = metrics.peak_signal_noise_ratio(one.numpy(), other.numpy(), data_range=1)
        assert float(ours) == pytest.approx(theirs, rel=1e-5)


def test_ssim_is_that_of_scikit_image(pair: tuple[Tensor, Tensor]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    for one, other, ours in zip(*pair, ssim(*pair), strict=True):
        theirs = metrics.structural_similarity(
            one.double().numpy(), other.double().numpy(), data_range=1, channel_axis=0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert float(ours) == pytest.approx(theirs, abs=1e-5)
    torch.testing.assert_close(ssim(pair[0], pair[0]), torch.ones(3))


def test_ssim_of_images_below_its_window_is_not_defined(pair: tuple[Tensor, Tensor]) -> None:
    assert ssim(pair[0][..., :10], pair[1][..., :10]).isnan().all()


@pytest.mark.parametrize("pooled", [False, True])
def test_the_distance_is_that_of_unit_tokens(pooled: bool) -> None:
    """Against the encoder's public tokens for the last block, and by hooks for an inner one."""
    judge = encoder(**({"global_pool": "avg"} if pooled else {}))
    first, second = torch.rand(2, 2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []
    handle = judge.backbone.blocks[0].register_forward_hook(lambda *given: seen.append(given[2]))  # type: ignore[union-attr]
    with torch.no_grad():
        last = [judge.eval().tokens(images) for images in (first, second)]
        handle.remove()
        norm = judge.backbone.fc_norm if pooled else judge.backbone.norm
        inner = [norm(tokens)[:, judge.backbone.num_prefix_tokens :] for tokens in seen]  # type: ignore[operator, misc]
        found = Perceptual(judge, blocks=(0, -1))(first, second)
    expected = []
    for a, b in (inner, last):
        one, two = (x.double().numpy() for x in (a, b))
        one = one / np.linalg.norm(one, axis=-1, keepdims=True)
        two = two / np.linalg.norm(two, axis=-1, keepdims=True)
        expected.append(((one - two) ** 2).sum(-1).mean())
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-4)


def test_only_the_reconstructions_learn_and_the_encoder_stands_still() -> None:
    judge = Perceptual(encoder(drop_path=0.9)).train()
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    made = torch.rand(2, 3, 32, 32, requires_grad=True)
    found = judge(images, made)
    found.backward()
    assert images.grad is None
    assert made.grad is not None
    assert made.grad.any()
    assert all(p.grad is None for p in judge.parameters())
    assert torch.equal(judge(images, made), found)  # no stochastic depth
    assert float(judge(images, images).detach()) == 0


def test_blocks_are_spread_evenly_and_checked() -> None:
    assert Perceptual(encoder()).blocks == [0, 1, 2]
    assert Perceptual(encoder(depth=12)).blocks == [2, 5, 8, 11]
    assert Perceptual(encoder(), blocks=(-1, 2, 0)).blocks == [0, 2]
    with pytest.raises(ConfigError, match=r"PG-C04.*3 transformer blocks, not \[3\]"):
        Perceptual(encoder(), blocks=(3,))
    network = Encoder(EncoderConfig(name="resnet10t", image_size=32, drop_path=0))
    with pytest.raises(ConfigError, match="PG-C04"):
        Perceptual(network)


def test_the_critics_loss_is_the_hinge() -> None:
    real, made = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 0.5])
    # (0 + 0.5 + 2) / 3 of the real, (0 + 1 + 1.5) / 3 of the made
    assert float(critic_loss(real, made)) == pytest.approx(0.5 * (2.5 / 3 + 2.5 / 3))
    assert float(fooling_loss(made)) == pytest.approx(2.5 / 3)


def test_the_critic_sees_squares_and_each_image_alone() -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator(width=8, layers=2)
    images = torch.rand(3, 3, 32, 32)
    logits = critic(images)
    assert logits.shape == (3, 1, 6, 6)
    torch.testing.assert_close(critic(images[:1]), logits[:1])
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in critic.parameters())


def test_the_adaptive_weight_balances_the_two_gradients() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(4, 4, bias=False), torch.randn(8, 4)
    outputs = layer(inputs)
    loss, fooling = outputs.square().mean(), -3 * outputs.sum()
    weight = adaptive_weight(loss, fooling, layer.weight)
    assert not weight.requires_grad
    pulls = []
    for part in (loss, weight * fooling):
        layer.zero_grad()
        part.backward(retain_graph=True)
        pulls.append(float(layer.weight.grad.double().norm()))  # type: ignore[union-attr]
    assert pulls[0] == pytest.approx(pulls[1], rel=1e-4)
    huge = adaptive_weight(1e9 * loss, fooling * 0, layer.weight)
    assert float(huge) == 1e4
