"""Training DINO: faithful to Gen-SIS, exact over stops, and it learns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_dino import Textures, random_loader, same, tiny
from torch import nn

from pathgen.checkpoints import read_checkpoint
from pathgen.data.views import ViewConfig
from pathgen.errors import ConfigError, NoInputError, RunError, Stopped
from pathgen.models.dino import DinoHeadConfig, StudentTeacher
from pathgen.models.encoder import Encoder
from pathgen.models.losses import DinoLoss, entropy
from pathgen.runs import Run, RunConfig, load_model
from pathgen.train import dino as module
from pathgen.train.dino import DinoConfig, train_dino
from pathgen.train.optimize import OptimConfig

pytestmark = pytest.mark.usefixtures("one_thread")

TESTS = Path(__file__).resolve().parent
AUGMENTATIONS: Any = ["anything: the loader is replaced"]


def fit(path: Path, config: DinoConfig, *, augmentations: Any = (), n: int = 64) -> Run:
    run = Run.start(path, "dino", config, {"patches": "textures"})
    train_dino(config, [Textures(n)], run, augmentations)
    return run


def state(run: Run) -> Any:
    return read_checkpoint(run.checkpoints()[-1])


# --- one batch -----------------------------------------------------------------------------


def pair_and_loss(config: DinoConfig) -> tuple[StudentTeacher, DinoLoss]:
    torch.manual_seed(0)
    return StudentTeacher(config.encoder, config.head), DinoLoss(config.head.prototypes)


# --- whole trainings -----------------------------------------------------------------------


def test_a_signal_to_the_whole_group_with_workers_ends_in_a_checkpoint(tmp_path: Path) -> None:
    script = tmp_path / "script.py"  # a file: spawned workers import it
    script.write_text(
        textwrap.dedent("""
        import subprocess, sys
        from pathlib import Path
        from helpers_dino import Textures, tiny
        from pathgen.errors import Stopped
        from pathgen.runs import Run, RunConfig
        from pathgen.train.dino import train_dino
        from pathgen.train.optimize import OptimConfig
        class Group(Run):
            def log(self, step, **values):
                super().log(step, **values)
                if step == 3:
                    # From another process, to all of the group. os.system would ignore SIGINT.
                    subprocess.run(["sh", "-c", "kill -INT 0"])
        if __name__ == "__main__":
            config = tiny(
                optim=OptimConfig(steps=1000, batch_size=4),
                run=RunConfig(device="cpu", workers=1, log_every=1),
            )
            run = Group.start(Path(sys.argv[1]), "dino", config, {})
            try:
                train_dino(config, [Textures(8)], run)
            except Stopped as stopped:
                sys.exit(stopped.exit_code)
        """)
    )
    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "run")],
        env=environment, check=False, start_new_session=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 85, done.stderr
    assert "Traceback" not in done.stderr
    assert Run.open(tmp_path / "run").checkpoints()


def stopping_at(step: int) -> Any:
    """The random loader, with a SIGTERM to this process while batch `step` is handed out."""

    def loader(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for number, views in enumerate(random_loader(*args, **kwargs), kwargs["start_step"]):
            if number == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield views

    return loader


def test_stopped_at_any_step_and_resumed_it_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(optim=tiny().optim.model_copy(update={"steps": 6}))
    monkeypatch.setattr(module, "view_loader", random_loader)
    whole = fit(tmp_path / "whole", config, augmentations=AUGMENTATIONS)
    for k in range(5):
        path = tmp_path / f"stop-{k}"
        monkeypatch.setattr(module, "view_loader", stopping_at(k))
        with pytest.raises(Stopped, match=f"after step {k + 1} of 6"):
            fit(path, config, augmentations=AUGMENTATIONS)
        monkeypatch.setattr(module, "view_loader", random_loader)
        torch.manual_seed(k)  # what the process did in between is of no consequence
        resumed = fit(path, config, augmentations=AUGMENTATIONS)
        assert same(state(whole), state(resumed))
        lines = [{k: v for k, v in x.items() if k != "images_per_second"} for x in whole.step_log()]
        assert lines == [
            {k: v for k, v in x.items() if k != "images_per_second"} for x in resumed.step_log()
        ]
        for name in ("model", "initial"):
            a, b = (run.path / name / "model.safetensors" for run in (whole, resumed))
            assert a.read_bytes() == b.read_bytes()


def test_ended_without_a_word_and_resumed_with_the_real_loader_it_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    """As by a kill: nothing is written after step 6, whose checkpoint is that of step 4."""

    class Killed(Run):
        def log(self, step: int, **values: float) -> None:
            super().log(step, **values)
            if step == 6:
                raise SystemExit

    killed = Killed.start(tmp_path / "killed", "dino", tiny(), {"patches": "textures"})
    with pytest.raises(SystemExit):
        train_dino(tiny(), [Textures()], killed)
    assert killed.checkpoints()[-1].name == "step-00000004"
    assert killed.step_log()[-1]["step"] == 6
    torch.manual_seed(99)
    whole = fit(tmp_path / "whole", tiny())
    assert same(state(whole), state(fit(killed.path, tiny())))
    assert [line["step"] for line in killed.step_log()] == list(range(10))


def test_it_learns(tmp_path: Path) -> None:
    config = tiny(
        head=DinoHeadConfig(hidden=64, bottleneck=256, prototypes=256),
        views=ViewConfig(
            global_size=32, local_size=16, local_crops=2, jitter=0, gray=0, blur=(0, 0, 0),
            solarize=0,
        ),
        optim=OptimConfig(
            steps=80, batch_size=16, lr=0.03, warmup_epochs=4, weight_decay_end=0.04
        ),
        teacher_momentum=0.99,
        run=RunConfig(device="cpu", save_every=1000, log_every=1),
    )  # fmt: skip
    run = fit(tmp_path / "run", config)
    assert run.metrics["loss_last"] < run.metrics["loss_first"] - 0.5
    assert run.metrics["images_seen"] == 80 * 16
    # Collapse would lower the loss as well: then the prototypes say nothing about the patch.
    parts = state(run)["parts"]
    pair, loss = pair_and_loss(config)
    pair.load_state_dict(parts["pair"])
    loss.load_state_dict(parts["loss"])
    pixels = Textures(64, seed=3).images(slice(None))[:, 8:40, 8:40]
    unseen = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    chosen = loss.target(pair.teacher([unseen])[0], 0.04)
    information = entropy(chosen.mean(0, keepdim=True)) - entropy(chosen)
    assert information > 0.3  # nats


def test_a_finished_run_gives_its_encoder_and_keeps_the_untrained_one(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", tiny())
    encoder = train_dino(tiny(), [], run)
    assert encoder.config.drop_path == 0
    assert not encoder.training
    initial = load_model(run.path / "initial", Encoder)
    assert initial.id != encoder.id
    torch.manual_seed(0)  # the seed of the run decides the untrained network
    assert StudentTeacher(tiny().encoder, tiny().head).encoder().id == initial.id
    for name in ("loss_dino", "lr", "weight_decay", "momentum", "teacher_entropy"):
        assert all(np.isfinite(line[name]) for line in run.step_log())


def test_prototypes_wait_and_the_rest_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "view_loader", random_loader)
    every = RunConfig(device="cpu", save_every=8, log_every=1)  # an epoch has 8 steps of the 10
    run = fit(tmp_path / "run", tiny(freeze_last_layer_epochs=1, run=every))
    epoch, end = (read_checkpoint(c)["parts"]["pair"] for c in run.checkpoints())
    torch.manual_seed(0)
    start = StudentTeacher(tiny().encoder, tiny().head).state_dict()
    held = [name for name in start if "_student.head.last_layer" in name]
    assert len(held) == 2
    assert all(torch.equal(epoch[name], start[name]) for name in held)
    assert not torch.equal(epoch["_student.head.mlp.0.weight"], start["_student.head.mlp.0.weight"])
    assert any(not torch.equal(end[name], start[name]) for name in held)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for step, views in enumerate(random_loader(*args, **kwargs)):
            if step == 6:
                views.global_crops[0][0] = float("nan")
            yield views

    monkeypatch.setattr(module, "view_loader", poisoned)
    run = Run.start(tmp_path / "run", "dino", tiny(), {})
    with pytest.raises(RunError) as caught:
        train_dino(tiny(), [Textures()], run)
    assert caught.value.code == "PG-T03"
    assert "step 6" in str(caught.value)
    assert "step-00000004" in str(caught.value)
    weights = state(run)["parts"]["pair"].values()
    assert all(bool(torch.isfinite(w).all()) for w in weights)
    assert not run.finished


def test_what_cannot_be_trained_is_refused_before_it_starts(tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", "dino", tiny(), {})
    with pytest.raises(NoInputError):
        train_dino(tiny(), [], run)
    odd = tiny(views=tiny().views.model_copy(update={"local_size": 20}))
    with pytest.raises(ConfigError, match="multiple of the encoder's patch of 8"):
        train_dino(odd, [Textures()], run)


def test_it_also_trains_a_cnn_in_mixed_precision(tmp_path: Path) -> None:
    config = tiny(
        encoder={"name": "test_convnext", "image_size": 32, "drop_path": 0.1},
        views={"global_size": 32, "local_size": 32, "local_crops": 1},
        optim={"steps": 2, "batch_size": 4, "warmup_steps": 0},
        freeze_last_layer_epochs=0,
        run={"device": "cpu", "precision": "bf16"},
    )
    run = fit(tmp_path / "run", config)
    encoder = load_model(run.path, Encoder)
    assert all(p.dtype == torch.float32 for p in encoder.parameters())
    assert isinstance(encoder.backbone, nn.Module)
