"""The autoencoder as a model: what its latents must be, and that all of it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig
from pathgen.runs import load_model, save_model

SMALL: dict[str, Any] = {"image_size": 32, "block_out_channels": (8, 8), "norm_groups": 4}
#: A case is a kind, with what it needs beyond SMALL.
KINDS = {"kl": SMALL, "vq": SMALL | {"codebook": 16}, "tiny": SMALL, "dc": SMALL}


def small(kind: str, **more: Any) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(kind=kind, **KINDS[kind] | more)).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_ranges(kind: str) -> None:
    model = small(kind)
    images = torch.rand(3, 3, 32, 32)
    latents = model.encode(images)
    assert model.downsample == 2
    assert latents.shape[1:] == model.latent_shape == (4, 16, 16)
    decoded = model.decode(latents * 50)  # far out, so that only clipping keeps the range
    assert decoded.shape == images.shape
    assert 0 <= float(decoded.detach().min()) <= float(decoded.detach().max()) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_folded_pixels_come_back_in_their_places(kind: str) -> None:
    model = small(kind, fold=4)
    assert (model.downsample, model.latent_shape) == (8, (4, 4, 4))
    images = torch.rand(2, 3, 32, 32)
    assert model.decode(model.encode(images)).shape == images.shape
    torch.testing.assert_close(model._unfold(model._fold(images)), images)


@pytest.mark.parametrize("kind", KINDS)
def test_measured_latents_have_mean_zero_and_unit_variance(kind: str) -> None:
    model = small(kind)
    images = torch.rand(20, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    model.measure(images.split(6))
    with torch.no_grad():
        latents = model.encode(images).double()
    torch.testing.assert_close(
        latents.mean((0, 2, 3)), torch.zeros(4, dtype=torch.double), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(
        latents.std((0, 2, 3)), torch.ones(4, dtype=torch.double), atol=1e-3, rtol=0
    )


def test_scale_does_not_change_what_is_decoded() -> None:
    """Scaling is undone on the way back; the codebook and decoder see raw latents."""
    model = small("vq")
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        before = model.decode(model.encode(images))
        model.measure([images])
        after = model.decode(model.encode(images))
    torch.testing.assert_close(before, after, atol=1e-3, rtol=0)


def test_a_channel_that_never_varies_stays_finite() -> None:
    model = small("kl")
    with torch.no_grad():
        for parameter in model.network.quant_conv.parameters():
            parameter.zero_()
    model.measure([torch.rand(4, 3, 32, 32)])
    assert torch.equal(model.latent_scale, torch.ones(4, 1, 1))


def test_sampling_needs_a_generator_and_repeats_with_it() -> None:
    model = small("kl")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        mean = model.encode(images)
        draws = [model.encode(images, torch.Generator().manual_seed(s)) for s in (5, 5, 6)]
    assert torch.equal(mean, model.encode(images).detach())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], mean)


def test_kl_term_is_that_of_torch() -> None:
    torch.manual_seed(3)
    images = torch.rand(4, 3, 32, 32)
    losses = {}
    for weight in (0.0, 1.0):
        model = small("kl", kl_weight=weight)
        losses[weight] = model.loss(images, torch.Generator().manual_seed(0))[0]
    with torch.no_grad():
        posterior = model.network.encode(images * 2 - 1).latent_dist
    ours = torch.distributions.Normal(posterior.mean, posterior.std)
    kl = torch.distributions.kl_divergence(ours, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close((losses[1.0] - losses[0.0]).detach(), kl, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_learns(kind: str) -> None:
    """Nothing between image and loss is cut off from the gradient, the encoder least of all."""
    model = small(kind)
    model.loss(torch.rand(4, 3, 32, 32), torch.Generator().manual_seed(0))[0].backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layer_is_what_the_pixels_come_from(kind: str) -> None:
    """Without it the decoder gives one color, whatever the latents."""
    model = small(kind)
    with torch.no_grad():
        model.last_layer.zero_()
        images = model.decode(torch.randn(2, *model.latent_shape))
    assert model.last_layer.shape[0] == 3
    torch.testing.assert_close(images, images[:1, :, :1, :1].expand_as(images))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_gives_the_same_images(kind: str, tmp_path: Path) -> None:
    model = small(kind)
    images = torch.rand(2, 3, 32, 32)
    model.measure([images])
    save_model(tmp_path / "model", model)
    again = load_model(tmp_path / "model", Autoencoder)
    with torch.no_grad():
        assert torch.equal(again.encode(images), model.encode(images))
        assert torch.equal(again.decode(again.encode(images)), model.decode(model.encode(images)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 30, "block_out_channels": (32, 32, 32)},
        {"block_out_channels": (30, 60)},
        {"image_size": 64, "fold": 32, "block_out_channels": (32, 32, 32)},
        {"kind": "tiny", "block_out_channels": (8, 16)},
        {"kind": "dc", "block_out_channels": (8, 18)},
        {"block_out_channels": ()},
        {"kind": "gan"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AutoencoderConfig(**wrong)
