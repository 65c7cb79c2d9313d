"""`pathgen pretrain`: all five stages, in order, exact over stops; recipes and their plans."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers_pretrain import MINUTE, STEPS, Watched, image_folder
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from pathgen.errors import ConfigError, NoInputError, RunError, Stopped
from pathgen.extract import load_encoder
from pathgen.plan import plan_pretrain
from pathgen.pretraining import STAGES, PretrainConfig, PretrainResult, pretrain, resolve
from pathgen.recipes import recipe_names
from pathgen.stores import SelfAugmentationStore, find_stores
from pathgen.train.dino import DinoConfig
from pathgen.train.optimize import OptimConfig

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainResult:
    """An unbroken run of all stages."""
    return pretrain(images, tmp_path_factory.mktemp("whole") / "run", "tiny", overrides=MINUTE)


def results(run: Path) -> dict[str, bytes]:
    """Everything that later stages and users read, byte for byte."""
    kept = [*run.rglob("*.safetensors"), *run.rglob("*.h5"), run / "augment" / "metrics.json"]
    kept = [path for path in kept if "checkpoints" not in path.parts]
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(kept)}


def test_every_stage_leaves_what_the_next_one_needs(whole: PretrainResult) -> None:
    assert tuple(whole.stages) == STAGES
    assert whole.encoder == whole.out / "gen-dino"
    for stage in ("dino", "autoencoder", "ldm", "gen-dino"):
        metrics = json.loads((whole.out / stage / "metrics.json").read_text())
        assert metrics["steps"] == STEPS
        assert len((whole.out / stage / "log.jsonl").read_text().splitlines()) == STEPS
    encoder = load_encoder(whole.out / "dino", device="cpu")
    for path in find_stores(whole.out / "augment", kind="augmentations"):
        with SelfAugmentationStore.open(path) as store:
            assert len(store) == 12  # one variation and one blend for each of 6 patches
            assert store.provenance.inputs["encoder"] == encoder.id
    lines = (whole.out / "gen-dino" / "log.jsonl").read_text().splitlines()
    assert any(json.loads(line)["loss_disentangle"] > 0 for line in lines)


def test_stopped_within_every_stage_and_rerun_it_ends_with_the_same_bytes(
    whole: PretrainResult, images: Path, tmp_path: Path
) -> None:
    stops = ["dino", "autoencoder", "features", "ldm", "augment", "gen-dino"]
    trained = ("dino", "autoencoder", "ldm", "gen-dino")

    def stop(title: str, count: int) -> None:
        if left and (left[0], 1) == (title, count):
            left.pop(0)
            if title in trained:
                signal.raise_signal(signal.SIGTERM)
            else:  # no state to save there: as on a second Ctrl-C
                raise KeyboardInterrupt

    left = list(stops)
    for number in range(len(stops)):
        with pytest.raises((Stopped, KeyboardInterrupt)):
            pretrain(images, tmp_path / "run", "tiny", overrides=MINUTE, progress=Watched(stop))
        assert len(left) == len(stops) - number - 1
        torch.manual_seed(number)  # what else the process did is of no consequence
    again = pretrain(images, tmp_path / "run", "tiny", overrides=MINUTE, progress=Watched(stop))
    assert tuple(again.stages) == STAGES
    assert results(again.out) == results(whole.out)


def test_run_again_it_does_nothing(whole: PretrainResult, images: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.out.rglob("*.safetensors")}

    def never(title: str, count: int) -> None:
        raise AssertionError(f"{title} was done again")

    pretrain(images, whole.out, "tiny", overrides=MINUTE, progress=Watched(never))
    assert before == {path: path.stat().st_mtime_ns for path in whole.out.rglob("*.safetensors")}


def test_another_seed_gives_other_weights_and_is_refused_in_the_same_folder(
    whole: PretrainResult, images: Path, tmp_path: Path
) -> None:
    other = pretrain(images, tmp_path / "r", "tiny", overrides=MINUTE, seed=1, stages=["dino"])
    name = "dino/model/model.safetensors"
    assert (other.out / name).read_bytes() != (whole.out / name).read_bytes()
    said = (whole.out / "config.yaml").read_text()
    with pytest.raises(RunError, match="PG-T04"):
        pretrain(images, whole.out, "tiny", overrides=MINUTE, seed=1)
    assert (whole.out / "config.yaml").read_text() == said


@pytest.mark.parametrize(
    ("stage", "missing"), [("ldm", "dino"), ("augment", "dino"), ("gen-dino", "augment")]
)
def test_a_stage_that_needs_another_says_which(
    stage: str, missing: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=f"{stage} stage needs a finished {missing} stage") as said:
        pretrain(images, tmp_path / "run", "tiny", overrides=MINUTE, stages=[stage])
    all_of_them = ",".join(STAGES[: STAGES.index(stage) + 1])
    assert str(said.value).endswith(f"--stages {all_of_them}.")


def test_inputs_that_go_wrong(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="PG-C03"):
        pretrain(images, tmp_path / "run", "tiny", stages=["dina"])
    with pytest.raises(ConfigError, match="PG-C02"):
        pretrain(images, tmp_path / "run", "tinny")
    with pytest.raises(ConfigError, match="learning_rate"):
        pretrain(images, tmp_path / "run", "tiny", overrides=["dino.optim.learning_rate=1"])
    with pytest.raises(NoInputError, match="PG-N01"):
        pretrain(tmp_path / "nowhere", tmp_path / "run", "tiny")
    for device, stage in (("gpu", "dino"), ("cuda:99", "augment")):
        with pytest.raises(ConfigError, match="PG-C05"):
            pretrain(images, tmp_path / "run", "tiny", device=device, stages=[stage])
    assert not (tmp_path / "run").exists()


def test_gen_dino_is_dinos_recipe_unless_it_says_otherwise() -> None:
    config = resolve("tiny", ["dino.optim.lr=0.5", "gen_dino.disentangle_weight=0.25"])
    assert config.gen_dino.optim == config.dino.optim
    assert config.gen_dino.optim.lr == 0.5
    assert (config.dino.disentangle_weight, config.gen_dino.disentangle_weight) == (1.0, 0.25)


def test_gen_dino_follows_settings_built_in_python_too() -> None:
    config = PretrainConfig(dino=DinoConfig(optim=OptimConfig(batch_size=7)))
    assert config.gen_dino.optim.batch_size == 7


def test_a_warm_up_longer_than_the_training_is_refused(images: Path, tmp_path: Path) -> None:
    settings = [*MINUTE, "dino.optim.warmup_steps=null", "dino.optim.warmup_epochs=10"]
    with pytest.raises(ConfigError, match="warm-up takes 30 steps of 3; an epoch has 3"):
        pretrain(images, tmp_path / "run", "tiny", overrides=settings, stages=["dino"])


def test_another_autoencoder_makes_the_diffusion_model_another(
    whole: PretrainResult, images: Path, tmp_path: Path
) -> None:
    """Equal settings, other weights, as another device gives: nothing old is taken for new."""
    run = tmp_path / "run"
    shutil.copytree(whole.out, run)
    weights = run / "autoencoder" / "model" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, weights)
    with pytest.raises(RunError, match=r"PG-T04.*autoencoder"):
        pretrain(images, run, "tiny", overrides=MINUTE)


def test_a_recipe_is_frozen_and_knows_its_settings() -> None:
    config = PretrainConfig()
    with pytest.raises(ValidationError):
        config.name = "x"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        PretrainConfig.model_validate({"dinosaur": {}})


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_has_a_plan(recipe: str) -> None:
    plan = plan_pretrain(resolve(recipe), 1_000_000, STAGES)
    assert tuple(stage.stage for stage in plan) == STAGES
    assert all(stage.steps > 0 and stage.flops > 0 for stage in plan)
    assert all(stage.memory_bytes >= 4 * stage.parameters > 0 for stage in plan)


def test_the_papers_recipe_is_the_papers_network() -> None:
    """ViT-S/16: 21.67 M parameters without a classifier (Touvron et al., DeiT, Table 1: 22 M)."""
    from pathgen.models.encoder import Encoder

    config = resolve("vits16-imagenet").dino.encoder
    with torch.device("meta"):
        encoder = Encoder(config)
    assert encoder.dim == 384
    assert sum(p.numel() for p in encoder.parameters()) == pytest.approx(21.67e6, rel=0.002)
