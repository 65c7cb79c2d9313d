"""`--dry-run`: every stage really takes two steps, at its real size, and nothing is left of it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from helpers_pretrain import MINUTE, image_folder

from pathgen.cli import main
from pathgen.errors import ConfigError
from pathgen.models.autoencoder import Autoencoder
from pathgen.plan import SHARE, plan_pretrain
from pathgen.pretraining import STAGES, resolve
from pathgen.progress import Silent
from pathgen.rehearsal import BATCH, STEPS, rehearse, two_steps
from pathgen.runs import Run

pytestmark = pytest.mark.usefixtures("one_thread")

#: The sizes of the tests' smallest recipe, with the lengths of a real one.
LONG = [
    *MINUTE, "dino.optim.steps=5000", "dino.optim.batch_size=64", "autoencoder.optim.steps=4000",
    "ldm.optim.steps=3000", "augment.max_sources=1000", "dino.run.workers=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made during the test."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


class _Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_every_stage_takes_two_steps_and_nothing_is_left(
    images: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[tuple[str, int]] = []
    log = Run.log

    def watched(run: Run, step: int, **values: float) -> None:
        assert run.path.is_relative_to(temporary)
        logged.append((run.provenance.stage, step))
        log(run, step, **values)

    monkeypatch.setattr(Run, "log", watched)
    said = _Said()
    before = sorted(images.rglob("*"))
    done = rehearse(images, "tiny", overrides=LONG, progress=said)
    trained = ("dino", "autoencoder", "ldm", "gen-dino")
    assert logged == [(stage, step) for stage in trained for step in range(STEPS)]
    assert [result.plan.stage for result in done] == list(STAGES)
    assert all(result.seconds > 0 for result in done)
    assert [line.split(":")[0] for line in said.lines] == list(STAGES)
    assert not list(temporary.iterdir())
    assert sorted(images.rglob("*")) == before


def test_the_networks_are_the_recipes_and_only_the_length_is_not() -> None:
    config = resolve("tiny", LONG)
    short = two_steps(config)
    for stage in ("dino", "gen_dino"):
        for part in ("encoder", "head", "views", "target", "disentangle_weight"):
            assert getattr(getattr(short, stage), part) == getattr(getattr(config, stage), part)
    assert short.autoencoder.model == config.autoencoder.model
    assert short.ldm.model == config.ldm.model
    for stage in (short.dino, short.gen_dino, short.autoencoder, short.ldm):
        assert (stage.optim.steps, stage.optim.batch_size) == (STEPS, BATCH)
        assert stage.run.workers == 0


def test_the_costs_beside_it_are_those_of_the_whole(images: Path, temporary: Path) -> None:
    done = rehearse(images, "tiny", overrides=LONG, stages=["dino"])
    plans = plan_pretrain(resolve("tiny", LONG), 12, ["dino"])
    assert [result.plan for result in done] == plans
    assert plans[0].steps == 5000


def test_no_checkpoint_is_written(
    images: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a large E-LDM would fill a disk that the run itself need not fit."""

    def never(*_: object, **__: object) -> Path:
        raise AssertionError("a checkpoint was written")

    monkeypatch.setattr(Run, "save", never)
    rehearse(images, "tiny", overrides=LONG, stages=["dino"])


def test_what_cannot_work_fails_here_and_leaves_nothing(images: Path, temporary: Path) -> None:
    with pytest.raises(ConfigError, match=r"ldm\.model\.embedding_dim"):
        rehearse(images, "tiny", overrides=[*LONG, "ldm.model.embedding_dim=24"])
    assert not list(temporary.iterdir())


def test_options_that_ask_for_more_than_steps_are_rehearsed_too(
    images: Path, temporary: Path, tmp_path: Path
) -> None:
    """A pretrained autoencoder takes no steps; adaptive noise looks at the patches themselves."""
    shape = {"fold": 1, "block_out_channels": (8, 8, 8)}
    model = resolve("tiny", LONG).autoencoder.model.model_copy(update=shape)
    Autoencoder(model).network.save_pretrained(tmp_path / "weights")
    settings = [f"autoencoder.model.pretrained={tmp_path / 'weights'}", "autoencoder.model.fold=1",
                "augment.adaptive.noise=true"]  # fmt: skip
    stages = ["autoencoder", "augment"]
    done = rehearse(images, "tiny", overrides=[*LONG, *settings], stages=stages)
    assert [(one.plan.stage, one.seconds > 0) for one in done] == [
        ("autoencoder", False), ("augment", True)
    ]  # fmt: skip
    assert not list(temporary.iterdir())


def test_the_command_prints_costs_as_text_and_as_json(
    images: Path, temporary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for setting in LONG for word in ("--set", setting)]
    command = ["pretrain", str(images), "-o", str(tmp_path / "run"), *settings,
               "--dry-run", "--tflops", "2", "--stages", "autoencoder,dino"]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert not stop.value.code
    out = capsys.readouterr().out
    assert "s_per_step" in out
    assert "40% of 2 TFLOP/s" in out
    with pytest.raises(SystemExit):
        main([*command, "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["stage"] for row in result["stages"]] == ["dino", "autoencoder"]
    for row in result["stages"]:
        assert row["seconds_per_step_here"] > 0
        assert row["batch_here"] == BATCH
        assert row["hours"] == pytest.approx(row["flops"] / (SHARE * 2e12) / 3600)
    assert not (tmp_path / "run").exists()
    assert not list(temporary.iterdir())
