"""The autoencoder: what its latents must be, what it is rebuilt from, and that it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from pathgen.data.sources import ImageFolder
from pathgen.errors import ConfigError, Stopped
from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig, psnr
from pathgen.progress import Silent
from pathgen.runs import Run, load_model, save_model
from pathgen.train import autoencoder as training
from pathgen.train.autoencoder import (
    AutoencoderTrainConfig,
    FlatOptimConfig,
    learning_rate,
    train_autoencoder,
)

SMALL: dict[str, Any] = {"image_size": 32, "block_out_channels": (8, 8), "norm_groups": 4}
#: A case is a kind, with what it needs beyond SMALL.
KINDS = {"kl": SMALL, "vq": SMALL | {"codebook": 16}, "tiny": SMALL}


def small(kind: str, **more: Any) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(kind=kind, **KINDS[kind] | more)).eval()


@pytest.fixture
def patches(tmp_path: Path) -> ImageFolder:
    """Smooth blobs in tissue-like colors, 24 of 40 x 40 pixels."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "patches"
    folder.mkdir()
    for i in range(24):
        coarse = rng.integers(100, 255, (4, 4, 3)).astype(np.uint8)
        picture = Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC)
        picture.save(folder / f"{i:02}.png")
    return ImageFolder(folder)


def train_config(steps: int) -> AutoencoderTrainConfig:
    return AutoencoderTrainConfig.model_validate(
        {
            "model": {**SMALL, "image_size": 16, "block_out_channels": (8, 16)},
            "optim": {"steps": steps, "batch_size": 8, "lr": 3e-3, "warmup_steps": 3},
            "run": {"device": "cpu", "log_every": 1, "save_every": 1000},
        }
    )


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


def test_psnr_is_that_of_scikit_image() -> None:
    metrics = pytest.importorskip("skimage.metrics")
    images, noisy = torch.rand(2, 2, 3, 16, 16).unbind()
    for one, other, ours in zip(images, noisy, psnr(images, noisy), strict=True):
        theirs = metrics.peak_signal_noise_ratio(one.numpy(), other.numpy(), data_range=1)
        assert float(ours) == pytest.approx(theirs, rel=1e-5)


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


@pytest.mark.parametrize("kind", KINDS)
def test_pretrained_weights_are_taken_and_then_travel_alone(kind: str, tmp_path: Path) -> None:
    original = small(kind)
    original.network.save_pretrained(tmp_path / "weights")
    loaded = Autoencoder(
        AutoencoderConfig(image_size=32, pretrained=str(tmp_path / "weights"))
    ).eval()
    assert loaded.config.kind == kind
    save_model(tmp_path / "model", loaded)
    (tmp_path / "weights").rename(tmp_path / "gone")
    again = load_model(tmp_path / "model", Autoencoder)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.encode(images), original.encode(images))
        assert torch.equal(again.encode(images), original.encode(images))


def test_only_known_classes_are_built(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ConfigError, match="unknown class"):
        Autoencoder(AutoencoderConfig(pretrained=str(tmp_path)))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    small("kl").network.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ConfigError, match="safetensors"):
        Autoencoder(AutoencoderConfig(image_size=32, pretrained=str(tmp_path)))


def test_missing_pretrained_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Autoencoder(AutoencoderConfig(pretrained=str(tmp_path / "nothing")))


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 30, "block_out_channels": (32, 32, 32)},
        {"block_out_channels": (30, 60)},
        {"image_size": 64, "fold": 32, "block_out_channels": (32, 32, 32)},
        {"kind": "tiny", "block_out_channels": (8, 16)},
        {"block_out_channels": ()},
        {"kind": "gan"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AutoencoderConfig(**wrong)


def test_warm_up_rises_to_the_rate_and_then_stays_or_falls() -> None:
    flat = FlatOptimConfig(lr=0.5, warmup_steps=4)
    rates = [learning_rate(flat, step, 20) for step in range(20)]
    assert 0 < rates[0] < rates[3] < rates[4] == rates[19] == 0.5
    falling = [
        learning_rate(flat.model_copy(update={"schedule": "cosine"}), s, 20) for s in range(20)
    ]
    assert falling[4] == 0.5
    assert falling[4:] == sorted(falling[4:], reverse=True)
    assert 0 < falling[-1] < 0.01


def test_training_learns_measures_and_shows(patches: ImageFolder, tmp_path: Path) -> None:
    config = train_config(steps=40)
    run = Run.start(tmp_path / "run", "autoencoder", config, {"patches": patches.id})
    model = train_autoencoder(config, [patches], run)
    assert run.finished
    assert run.metrics["loss_last"] < 0.6 * run.metrics["loss_first"]
    assert run.metrics["latent_std"] == pytest.approx(1, abs=0.05)
    with Image.open(tmp_path / "run" / "reconstructions.png") as sheet:
        assert sheet.width > sheet.height > 2 * 128
    kept = load_model(run.path, Autoencoder)
    assert torch.equal(kept.latent_scale, model.latent_scale)
    assert not torch.equal(kept.latent_scale, torch.ones_like(kept.latent_scale))


class StopAfter(Silent):
    """A user who presses Ctrl-C during step `steps`."""

    def __init__(self, steps: int, stop: Any) -> None:
        self.steps, self.stop = steps, stop

    def task(self, title: str, total: int, done: int = 0) -> Any:
        return _Count(self)


class _Count:
    def __init__(self, owner: StopAfter) -> None:
        self.owner, self.count = owner, 0

    def __enter__(self) -> _Count:
        return self

    def __exit__(self, *_: object) -> None: ...

    def advance(self, count: int = 1, note: str = "") -> None:
        self.count += count
        if self.count == self.owner.steps:
            self.owner.stop()


def test_a_stopped_training_goes_on_to_the_same_weights(
    patches: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(steps=12)
    straight = train_autoencoder(config, [patches], Run.start(tmp_path / "a", "ae", config, {}))
    stops = []
    real_enter = training.StopRequest.__enter__

    def enter(self: Any) -> Any:
        stops.append(self)
        return real_enter(self)

    monkeypatch.setattr(training.StopRequest, "__enter__", enter)
    progress = StopAfter(5, lambda: stops[-1].request())
    with pytest.raises(Stopped):
        train_autoencoder(config, [patches], Run.start(tmp_path / "b", "ae", config, {}), progress)
    resumed = Run.start(tmp_path / "b", "ae", config, {})
    broken = train_autoencoder(config, [patches], resumed)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, broken.state_dict()[name]), name
    assert [line["step"] for line in resumed.step_log()] == list(range(12))


def test_pretrained_stage_only_measures(patches: ImageFolder, tmp_path: Path) -> None:
    original = small("kl")
    original.network.save_pretrained(tmp_path / "weights")
    config = AutoencoderTrainConfig.model_validate(
        {
            "model": {"image_size": 32, "pretrained": str(tmp_path / "weights")},
            "run": {"device": "cpu"},
        }
    )
    run = Run.start(tmp_path / "run", "autoencoder", config, {})
    model = train_autoencoder(config, [patches], run)
    for name, tensor in original.network.state_dict().items():
        assert torch.equal(tensor, model.network.state_dict()[name])
    assert run.metrics["steps"] == 0
    assert run.metrics["latent_std"] == pytest.approx(1, abs=0.05)
