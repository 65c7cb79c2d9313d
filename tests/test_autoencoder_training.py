"""The autoencoder's training: that it learns, goes on where it stopped, and says how good it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pathgen.data.patches import PatchDataset
from pathgen.data.sources import ImageFolder
from pathgen.errors import ConfigError, Stopped
from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.models.quality import psnr, ssim
from pathgen.progress import Silent
from pathgen.runs import Run, load_model
from pathgen.train.autoencoder import (
    AutoencoderTrainConfig,
    FlatOptimConfig,
    learning_rate,
    load_images,
    train_autoencoder,
)
from pathgen.train.engine import StopRequest
from pathgen.train.sheets import to_pixels

SMALL: dict[str, Any] = {"image_size": 32, "block_out_channels": (8, 8), "norm_groups": 4}


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


def train_config(steps: int, **more: Any) -> AutoencoderTrainConfig:
    return AutoencoderTrainConfig.model_validate(
        {
            "model": {**SMALL, "image_size": 16, "block_out_channels": (8, 16)},
            "optim": {"steps": steps, "batch_size": 8, "lr": 3e-3, "warmup_steps": 3},
            "run": {"device": "cpu", "log_every": 1, "save_every": 1000},
            **more,
        }
    )


#: All that a training may have besides: judge, critic from the fifth step on, held-out patches.
EVERYTHING: dict[str, Any] = {
    "perceptual_weight": 0.5, "discriminator_weight": 0.5, "discriminator_start": 4,
    "discriminator_width": 8, "discriminator_layers": 1, "held_out": 4,
}  # fmt: skip


def encoder() -> Encoder:
    torch.manual_seed(1)
    kwargs = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return Encoder(EncoderConfig(name="vit_tiny_patch16_224", image_size=16, kwargs=kwargs))


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
    config = train_config(steps=30)
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


@pytest.mark.parametrize("more", [{}, EVERYTHING])
def test_a_stopped_training_goes_on_to_the_same_weights(
    more: dict[str, Any], patches: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the critic as well, which has stepped before the stop and is needed after it."""
    config = train_config(steps=10, **more)
    judge = encoder() if more else None

    def go(name: str, progress: Any = None) -> tuple[Autoencoder, Run]:
        run = Run.start(tmp_path / name, "ae", config, {})
        return train_autoencoder(config, [patches], run, progress, judge), run

    straight, whole = go("a")
    stops = []
    real_enter = StopRequest.__enter__

    def enter(self: Any) -> Any:
        stops.append(self)
        return real_enter(self)

    monkeypatch.setattr(StopRequest, "__enter__", enter)
    with pytest.raises(Stopped):
        go("b", StopAfter(6, lambda: stops[-1].request()))
    broken, resumed = go("b")
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, broken.state_dict()[name]), name
    kept = [
        {key: value for key, value in line.items() if key != "images_per_second"}
        for line in resumed.step_log()
    ]
    assert [line["step"] for line in kept] == list(range(10))
    assert kept == [
        {key: value for key, value in line.items() if key != "images_per_second"}
        for line in whole.step_log()
    ]


def test_the_critic_waits_for_its_step_and_then_counts(
    patches: ImageFolder, tmp_path: Path
) -> None:
    config = train_config(steps=7, **EVERYTHING | {"perceptual_weight": 0})
    plain = train_config(steps=7, held_out=4)
    logs = {}
    for name, settings in (("with", config), ("without", plain)):
        run = Run.start(tmp_path / name, "ae", settings, {})
        train_autoencoder(settings, [patches], run)
        logs[name] = run.step_log()
    for ours, theirs in zip(logs["with"][:4], logs["without"][:4], strict=True):
        assert ours["loss"] == ours["reconstruction"] == theirs["loss"]
        assert "adversarial" not in ours
    for line in logs["with"][4:]:
        expected = line["reconstruction"] + line["adversarial"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        assert line["adversarial_weight"] > 0
    assert logs["with"][4]["loss_discriminator"] == pytest.approx(1, abs=0.2)  # it has not learned
    assert logs["with"][6]["reconstruction"] != logs["without"][6]["loss"]


def test_held_out_patches_are_never_trained_on_and_judge(
    patches: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = train_config(steps=10, held_out=4)
    seen: set[bytes] = set()
    real = Autoencoder.loss

    def watched(self: Autoencoder, images: torch.Tensor, *rest: Any) -> Any:
        assert self.training
        for image in images:
            turned = [image, image.flip(-1), image.flip(-2), image.flip(-1, -2)]
            seen.update(x.numpy().tobytes() for x in turned)
        return real(self, images, *rest)

    monkeypatch.setattr(Autoencoder, "loss", watched)
    run = Run.start(tmp_path / "run", "ae", config, {})
    model = train_autoencoder(config, [patches], run, encoder=encoder())
    everyone = load_images(PatchDataset([patches]), range(24), 16)
    held = [i for i, image in enumerate(everyone) if image.numpy().tobytes() not in seen]
    assert held == [0, 7, 15, 23]
    with torch.no_grad():
        made = model.decode(model.encode(everyone[held]))
    ours, log = run.metrics, run.step_log()
    assert ours["psnr"] == pytest.approx(float(psnr(everyone[held], made).mean()), rel=1e-5)
    assert ours["ssim"] == pytest.approx(float(ssim(everyone[held], made).mean()), rel=1e-4)
    pixels = [to_pixels(images) for images in (everyone[held], made)]
    first, second = (torch.from_numpy(encoder().encode(x)) for x in pixels)
    cosine = torch.nn.functional.cosine_similarity(first, second).mean()
    assert ours["embedding_cosine"] == pytest.approx(float(cosine), rel=1e-4)
    assert all({"psnr", "ssim", "psnr_held_out", "ssim_held_out"} <= set(line) for line in log)
    # The last line looks at the weights before the last step.
    assert log[-1]["psnr_held_out"] == pytest.approx(ours["psnr"], abs=1)


def test_a_perceptual_weight_needs_an_encoder(patches: ImageFolder, tmp_path: Path) -> None:
    config = train_config(steps=2, perceptual_weight=1.0)
    with pytest.raises(ConfigError, match="needs the encoder of the dino stage"):
        train_autoencoder(config, [patches], Run.start(tmp_path / "run", "ae", config, {}))


def test_the_perceptual_term_is_the_encoders_distance_and_moves_the_weights(
    patches: ImageFolder, tmp_path: Path
) -> None:
    weights, logs = [], []
    for weight in (0.0, 2.0):
        config = train_config(steps=3, perceptual_weight=weight, perceptual_blocks=(-1,))
        run = Run.start(tmp_path / str(weight), "ae", config, {})
        weights.append(train_autoencoder(config, [patches], run, encoder=encoder()).last_layer)
        logs.append(run.step_log())
    assert not torch.equal(*weights)
    assert logs[0][0]["loss"] == pytest.approx(logs[1][0]["reconstruction"], rel=1e-6)
    for line in logs[1]:
        assert 0 < line["perceptual"] < 4
        expected = line["reconstruction"] + 2 * line["perceptual"]
        assert line["loss"] == pytest.approx(expected, rel=1e-5)


def test_pretrained_stage_only_measures(patches: ImageFolder, tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = Autoencoder(AutoencoderConfig(**SMALL))
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
