"""The loop that trains every stage: exact over stops and accumulation, and watchful."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers_runs import Net, NetConfig
from PIL import Image
from torch import Tensor, nn

from pathgen.checkpoints import read_checkpoint
from pathgen.errors import ConfigError, PathgenError, RunError, Stopped
from pathgen.exchange.tfrecord import BadRecord, read_frames
from pathgen.models.chance import drawn
from pathgen.parallel import Share
from pathgen.runs import Run, RunConfig
from pathgen.train.engine import Engine, StopRequest
from pathgen.train.loop import Objective, Stage, Terms, train
from pathgen.train.optimize import Optimizer
from pathgen.train.sheets import Picture

pytestmark = pytest.mark.usefixtures("one_thread")

BATCH = 12


class Rows(NamedTuple):
    x: Tensor
    y: Tensor


class Linear(Stage[Rows]):
    """Least squares with noise in it, drawn for each sample."""

    def __init__(self, config: RunConfig, steps: int = 6) -> None:
        self.engine, self.steps, self.batch_size = Engine(config), steps, BATCH
        self.net = Net(NetConfig())
        self.optimizer = Optimizer(self.net, self.engine, clip_norm=1.0)
        self.parts = {"net": self.net, "optimizer": self.optimizer}
        self.at: Callable[[int], object] = lambda step: None
        self.factor: dict[int, float] = {}

    @property
    def objectives(self) -> Sequence[Objective[Rows]]:
        return [Objective(self.optimizer, self.loss)]

    def batches(self, start: int, share: Share) -> Iterator[Rows]:
        for step in range(start, self.steps):
            draw = torch.Generator().manual_seed(step)
            x = torch.randn(BATCH, 3, generator=draw)
            yield Rows(x[share.rows], x[share.rows, :2] * 2)

    def schedule(self, step: int) -> dict[str, float]:
        self.optimizer.set(lr=0.1)
        return {"lr": 0.1}

    def loss(self, batch: Rows, step: int, share: Share) -> Terms:
        noise = drawn(lambda n: torch.randn(n, 2), len(batch.x))
        errors = (self.net.layer(batch.x) - batch.y + 0.1 * noise).square().mean(1)
        return {"loss": errors.mean() * self.factor.get(step, 1.0), "spread": errors.mean()}

    def after(self, step: int) -> None:
        self.at(step)


def config(**more: Any) -> RunConfig:
    return RunConfig(**{"device": "cpu", "log_every": 1, "save_every": 2} | more)


def go(path: Path, stage: Linear) -> Run:
    run = Run.start(path, "stage", stage.engine.config, {})
    train(stage, run)
    return run


def lines(run: Run) -> list[dict[str, Any]]:
    return [{k: v for k, v in x.items() if k != "images_per_second"} for x in run.step_log()]


def weights(run: Run) -> dict[str, Tensor]:
    found: dict[str, Tensor] = read_checkpoint(run.checkpoints()[-1])["parts"]["net"]
    return found


# --- the steps -----------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [2, 3, 12])
def test_accumulated_passes_are_the_whole_batch(tmp_path: Path, passes: int) -> None:
    """Same chance for every sample, same gradient, same log."""
    whole = go(tmp_path / "whole", Linear(config()))
    parts = go(tmp_path / "parts", Linear(config(accumulate=passes)))
    for a, b in zip(lines(whole), lines(parts), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    torch.testing.assert_close(weights(parts), weights(whole))


def test_a_batch_that_cannot_be_accumulated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"PG-T06.*12 patches for 5 parts"):
        go(tmp_path / "run", Linear(config(accumulate=5)))


def test_a_second_objective_has_its_own_optimizer_and_the_first_ones_loss_is_logged(
    tmp_path: Path,
) -> None:
    class Two(Linear):
        def __init__(self, config: RunConfig) -> None:
            super().__init__(config)
            self.other = nn.Parameter(torch.tensor([3.0]))
            self.second = Optimizer(nn.ParameterList([self.other]), self.engine, lr=0.5)

        @property
        def objectives(self) -> Sequence[Objective[Rows]]:
            return [*super().objectives, Objective(self.second, self.adversary)]

        def adversary(self, batch: Rows, step: int, share: Share) -> Terms:
            return {"loss": self.other.square().sum(), "size": self.other.abs().sum()}

    stage = Two(config())
    run = go(tmp_path / "two", stage)
    plain = go(tmp_path / "one", Linear(config()))
    assert [x["loss"] for x in lines(run)] == [x["loss"] for x in lines(plain)]
    assert lines(run)[0]["size"] == 3.0
    assert abs(float(stage.other.detach())) < 0.5  # from 3, in six of Adam's steps of about 0.5


# --- stops and checkpoints -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_in_a_checkpoint_and_it_goes_on_to_the_same_bits(
    tmp_path: Path, name: str
) -> None:
    before = {n: signal.getsignal(getattr(signal, n)) for n in StopRequest.SIGNALS}
    stage = Linear(config(save_every=100))
    stage.at = lambda step: step == 2 and os.kill(os.getpid(), getattr(signal, name))
    with pytest.raises(Stopped, match=f"after step 3 of 6.*{name}") as caught:
        go(tmp_path / "run", stage)
    assert (caught.value.exit_code, caught.value.code) == (85, "PG-T07")
    assert before == {n: signal.getsignal(getattr(signal, n)) for n in StopRequest.SIGNALS}
    torch.manual_seed(99)  # what the process did in between is of no consequence
    run = go(tmp_path / "run", Linear(config()))
    whole = go(tmp_path / "whole", Linear(config()))
    assert lines(run) == lines(whole)
    assert all(torch.equal(x, weights(whole)[key]) for key, x in weights(run).items())


def test_a_stop_during_the_last_step_lets_it_end(tmp_path: Path) -> None:
    stage = Linear(config(keep_checkpoints=1))
    stage.at = lambda step: step == 5 and os.kill(os.getpid(), signal.SIGTERM)
    run = go(tmp_path / "run", stage)
    assert [path.name for path in run.checkpoints()] == ["step-00000006"]


def test_outside_the_main_thread_there_are_no_handlers_but_a_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops: list[StopRequest] = []
    enter = StopRequest.__enter__
    monkeypatch.setattr(StopRequest, "__enter__", lambda stop: stops.append(stop) or enter(stop))
    stage, caught = Linear(config()), []
    stage.at = lambda step: stops[-1].request()

    def work() -> None:
        try:
            go(tmp_path / "run", stage)
        except PathgenError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [type(error) for error in caught] == [Stopped]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_kept(
    tmp_path: Path, exact: bool, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked at once, as on the CPU, or before anything is logged or kept, as on a GPU."""
    monkeypatch.setattr(Engine, "is_exact", property(lambda self: exact))
    stage = Linear(config(log_every=100, save_every=3))
    stage.factor = {4: bad}
    with pytest.raises(RunError, match="at step 4") as caught:
        go(tmp_path / "run", stage)
    assert caught.value.code == "PG-T03"
    assert "step-00000003" in str(caught.value)
    run = Run.open(tmp_path / "run")
    assert [path.name for path in run.checkpoints()] == ["step-00000003"]
    assert all(bool(torch.isfinite(x).all()) for x in weights(run).values())


def test_the_hot_loop_asks_a_gpu_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two log lines no tensor becomes a number, which a GPU would be waited for."""
    asked: list[str] = []
    stage = Linear(config(log_every=100, save_every=100))
    monkeypatch.setattr(Engine, "is_exact", property(lambda self: False))
    for group in stage.optimizer.adamw.param_groups:
        group["fused"] = True  # as on a GPU; the plain one counts its steps in numbers
    for name in ("item", "tolist", "__float__", "__int__", "__bool__", "cpu", "numpy"):
        real = getattr(Tensor, name)

        def watched(self: Tensor, *args: Any, _real: Any = real, _name: str = name) -> Any:
            asked.append(_name)
            return _real(self, *args)

        monkeypatch.setattr(Tensor, name, watched)
    seen: list[int] = []
    stage.at = lambda step: seen.append(len(asked))
    go(tmp_path / "run", stage)
    assert seen[1] == seen[4]  # steps 2 to 4, after the log line of step 0
    assert len(asked) > seen[4]  # the last step is logged and kept


# --- what it shows -------------------------------------------------------------------------


class Painted(Linear):
    def pictures(self, batch: Rows, step: int) -> Mapping[str, Sequence[Sequence[Picture]]]:
        return {"dots": [[Picture(str(step), np.full((8, 8, 3), 10 * step, np.uint8))]]}


def test_pictures_come_as_often_as_asked(tmp_path: Path) -> None:
    run = go(tmp_path / "run", Painted(config(pictures_every=2)))
    found = sorted(path.name for path in (run.path / "pictures").iterdir())
    assert found == [f"step-0000000{n}-dots.png" for n in (2, 4, 6)]
    with Image.open(run.path / "pictures" / found[0]) as sheet:
        assert sheet.getpixel((64, 80)) == (10, 10, 10)
    for wanted in (0, "auto"):  # six steps are too few for a picture of their own accord
        other = go(tmp_path / str(wanted), Painted(config(pictures_every=wanted)))
        assert not (other.path / "pictures").exists()


def fields(data: bytes) -> dict[int, Any]:
    """Protocol buffer wire format: varints, doubles, floats and bytes, by field number."""
    found: dict[int, Any] = {}
    at = 0
    while at < len(data):
        number, kind, at = data[at] >> 3, data[at] & 7, at + 1
        if kind in (1, 5):
            width = 8 if kind == 1 else 4
            found[number] = np.frombuffer(data[at : at + width], f"<f{width}")[0]
            at += width
            continue
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        if kind == 2:
            found.setdefault(number, []).append(data[at : at + value])
            at += value
        else:
            found[number] = value
    return found


def events(path: Path) -> list[dict[int, Any]]:
    return [fields(data) for data in read_frames(path)]


def test_tensorboard_has_what_the_log_has(tmp_path: Path) -> None:
    run = go(tmp_path / "run", Painted(config(pictures_every=4)))
    (path,) = (run.path / "tensorboard").iterdir()
    assert "tfevents" in path.name
    first, start, *rest = events(path)
    assert first[3] == [b"brain.Event:2"]
    assert fields(start[7][0]) == {
        1: 1
    }  # SessionLog.START: what others have of later steps is void
    curve, pictures = {}, []
    for event in rest:
        for value in (fields(v) for v in fields(event[5][0])[1]):
            if value[1] == [b"loss"]:
                curve[event.get(2, 0)] = value[2]
            if 4 in value:
                pictures.append((event[2], value[1], fields(value[4][0])))
    for line in lines(run):
        assert curve[line["step"]] == pytest.approx(line["loss"], rel=1e-6)
    ((step, tag, image),) = pictures
    assert (step, tag) == (4, [b"dots"])
    assert image[4][0] == (run.path / "pictures" / "step-00000004-dots.png").read_bytes()
    with Image.open(run.path / "pictures" / "step-00000004-dots.png") as sheet:
        assert (image[2], image[1]) == sheet.size


def test_a_resumed_run_voids_the_events_it_does_again(tmp_path: Path) -> None:
    stage = Linear(config())
    stage.factor = {5: float("nan")}
    with pytest.raises(RunError):
        go(tmp_path / "run", stage)
    run = go(tmp_path / "run", Linear(config()))
    old, new = sorted((run.path / "tensorboard").iterdir())
    assert events(old)[-1][2] == 4
    assert events(new)[1][2] == 4
    assert fields(events(new)[1][7][0]) == {1: 1}
    old.write_bytes(old.read_bytes()[:-3])
    with pytest.raises(BadRecord):
        events(old)
    without = go(tmp_path / "without", Linear(config(tensorboard=False)))
    assert not (without.path / "tensorboard").exists()


def test_compiling_where_it_cannot_be_done_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pathgen.train.engine.compile_problem", lambda device: "no compiler here")
    with pytest.raises(RunError, match=r"PG-T09.*[Nn]o compiler here"):
        go(tmp_path / "run", Linear(config(compile=True)))
    assert Engine(config(compile="auto")).prepare([]) is None  # not on the CPU of its own accord
    on_gpu = Engine(config(compile="auto"))
    on_gpu.device = torch.device("cuda")
    assert on_gpu.prepare([]) == "no compiler here"
    with pytest.raises(ConfigError, match="PG-C04"):
        Engine(config(recompute=True)).prepare([nn.Linear(2, 2)])


def test_lines_of_the_log_are_plain_json(tmp_path: Path) -> None:
    run = go(tmp_path / "run", Linear(config()))
    for line in (run.path / "log.jsonl").read_text().splitlines():
        assert {"step", "loss", "spread", "lr", "gradient_norm"} <= set(json.loads(line))
