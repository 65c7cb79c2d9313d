"""The E-LDM's training: it learns, remembers its makers, resumes, averages, aligns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from helpers_ldm import (
    DIM,
    DIT,
    FLAT,
    SMALL,
    autoencoder,
    embeddings,
    feature_store,
    image_folder,
    small,
    train_config,
)
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from pathgen.data.sources import ImageFolder
from pathgen.errors import ConfigError, RunError, Stopped
from pathgen.models.alignment import Alignment
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.models.ldm import EmbeddingConditionedLDM
from pathgen.models.weights import weights_id
from pathgen.progress import Silent
from pathgen.runs import Run, load_model
from pathgen.train.average import Average
from pathgen.train.engine import StopRequest
from pathgen.train.ldm import train_ldm


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    return image_folder(tmp_path_factory.mktemp("data") / "patches")


def encoder() -> Encoder:
    """Tokens of 8 x 8 px: a grid of 2 x 2, each of DIM numbers."""
    torch.manual_seed(0)
    kwargs = {"patch_size": 8, "embed_dim": DIM, "depth": 1, "num_heads": 2}
    settings = {"name": "vit_tiny_patch16_224", "image_size": 16, "kwargs": kwargs}
    return Encoder(EncoderConfig(**settings, drop_path=0.0)).eval()


# --- the average -----------------------------------------------------------------------------


def test_average_is_that_of_float64_and_of_diffusers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = Average(model, 0.98)
    theirs = EMAModel(model.parameters(), decay=0.98)
    exact = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    for step in range(600):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            model[1].running_mean.add_(1.0)
        average.follow(step)
        decay = min(0.98, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            exact[name] = decay * exact[name] + (1 - decay) * parameter.detach().double()
        theirs.step(model.parameters())  # differs at step 0 alone, which is forgotten by the end
    for name, shadow in zip(exact, theirs.shadow_params, strict=True):
        torch.testing.assert_close(average.values[name].double(), exact[name], atol=1e-5, rtol=0)
        torch.testing.assert_close(average.values[name], shadow, atol=1e-3, rtol=0)
    assert torch.equal(average.values["1.running_mean"], torch.full((2,), 600.0))


def test_averaged_weights_are_shown_and_taken_back() -> None:
    model = nn.Linear(3, 2)
    average, own = Average(model, 0.9), model.weight.detach().clone()
    average.values["weight"].fill_(7.0)
    with pytest.raises(KeyError), average.shown():
        assert torch.equal(model.weight, torch.full((2, 3), 7.0))
        raise KeyError
    assert torch.equal(model.weight, own)
    assert torch.equal(average.values["weight"], torch.full((2, 3), 7.0))


# --- training --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model", [FLAT, DIT | {"prediction": "flow", "times": "logit_normal"}], ids=["unet", "dit"]
)
def test_training_learns_and_remembers_its_encoder(
    model: dict[str, Any], patches: ImageFolder, tmp_path: Path
) -> None:
    optim = {"steps": 40, "batch_size": 8, "lr": 5e-3, "warmup_steps": 5}
    shown = {"device": "cpu", "log_every": 1, "save_every": 1000, "pictures_every": 40}
    config = train_config(optim=optim, model=model, run=shown)
    features = feature_store(tmp_path / "f.h5", patches)
    run = Run.start(tmp_path / "run", "ldm", config, {"encoder": "e" * 16})
    trained = train_ldm(config, [patches], [features], autoencoder(), run)
    assert run.metrics["loss_last"] < 0.85 * run.metrics["loss_first"]
    kept = load_model(run.path, EmbeddingConditionedLDM)
    assert kept.config.encoder_id == trained.config.encoder_id == features.encoder["id"]
    assert run.provenance.inputs["encoder"] == kept.config.encoder_id
    assert kept.config.autoencoder_id == weights_id(autoencoder())
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, kept.state_dict()[name])
    assert len(list((run.path / "pictures").glob("step-00000040-drawn.png"))) == 1


class StopAfter(Silent):
    """A user who presses Ctrl-C during a step of the training, not while latents are made."""

    def __init__(self, steps: int, stop: Any) -> None:
        self.steps, self.stop = steps, stop

    def task(self, title: str, total: int, done: int = 0) -> Any:
        return super().task(title, total, done) if title == "latents" else _Count(self)


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


@pytest.mark.parametrize(("cache_gib", "align"), [(4.0, 0.0), (0.0, 0.5)])
def test_a_stopped_training_goes_on_to_the_same_average(
    cache_gib: float,
    align: float,
    patches: ImageFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optim = {"steps": 8, "batch_size": 6, "lr": 3e-3, "warmup_steps": 2}
    config = train_config(cache_gib=cache_gib, optim=optim, align_weight=align, align_width=8)
    encode, judge = autoencoder(), encoder()
    features = feature_store(tmp_path / "f.h5", patches, encoder=judge.id)
    stops = []
    real_enter = StopRequest.__enter__

    def enter(self: Any) -> Any:
        stops.append(self)
        return real_enter(self)

    monkeypatch.setattr(StopRequest, "__enter__", enter)

    def go(name: str, progress: Any = None) -> Run:
        run = Run.start(tmp_path / name, "ldm", config, {})
        train_ldm(config, [patches], [features], encode, run, progress, encoder=judge)
        return run

    straight = load_model(go("a").path, EmbeddingConditionedLDM)
    with pytest.raises(Stopped):
        go("b", StopAfter(5, lambda: stops[-1].request()))
    assert not Run.open(tmp_path / "b").finished
    run = go("b")
    broken = load_model(run.path, EmbeddingConditionedLDM)
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, broken.state_dict()[name]), name
    assert [line["step"] for line in run.step_log()] == list(range(8))


def test_a_batch_in_parts_trains_the_same(patches: ImageFolder, tmp_path: Path) -> None:
    """What is drawn belongs to a patch of the global batch, not to how the batch is cut."""
    features = feature_store(tmp_path / "f.h5", patches)
    optim = {"steps": 2, "batch_size": 6, "lr": 1e-3, "warmup_steps": 0}
    logs = []
    for parts in (1, 3):
        settings = {"device": "cpu", "log_every": 1, "accumulate": parts}
        config = train_config(optim=optim, run=settings)
        run = Run.start(tmp_path / str(parts), "ldm", config, {})
        train_ldm(config, [patches], [features], autoencoder(), run, latents=tmp_path / "latents")
        logs.append([(line["loss"], line["gradient_norm"]) for line in run.step_log()])
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-4)


# --- alignment -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "layer"), [("unet", 0), ("unet", 1), ("unet", 2), ("dit", 0), ("dit", 2)]
)
def test_alignment_is_the_mean_cosine_of_what_the_layer_said(kind: str, layer: int) -> None:
    """The grid of tokens is the layer's own here: worked out token by token in float64."""
    model = small(kind=kind)
    torch.manual_seed(1)
    align = Alignment(model, 5, layer=layer, width=7)
    watched = (
        model.dit.blocks[max(layer - 1, 0)]
        if kind == "dit"
        else (model.unet.up_blocks[layer - 1] if layer else model.unet.mid_block)
    )
    seen: list[Tensor] = []
    watched.register_forward_hook(lambda module, given, out: seen.append(out))
    model.denoise(torch.randn(2, 4, 8, 8), torch.tensor([5, 900]), embeddings(2))
    hidden = seen[0] if seen[0].ndim == 3 else seen[0].flatten(2).mT
    tokens = torch.randn(2, hidden.shape[1], 5)
    total = 0.0
    for row, wanted in zip(hidden.detach().flatten(0, 1), tokens.flatten(0, 1), strict=True):
        x = row.double()
        for linear in (align.project[0], align.project[2], align.project[4]):
            x = linear.weight.double() @ x + linear.bias.double()
            x = x * torch.sigmoid(x) if linear is not align.project[4] else x
        total += (x @ wanted.double() / (x.norm() * wanted.double().norm())).item()
    assert align.loss(tokens).item() == pytest.approx(-total / len(tokens.flatten(0, 1)), abs=1e-5)


def test_alignment_resizes_its_grid_to_the_encoders() -> None:
    """A map that is even in each quarter is the same seen in 2 x 2."""
    model = small(kind="dit")
    align = Alignment(model, 5, width=7)
    quarters = torch.randn(1, 16, 2, 2)
    align._keep(model, None, F.interpolate(quarters, scale_factor=2).flatten(2).mT)
    tokens = align.project(quarters.flatten(2).mT)
    value = align.loss(tokens.detach()).item()
    assert -1 <= value < -0.8
    with pytest.raises(ConfigError, match="no such layer"):
        Alignment(model, 5, layer=3)


def test_aligned_training_needs_the_encoder_and_saves_no_projector(
    patches: ImageFolder, tmp_path: Path
) -> None:
    judge = encoder()
    optim = {"steps": 25, "batch_size": 12, "lr": 5e-3, "warmup_steps": 2}
    config = train_config(model=DIT, optim=optim, align_weight=1.0, align_width=16)
    features = feature_store(tmp_path / "f.h5", patches, encoder=judge.id)

    def go(name: str, stores: Any = features, **more: Any) -> Run:
        run = Run.start(tmp_path / name, "ldm", config, {})
        train_ldm(config, [patches], [stores], autoencoder(), run, **more)
        return run

    with pytest.raises(ConfigError, match="needs the encoder"):
        go("without")
    with pytest.raises(RunError, match="not those of the encoder"):
        go("another", feature_store(tmp_path / "o.h5", patches), encoder=judge)
    run = go("run", encoder=judge)
    first, last = run.step_log()[0], run.step_log()[-1]
    assert first["loss"] == pytest.approx(first["loss_diffusion"] + first["loss_align"], abs=1e-5)
    assert last["loss_align"] < first["loss_align"] - 0.3
    model = load_model(run.path, EmbeddingConditionedLDM)
    assert not [name for name in model.state_dict() if "project.4" in name or "align" in name]


# --- what does not belong together -----------------------------------------------------------


def test_features_of_other_patches_are_refused(patches: ImageFolder, tmp_path: Path) -> None:
    config, encode = train_config(), autoencoder()

    def train(stores: list[Any], name: str) -> None:
        run = Run.start(tmp_path / name, "ldm", config, {})
        train_ldm(config, [patches] * len(stores), stores, encode, run)

    with pytest.raises(RunError, match="not those of the patches"):
        train([feature_store(tmp_path / "short.h5", patches, count=23)], "a")
    folder = tmp_path / "other"
    folder.mkdir()
    for i in range(24):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(folder / f"x{i}.png")
    with pytest.raises(RunError, match="not those of the patches"):
        train([feature_store(tmp_path / "other.h5", ImageFolder(folder))], "b")
    several = [feature_store(tmp_path / f"{name}.h5", patches, encoder=name * 16) for name in "xy"]
    with pytest.raises(RunError, match="several encoders"):
        train(several, "c")


@pytest.mark.parametrize(
    ("setting", "value"), [("embedding_dim", 7), ("latent_channels", 3), ("latent_size", 16)]
)
def test_a_size_that_does_not_fit_is_named(
    setting: str, value: int, patches: ImageFolder, tmp_path: Path
) -> None:
    config = train_config(model={**SMALL, setting: value})
    run = Run.start(tmp_path / "run", "ldm", config, {})
    with pytest.raises(ConfigError, match=f"(?i)set ldm.model.{setting}="):
        train_ldm(
            config, [patches], [feature_store(tmp_path / "f.h5", patches)], autoencoder(), run
        )
