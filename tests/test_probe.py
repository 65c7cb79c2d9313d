"""DINO's linear evaluation: what it sees, what it learns, and that it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from pathgen.cli import main  # noqa: E402
from pathgen.data.sources import ImageFolder  # noqa: E402
from pathgen.errors import ConfigError, DataError, Stopped  # noqa: E402
from pathgen.models.encoder import Encoder, EncoderConfig  # noqa: E402
from pathgen.models.probe import LinearHead  # noqa: E402
from pathgen.runs import Run, RunConfig, load_model, save_model  # noqa: E402
from pathgen.train.engine import StopRequest  # noqa: E402
from pathgen.train.probe import ProbeConfig, ProbeOptim, train_probe  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    settings = {"name": "vit_tiny_patch16_224", "image_size": 32, "drop_path": 0.0}
    return Encoder(EncoderConfig(**settings, kwargs=SMALL)).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stripes that lie, stand, and a checkerboard, each of a tint."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    y, x = np.mgrid[:40, :40] // 5 % 2
    tints = {"lying": (20, 0, 0), "standing": (0, 20, 0), "both": (0, 0, 20)}
    for split, count in (("train", 24), ("test", 8)):
        for name, pattern in (("lying", y), ("standing", x), ("both", y ^ x)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                image = 90 + 80 * pattern[..., None] + tints[name] + rng.normal(0, 12, (40, 40, 3))
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(
                    root / split / name / f"{i}.png"
                )
    return root / "train", root / "test"


def config(**optim: float) -> ProbeConfig:
    return ProbeConfig(
        image_size=32, resize=36, scale=(0.4, 1.0), judge_every=2,
        optim=ProbeOptim(**{"epochs": 12, "batch_size": 24, "lr": 5.0} | optim),
        run=RunConfig(device="cpu", save_every=10, log_every=5, pictures_every=0),
    )  # fmt: skip


def fit(
    encoder: Encoder, folders: tuple[Path, Path], path: Path, settings: ProbeConfig
) -> tuple[LinearHead, Run]:
    learn, judge = (ImageFolder(folder) for folder in folders)
    run = Run.start(path, "probe", settings, {})
    return train_probe(settings, encoder, [learn], [judge], run), run


def test_a_head_on_random_features_learns_stripes(
    encoder: Encoder, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    head, run = fit(encoder, folders, tmp_path, config())
    assert run.metrics["accuracy_last"] > 0.8
    assert run.metrics["accuracy_best"] >= run.metrics["accuracy_last"]
    assert run.metrics["epochs_judged"] == 6
    assert run.metrics["loss_last"] < run.metrics["loss_first"]
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    saved = load_model(tmp_path, LinearHead)
    assert saved.config.classes == ("both", "lying", "standing")
    assert saved.config.encoder_id == encoder.id
    assert torch.equal(saved.linear.weight, head.linear.weight)


def test_the_class_tokens_are_those_after_each_block(encoder: Encoder) -> None:
    images = torch.rand(2, 3, 32, 32)
    seen: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, output: seen.append(output))
        for block in encoder.backbone.blocks
    ]
    with torch.no_grad():
        encoder(images)
        for hook in hooks:
            hook.remove()
        expected = torch.cat([encoder.backbone.norm(block)[:, 0] for block in seen[-3:]], 1)
        torch.testing.assert_close(encoder.class_tokens(images, 3), expected)
        features = encoder.features(images)
        torch.testing.assert_close(features.vector, encoder(images))
        torch.testing.assert_close(features.tokens, encoder.tokens(images))


def test_a_stopped_probe_ends_with_the_same_weights(
    encoder: Encoder, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(steps=8)  # epochs of three, the last one cut short
    whole, _ = fit(encoder, folders, tmp_path / "whole", settings)
    batches = StopRequest.batches

    def stop_early(self: StopRequest, loader: object) -> object:
        for number, batch in enumerate(batches(self, loader)):  # type: ignore[arg-type]
            if number == 6:
                self.request()
            yield batch

    monkeypatch.setattr(StopRequest, "batches", stop_early)
    with pytest.raises(Stopped):
        fit(encoder, folders, tmp_path / "halves", settings)
    monkeypatch.undo()
    rest, run = fit(encoder, folders, tmp_path / "halves", settings)
    assert torch.equal(whole.linear.weight, rest.linear.weight)
    assert run.metrics["epochs_judged"] == 2


def test_what_cannot_be_classified_is_named(
    encoder: Encoder, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (40, 40)).save(flat / "a.png")
    with pytest.raises(ValueError, match="resize must not be less"):
        ProbeConfig(image_size=384)
    with pytest.raises(DataError, match="PG-D07"):
        fit(encoder, (folders[0], flat), tmp_path / "run", config())
    with pytest.raises(ConfigError, match="PG-C04"):
        fit(encoder, folders, tmp_path / "deep", config().model_copy(update={"blocks": 9}))


def test_the_command(
    encoder: Encoder, folders: tuple[Path, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    save_model(tmp_path / "encoder", encoder)
    small = ["image_size=32", "resize=36", "optim.steps=3", "optim.batch_size=8"]
    with pytest.raises(SystemExit) as stopped:
        main([
            "evaluate", "probe", *map(str, folders), "--encoder", str(tmp_path / "encoder"),
            "-o", str(tmp_path / "run"), "--device", "cpu", "--json",
            *(part for setting in small for part in ("--set", setting)),
        ])  # fmt: skip
    assert not stopped.value.code
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["n_test"] == 24
