"""The networks of DINO: student and teacher, and the encoder they share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pathgen.errors import ConfigError
from pathgen.models.dino import DinoHeadConfig, StudentTeacher
from pathgen.models.encoder import Encoder, EncoderConfig

TINY = EncoderConfig(
    image_size=32,
    kwargs={"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    drop_path=0.2,
)
HEAD = DinoHeadConfig(hidden=32, bottleneck=16, prototypes=40)


# --- the pair -----------------------------------------------------------------------------


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


# --- the encoder --------------------------------------------------------------------------


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
