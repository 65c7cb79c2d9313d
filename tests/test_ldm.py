"""The E-LDM: its schedule, its condition and guidance, what it draws, and how it is trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.training_utils import EMAModel
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from pathgen.data.loading import image_loader
from pathgen.data.sources import ImageFolder
from pathgen.errors import ConfigError, RunError, Stopped
from pathgen.models.autoencoder import Autoencoder, AutoencoderConfig
from pathgen.models.ldm import EmbeddingConditionedLDM, LDMConfig, starting_noise
from pathgen.models.weights import weights_id
from pathgen.progress import Silent
from pathgen.provenance import Provenance
from pathgen.runs import Run, load_model, save_model
from pathgen.stores.features import FeatureStore
from pathgen.train.engine import Engine, StopRequest
from pathgen.train.ldm import Average, LDMTrainConfig, latent_loader, mirrored, train_ldm

DIM = 6
SMALL: dict[str, Any] = {
    "embedding_dim": DIM,
    "context_dim": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention": (False, True),
    "norm_groups": 4,
    "latent_size": 8,
}


def small(**more: Any) -> EmbeddingConditionedLDM:
    torch.manual_seed(0)
    return EmbeddingConditionedLDM(LDMConfig(**SMALL | more)).eval()


def embeddings(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def patches(tmp_path: Path) -> ImageFolder:
    """24 images of two kinds: dark and bright."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "patches"
    folder.mkdir()
    for i in range(24):
        low = 40 if i % 2 else 180
        coarse = rng.integers(low, low + 60, (4, 4, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((16, 16)).save(folder / f"{i:02}.png")
    return ImageFolder(folder)


def feature_store(
    path: Path, source: ImageFolder, count: int | None = None, encoder: str = "e" * 16
) -> FeatureStore:
    """Embeddings of the given length that say whether the image is dark or bright."""
    count = len(source) if count is None else count
    rng = np.random.default_rng(1)
    vectors = rng.normal(0, 0.1, (count, DIM)).astype(np.float32)
    vectors[:, 0] += np.where(np.arange(count) % 2, -1, 1)
    with FeatureStore.create(
        path,
        DIM,
        Provenance(stage="extract", config={}, inputs={"patches": source.id}),
        encoder={"name": "stand-in", "id": encoder, "dim": DIM},
        source={"id": source.id, "name": source.name},
    ) as writer:
        writer.append(
            features=vectors,
            coords=np.full((count, 2), -1, np.int64),
            label=np.full(count, -1, np.int32),
        )
    return FeatureStore.open(path)


def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(image_size=16, block_out_channels=(8, 8), norm_groups=4)
    return Autoencoder(config).eval()


def train_config(**more: Any) -> LDMTrainConfig:
    values: dict[str, Any] = {
        "model": SMALL,
        "optim": {"steps": 12, "batch_size": 6, "lr": 3e-3, "warmup_steps": 2},
        "run": {"device": "cpu", "log_every": 1, "save_every": 1000},
    }
    return LDMTrainConfig.model_validate({**values, **more})


# --- the noise schedule ----------------------------------------------------------------------


def test_betas_rise_in_their_square_roots_between_the_ends() -> None:
    betas = small().noise.betas.double()
    assert float(betas[0]) == pytest.approx(0.0015)
    assert float(betas[-1]) == pytest.approx(0.0195)
    steps = betas.sqrt().diff()
    torch.testing.assert_close(steps, steps.mean().expand_as(steps), rtol=2e-2, atol=0)


def test_noise_added_at_the_ends() -> None:
    """Almost none at the first time, almost nothing else at the last; unit variance kept."""
    model = small()
    latents, noise = torch.randn(2, 64, 4, 8, 8).unbind()
    first = model.add_noise(latents, noise, torch.zeros(64, dtype=torch.long))
    last = model.add_noise(latents, noise, torch.full((64,), 999))
    assert float((first - latents).std()) < 0.05
    assert float((last - noise).std()) < 0.02
    middle = model.add_noise(latents, noise, torch.full((64,), 300))
    assert float(middle.std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_a_perfect_denoiser_is_led_back_to_the_picture(sampler: Any) -> None:
    """Sampling starts at the last training step and ends without noise, in any number of steps."""
    model = small()
    target = torch.randn(1, 4, 8, 8)
    alphas = model.noise.alphas_cumprod
    seen = []

    def denoise(latents: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        seen.append(int(times[0]))
        a = alphas[times].view(-1, 1, 1, 1)
        return (latents - a.sqrt() * target) / (1 - a).sqrt()

    model.denoise = denoise  # type: ignore[method-assign]
    for steps in (4, 6, 20, 60):  # two divide the 1,000 of training, two do not
        seen.clear()
        drawn = model.sample(
            embeddings(2), steps=steps, guidance=1.0, seeds=[1, 2], sampler=sampler
        )
        assert seen[0] == 999
        assert len(seen) == steps
        torch.testing.assert_close(drawn, target.expand(2, -1, -1, -1), atol=1e-2, rtol=0)


# --- the condition ---------------------------------------------------------------------------


def test_condition_has_unit_length_and_null_stays_zero() -> None:
    condition = small().condition(torch.cat([embeddings(3) * 7, torch.zeros(1, DIM)]))
    torch.testing.assert_close(condition[:3].norm(dim=1), torch.ones(3))
    assert torch.equal(condition[3], torch.zeros(DIM))


def test_length_of_an_embedding_does_not_matter() -> None:
    model, given = small(), embeddings(2)
    one, other = (model.sample(e, steps=2, seeds=[1, 2]) for e in (given, given * 4))
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_null_condition_is_the_linear_layers_bias() -> None:
    model, seen = small(), []
    project = model.unet.encoder_hid_proj
    assert isinstance(project, nn.Linear)
    handle = project.register_forward_hook(lambda module, given, out: seen.append((given[0], out)))
    model.sample(embeddings(2), steps=1, guidance=2.0, seeds=[1, 2])
    handle.remove()
    tokens, projected = seen[0]
    assert tokens.shape == (4, 1, DIM)  # the guided pair goes through in one pass, one token each
    torch.testing.assert_close(tokens[:2, 0].norm(dim=1), torch.ones(2))
    assert torch.equal(tokens[2:], torch.zeros(2, 1, DIM))
    torch.testing.assert_close(projected[2:], project.bias.expand(2, 1, -1))


def test_share_of_dropped_conditions() -> None:
    model, conditions = small(condition_dropout=0.1), []

    def denoise(latents: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        conditions.append(condition)
        return torch.zeros_like(latents)

    model.denoise = denoise  # type: ignore[method-assign]
    count = 20_000
    model.loss(torch.zeros(count, 4, 1, 1), embeddings(count), torch.Generator().manual_seed(0))
    dropped = (conditions[0] == 0).all(1)
    deviation = math.sqrt(0.1 * 0.9 / count)
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=4 * deviation)
    torch.testing.assert_close(conditions[0][~dropped].norm(dim=1), torch.ones(count)[~dropped])


def test_guidance_one_is_the_conditional_prediction() -> None:
    model = small()
    latents, times = torch.randn(3, 4, 8, 8), torch.full((3,), 500)
    condition = model.condition(embeddings(3))
    with torch.no_grad():
        expected = model.denoise(latents, times, condition)
        null = model.denoise(latents, times, torch.zeros_like(condition))
        assert torch.equal(model._guided(latents, 500, condition, 1.0), expected)
        zero, twice = (model._guided(latents, 500, condition, g) for g in (0.0, 2.0))
    torch.testing.assert_close(zero, null, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(twice, 2 * expected - null, atol=1e-5, rtol=1e-4)
    assert not torch.equal(expected, null)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_loss_is_zero_for_the_right_answer(prediction: Any) -> None:
    """epsilon: the noise. v: sqrt(a) noise - sqrt(1 - a) latents (arXiv 2202.00512)."""
    model = small(prediction=prediction)
    latents = torch.randn(5, 4, 8, 8)

    def denoise(noisy: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        a = model.noise.alphas_cumprod[times].view(-1, 1, 1, 1)
        noise = (noisy - a.sqrt() * latents) / (1 - a).sqrt()
        return noise if prediction == "epsilon" else a.sqrt() * noise - (1 - a).sqrt() * latents

    model.denoise = denoise  # type: ignore[method-assign]
    assert float(model.loss(latents, embeddings(5))) < 1e-4


# --- sampling --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_an_image_depends_on_its_seed_not_on_its_company(sampler: Any) -> None:
    model, given, seeds = small(), embeddings(5), [11, 2**62, 13, 14, 15]
    settings: dict[str, Any] = {"steps": 3, "guidance": 2.0, "sampler": sampler}
    together = model.sample(given, seeds=seeds, **settings)
    for i in (0, 1, 4):
        alone = model.sample(given[i : i + 1], seeds=seeds[i : i + 1], **settings)
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=1e-4)
    assert torch.equal(together, model.sample(given, seeds=seeds, **settings))
    assert not torch.equal(together, model.sample(given, seeds=[1, 2, 3, 4, 5], **settings))


def test_starting_noise_is_standard_normal_and_one_per_seed() -> None:
    noise = starting_noise(range(200), (4, 8, 8))
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)
    assert torch.equal(noise[7], starting_noise([7], (4, 8, 8))[0])
    assert len(torch.unique(noise[:, 0, 0, 0])) == 200


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"steps": 1001}, {"seeds": [1]}, {"embeddings": torch.zeros(2, 5)}]
)
def test_wrong_calls_are_explained(wrong: dict[str, Any]) -> None:
    given = {"embeddings": embeddings(2), "steps": 2, "seeds": [1, 2], **wrong}
    with pytest.raises(ConfigError):
        small().sample(given.pop("embeddings"), **given)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attention": (True,)},
        {"block_out_channels": (8, 18)},
        {"heads": 3},
        {"latent_size": 7},
        {"condition_dropout": 1.5},
        {"prediction": "x0"},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LDMConfig(**SMALL | wrong)


def test_saved_model_draws_the_same(tmp_path: Path) -> None:
    model = small(encoder_id="abc")
    save_model(tmp_path / "model", model)
    again = load_model(tmp_path / "model", EmbeddingConditionedLDM)
    settings: dict[str, Any] = {"steps": 2, "seeds": [3, 4]}
    assert again.config == model.config
    assert torch.equal(
        again.sample(embeddings(2), **settings), model.sample(embeddings(2), **settings)
    )


# --- the average -----------------------------------------------------------------------------


def test_average_is_that_of_float64_and_of_diffusers() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    average = Average(model, 0.98)
    theirs = EMAModel(model.parameters(), decay=0.98)
    exact = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    for step in range(600):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        average.follow(model, step)
        decay = min(0.98, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            exact[name] = decay * exact[name] + (1 - decay) * parameter.detach().double()
        theirs.step(model.parameters())  # differs at step 0 alone, which is forgotten by the end
    for name, shadow in zip(exact, theirs.shadow_params, strict=True):
        torch.testing.assert_close(average.values[name].double(), exact[name], atol=1e-5, rtol=0)
        torch.testing.assert_close(average.values[name], shadow, atol=1e-3, rtol=0)


# --- training --------------------------------------------------------------------------------


def test_training_learns_and_remembers_its_encoder(patches: ImageFolder, tmp_path: Path) -> None:
    optim = {"steps": 60, "batch_size": 12, "lr": 5e-3, "warmup_steps": 5}
    config = train_config(optim=optim)
    features = feature_store(tmp_path / "f.h5", patches)
    run = Run.start(tmp_path / "run", "ldm", config, {"encoder": "e" * 16})
    model = train_ldm(config, [patches], [features], autoencoder(), run)
    assert run.metrics["loss_last"] < 0.85 * run.metrics["loss_first"]
    kept = load_model(run.path, EmbeddingConditionedLDM)
    assert kept.config.encoder_id == model.config.encoder_id == features.encoder["id"]
    assert run.provenance.inputs["encoder"] == kept.config.encoder_id
    assert kept.config.autoencoder_id == weights_id(autoencoder())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept.state_dict()[name])


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


@pytest.mark.parametrize("cache_gib", [4.0, 0.0])
def test_a_stopped_training_goes_on_to_the_same_average(
    cache_gib: float, patches: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, encode = train_config(cache_gib=cache_gib), autoencoder()
    features = feature_store(tmp_path / "f.h5", patches)
    stops = []
    real_enter = StopRequest.__enter__

    def enter(self: Any) -> Any:
        stops.append(self)
        return real_enter(self)

    monkeypatch.setattr(StopRequest, "__enter__", enter)

    def start(name: str) -> Run:
        return Run.start(tmp_path / name, "ldm", config, {})

    straight = train_ldm(config, [patches], [features], encode, start("a"))
    progress = StopAfter(5, lambda: stops[-1].request())
    with pytest.raises(Stopped):
        train_ldm(config, [patches], [features], encode, start("b"), progress)
    assert not start("b").finished
    broken = train_ldm(config, [patches], [features], encode, start("b"))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, broken.state_dict()[name]), name
    assert [line["step"] for line in start("b").step_log()] == list(range(12))


@pytest.mark.parametrize("flips", [True, False])
def test_kept_latents_are_those_made_on_the_way(flips: bool, patches: ImageFolder) -> None:
    """Same patches, same mirrorings, in the same order, whether or not they fit in memory."""
    encode = autoencoder()
    batches = []
    for cache_gib in (4.0, 0.0):
        config = train_config(cache_gib=cache_gib, flips=flips)
        engine = Engine(config.run)
        loader = latent_loader(config, [patches], encode, engine, 2, 7, Silent())
        batches.append(list(loader))
    assert len(batches[0]) == 5
    for (kept, rows), (made, numbers) in zip(*batches, strict=True):
        assert torch.equal(rows, numbers)
        torch.testing.assert_close(kept, made, atol=2e-3, rtol=2e-3)  # kept as float16


def test_without_flips_every_target_is_its_own_patch(patches: ImageFolder) -> None:
    config, encode = train_config(flips=False), autoencoder()
    loader = latent_loader(config, [patches], encode, Engine(config.run), 0, 4, Silent())
    images = image_loader(patches, 16, batch_size=6, seed=0, steps=4)
    seen = []
    for (latents, rows), (whole, numbers) in zip(loader, images, strict=True):
        assert torch.equal(rows, numbers)
        torch.testing.assert_close(latents, encode.encode(whole).detach(), atol=2e-3, rtol=2e-3)
        seen += rows.tolist()
    assert sorted(seen) == list(range(24))  # an epoch has each patch once


def test_mirrored_is_each_of_the_four() -> None:
    picture = torch.arange(6).view(1, 2, 3)
    assert mirrored(picture, 0).flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert mirrored(picture, 1).flatten().tolist() == [2, 1, 0, 5, 4, 3]
    assert mirrored(picture, 2).flatten().tolist() == [3, 4, 5, 0, 1, 2]
    assert mirrored(picture, 3).flatten().tolist() == [5, 4, 3, 2, 1, 0]


def test_features_of_other_patches_are_refused(patches: ImageFolder, tmp_path: Path) -> None:
    config, encode = train_config(), autoencoder()

    def train(stores: list[FeatureStore], name: str) -> None:
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
