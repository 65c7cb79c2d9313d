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
from helpers_data import make_augmentations, make_patches, noise
from helpers_dino import Textures, random_loader, random_views, tiny
from torch import Tensor, nn

from pathgen.checkpoints import read_checkpoint
from pathgen.data.views import ViewConfig
from pathgen.errors import ConfigError, NoInputError, RunError, Stopped
from pathgen.models.dino import DinoHeadConfig, StudentTeacher
from pathgen.models.encoder import Encoder
from pathgen.models.losses import DinoLoss, entropy
from pathgen.runs import Run, RunConfig, load_model
from pathgen.stores import PatchRef, Recipe
from pathgen.train import dino as module
from pathgen.train.dino import DinoConfig, dino_loss, train_dino
from pathgen.train.optimize import OptimConfig

pytestmark = pytest.mark.usefixtures("one_thread")

TESTS = Path(__file__).resolve().parent
AUGMENTATIONS: Any = ["anything: the loader is replaced"]


def fit(path: Path, config: DinoConfig, *, augmentations: Any = (), n: int = 64) -> Run:
    run = Run.start(path, "dino", config, {"patches": "textures"})
    train_dino(config, [Textures(n)], run, augmentations)
    return run


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a nested state."""
    if isinstance(value, dict):
        return {k: v for key, x in value.items() for k, v in flat(x, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for i, x in enumerate(value) for k, v in flat(x, f"{name}/{i}").items()}
    return {name: value}


def same(a: Any, b: Any) -> bool:
    """Equal to the bit, every tensor and number."""
    one, other = flat(a), flat(b)
    if one.keys() != other.keys():
        return False
    return all(
        torch.equal(x, other[k]) if isinstance(x, Tensor) else x == other[k] for k, x in one.items()
    )


def state(run: Run) -> Any:
    return read_checkpoint(run.checkpoints()[-1])


# --- one batch -----------------------------------------------------------------------------


def pair_and_loss(config: DinoConfig) -> tuple[StudentTeacher, DinoLoss]:
    torch.manual_seed(0)
    return StudentTeacher(config.encoder, config.head), DinoLoss(config.head.prototypes)


def test_teacher_never_sees_the_blend_and_gets_no_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pair, loss = pair_and_loss(tiny())
    views = random_views(0, blend=True)
    assert views.blend is not None
    seen: list[Tensor] = []
    watched = pair.teacher
    monkeypatch.setattr(pair, "teacher", lambda v: [seen.extend(v), watched(v)][1])
    terms = dino_loss(pair, loss, views, 0.04, 1.0)
    terms.total.backward()
    expected = [*views.global_crops, views.blend.secondary]
    assert len(seen) == 3
    assert all(a is b for a, b in zip(seen, expected, strict=True))
    assert all(p.grad is None for p in pair._teacher.parameters())
    assert all(p.grad is not None for p in pair.trained.parameters() if p.requires_grad)


def test_center_moves_once_from_ordinary_global_views_only() -> None:
    pair, loss = pair_and_loss(tiny())
    views = random_views(0, blend=True)
    teacher = torch.cat(pair.teacher(views.global_crops))
    dino_loss(pair, loss, views, 0.04, 1.0)
    torch.testing.assert_close(loss.center, 0.1 * teacher.mean(0))


def test_loss_is_the_sum_that_algorithm_1_says() -> None:
    pair, loss = pair_and_loss(tiny())
    pair.trained.eval()  # no stochastic depth, so that a second pass is the same
    loss.center.normal_()
    center = loss.center.clone()
    views = random_views(0, blend=True)
    assert views.blend is not None
    terms = dino_loss(pair, loss, views, 0.04, 0.7)
    primary, second = pair.teacher(views.global_crops)
    (other,) = pair.teacher([views.blend.secondary])
    (student,) = pair.student([views.blend.image])
    total = []
    for i, row in enumerate(views.blend.rows.tolist()):
        a = views.blend.alpha[i]
        mixed = a * primary[row] + (1 - a) * other[i]
        t = torch.softmax((mixed - center) / 0.04, -1)
        total.append(-(t * torch.log_softmax(student[i] / 0.1, -1)).sum())
    assert terms.disentangle is not None
    torch.testing.assert_close(terms.disentangle, torch.stack(total).mean())
    torch.testing.assert_close(terms.total, terms.dino + 0.7 * terms.disentangle)
    plain = DinoLoss(64)
    plain.center.copy_(center)
    answers = pair.student([*views.global_crops, *views.local_crops])
    torch.testing.assert_close(terms.dino, plain(answers, [primary, second], 0.04))


# --- whole trainings -----------------------------------------------------------------------


def test_without_weight_and_share_gen_dino_is_dino_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "view_loader", random_loader)
    config = tiny(disentangle_weight=0.0)
    plain = fit(tmp_path / "dino", config)
    gen = fit(tmp_path / "gen", config, augmentations=AUGMENTATIONS)
    assert "loss_disentangle" in gen.step_log()[0]
    assert same(state(plain)["parts"], state(gen)["parts"])
    weighted = fit(tmp_path / "weighted", tiny(), augmentations=AUGMENTATIONS)
    assert not same(state(plain)["parts"], state(weighted)["parts"])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_with_stored_images_and_share_0_it_is_dino_to_the_bit(tmp_path: Path, share: float) -> None:
    rng = np.random.default_rng(0)
    patches = make_patches(tmp_path / "patches.h5", noise(rng, 12, 40))
    refs = [PatchRef(patches.id, row) for row in range(12)]
    recipes = [Recipe.generative(ref, 1) for ref in refs]
    # Only half the patches have an interpolated image.
    recipes += [Recipe(refs[i], refs[-1 - i], 0.2 + 0.1 * i, 2) for i in range(6)]
    made = make_augmentations(
        tmp_path / "made.h5", noise(rng, len(recipes), 40), recipes, [patches.id]
    )
    views = tiny().views.model_copy(update={"synthetic_share": share})
    config = tiny(views=views, disentangle_weight=share)
    optim = OptimConfig(steps=4, batch_size=4, lr=0.02, warmup_steps=1)
    config = config.model_copy(update={"optim": optim})
    runs = []
    for name, augmentations in (("dino", []), ("gen", [made])):
        run = Run.start(tmp_path / name, name, config, {})
        train_dino(config, [patches], run, augmentations)
        runs.append(run)
    assert all(line["loss_disentangle"] > 0 for line in runs[1].step_log())
    assert same(*(state(run)["parts"] for run in runs)) == (share == 0)


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


def test_killed_and_resumed_with_the_real_loader_it_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    script = textwrap.dedent("""
        import os, signal, sys, torch
        from pathlib import Path
        from helpers_dino import Textures, tiny
        from pathgen.runs import Run
        from pathgen.train.dino import train_dino
        torch.set_num_threads(1)  # as in the test that started this
        class Killed(Run):
            def log(self, step, **values):
                super().log(step, **values)
                if step == int(sys.argv[2]):
                    os.kill(os.getpid(), signal.SIGKILL)
        config = tiny()
        run = Killed.start(Path(sys.argv[1]), "dino", config, {"patches": "textures"})
        train_dino(config, [Textures()], run)
    """)

    environment = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    command = [sys.executable, "-c", script, str(tmp_path / "killed"), "6"]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    killed = Run.open(tmp_path / "killed")
    assert killed.checkpoints()[-1].name == "step-00000004"
    assert killed.step_log()[-1]["step"] == 6
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
