"""A run folder resumes exactly what was asked, refuses what was not, and trusts no file."""

from __future__ import annotations

import ast
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field
from torch import nn

from pathgen.config import Config
from pathgen.errors import BusyError, ConfigError, PathgenError, RunError, Stopped
from pathgen.runs import Run, RunConfig, load_model, save_model
from pathgen.train.engine import (
    Engine,
    StopRequest,
    checkpoint,
    choose_precision,
    find_device,
)

ROOT = Path(__file__).resolve().parents[1]


class NetConfig(Config):
    width: int = 3


class Net(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(config.width, 2)


class StageConfig(Config):
    net: NetConfig = NetConfig()
    rate: float = 0.1
    run: RunConfig = Field(default_factory=RunConfig)


def begin(path: Path, config: StageConfig | None = None, **kwargs: Any) -> Run:
    return Run.start(path / "run", "stage", config or StageConfig(), {"a": "1"}, **kwargs)


# --- start ---------------------------------------------------------------------------------


def test_a_new_run_says_what_was_asked(tmp_path: Path) -> None:
    run = begin(tmp_path)
    assert "rate: 0.1" in (run.path / "config.yaml").read_text()
    assert json.loads((run.path / "provenance.json").read_text())["inputs"] == {"a": "1"}
    assert json.loads((run.path / "environment.json").read_text())["python"]
    assert not run.finished
    assert run.restore() == 0
    assert Run.open(run.path).id == run.id


def test_settings_that_cannot_change_a_result_may_change(tmp_path: Path) -> None:
    first = begin(tmp_path)
    free = RunConfig(device="cpu", workers=3, save_every=7, log_every=2)
    assert begin(tmp_path, StageConfig(run=free)).id == first.id


@pytest.mark.parametrize(
    ("config", "inputs", "named"),
    [
        (StageConfig(rate=0.2), {"a": "1"}, "rate: it has 0.1, asked for 0.2"),
        (StageConfig(net=NetConfig(width=5)), {"a": "1"}, "net.width: it has 3, asked for 5"),
        (StageConfig(run=RunConfig(seed=1)), {"a": "1"}, "run.seed: it has 0, asked for 1"),
        (StageConfig(), {"a": "2"}, "inputs.a: it has 1, asked for 2"),
        (StageConfig(), {"a": "1", "b": "2"}, "inputs.b: it has nothing, asked for 2"),
    ],
)
def test_another_setting_is_refused_by_name(
    tmp_path: Path, config: StageConfig, inputs: dict[str, str], named: str
) -> None:
    begin(tmp_path)
    with pytest.raises(RunError) as caught:
        Run.start(tmp_path / "run", "stage", config, inputs)
    assert caught.value.code == "PG-T04"
    assert named in str(caught.value)
    assert "--overwrite" in str(caught.value)


def test_overwrite_starts_anew_and_leaves_strangers_alone(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.save(1, net=Net(NetConfig()))
    run.finish(None, {"x": 1})
    (run.path / "notes.txt").write_text("mine")
    again = begin(tmp_path, StageConfig(rate=0.2), overwrite=True)
    assert not again.finished
    assert not again.checkpoints()
    assert (run.path / "notes.txt").read_text() == "mine"


def test_a_folder_with_remains_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(RunError, match=r"no provenance\.json"):
        begin(tmp_path)


def test_two_processes_cannot_hold_one_run(tmp_path: Path) -> None:
    from pathgen.commit import lock

    run = begin(tmp_path)
    with lock(run.path), pytest.raises(BusyError):
        begin(tmp_path)


def test_a_resume_elsewhere_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(tmp_path)
    begin(tmp_path)
    assert "resumed" not in json.loads((run.path / "environment.json").read_text())
    monkeypatch.setattr("pathgen.runs.environment", lambda: {"python": "9"})
    begin(tmp_path)
    begin(tmp_path)
    assert json.loads((run.path / "environment.json").read_text())["resumed"] == [{"python": "9"}]


# --- the log and checkpoints ---------------------------------------------------------------


def test_restore_cuts_the_log_back_to_the_checkpoint(tmp_path: Path) -> None:
    run = begin(tmp_path)
    net = Net(NetConfig())
    for step in range(5):
        run.log(step, loss=step / 2, bad=float("nan"))
        if step == 2:
            run.save(step + 1, net=net)
    with (run.path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    assert begin(tmp_path).restore(net=net) == 3
    assert [line["step"] for line in run.step_log()] == [0, 1, 2]
    assert run.step_log()[1] == {"step": 1, "loss": 0.5, "bad": None}


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run = begin(tmp_path)
    for step in (1, 2, 3):
        run.save(step, net=Net(NetConfig()))
    assert [path.name for path in run.checkpoints()] == ["step-00000002", "step-00000003"]
    assert not list((run.path / "checkpoints").glob(".*"))


def test_parts_and_random_states_come_back(tmp_path: Path) -> None:
    run = begin(tmp_path)
    net = Net(NetConfig())
    optimizer = torch.optim.AdamW(net.parameters())
    net.layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    run.save(4, net=net, optimizer=optimizer)

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    expected = draw()
    other = Net(NetConfig())
    fresh = torch.optim.AdamW(other.parameters())
    assert run.restore(net=other, optimizer=fresh) == 4
    assert draw() == expected
    assert torch.equal(other.layer.weight, net.layer.weight)
    moments = [s["exp_avg"] for s in fresh.state.values()]
    for mine, its in zip(moments, optimizer.state.values(), strict=True):
        assert torch.equal(mine, its["exp_avg"])


def _cut(path: Path) -> None:
    data = (path / "state.pt").read_bytes()
    (path / "state.pt").write_bytes(data[: len(data) // 2])


def _flip(path: Path) -> None:
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(data)


DAMAGES: list[Callable[[Path], object]] = [
    _cut,
    _flip,
    lambda path: (path / "COMPLETE").unlink(),
    lambda path: (path / "COMPLETE").write_text("{"),
    lambda path: (path / "state.pt").unlink(),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    run = begin(tmp_path)
    first, second = Net(NetConfig()), Net(NetConfig())
    run.save(1, net=first)
    damage(run.save(2, net=second))
    found = Net(NetConfig())
    assert run.restore(net=found) == 1
    assert torch.equal(found.layer.weight, first.layer.weight)


def test_when_every_checkpoint_is_damaged_nothing_starts_silently_anew(tmp_path: Path) -> None:
    run = begin(tmp_path)
    _cut(run.save(1, net=Net(NetConfig())))
    with pytest.raises(RunError, match="no checkpoint can be read"):
        run.restore(net=Net(NetConfig()))


def test_a_checkpoint_of_another_architecture_is_refused_with_the_difference(
    tmp_path: Path,
) -> None:
    run = begin(tmp_path)
    run.save(1, net=Net(NetConfig()))
    wide = Net(NetConfig(width=8))
    before = wide.layer.weight.clone()
    with pytest.raises(RunError) as caught:
        run.restore(net=wide)
    assert "net.layer.weight expects (2, 8), file has (2, 3)" in str(caught.value)
    assert torch.equal(wide.layer.weight, before)
    with pytest.raises(RunError, match="other parts"):
        run.restore(network=Net(NetConfig()))


def test_killed_at_any_moment_a_complete_checkpoint_remains(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys, torch
        from pathlib import Path
        from torch import nn
        from pathgen.runs import Run, RunConfig
        run = Run.start(Path(sys.argv[1]), "stage", RunConfig(), {})
        net = nn.Linear(300, 300)
        for step in range(1, 100_000):
            with torch.no_grad():
                net.weight.fill_(step)
            run.save(step, net=net)
            print(step, flush=True)
    """)
    path = tmp_path / "run"
    for wait in (0.0, 0.007):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        assert process.stdout is not None
        for _ in range(4):
            last = int(process.stdout.readline())
        time.sleep(wait)
        process.kill()
        process.communicate()
        net = nn.Linear(300, 300)
        run = Run.start(path, "stage", RunConfig(), {})
        step = run.restore(net=net)
        assert step >= last
        assert (net.weight == step).all()
        assert not list(path.rglob(".pathgen-tmp-*"))


# --- files from strangers ------------------------------------------------------------------


class Evil:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("forced", [False, True])
def test_a_pickle_bomb_is_refused_and_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forced: bool
) -> None:
    from pathgen.checkpoints import fingerprint

    if forced:  # turns torch's default off; an explicit argument resists it
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    run = begin(tmp_path)
    folder = run.save(1, net=Net(NetConfig()))
    canary = tmp_path / "executed"
    torch.save({"parts": Evil(canary)}, folder / "state.pt")
    seal = {"step": 1, **fingerprint(folder / "state.pt")}
    (folder / "COMPLETE").write_text(json.dumps(seal))
    with pytest.raises(RunError) as caught:
        run.restore(net=Net(NetConfig()))
    assert caught.value.code == "PG-T05"
    assert not canary.exists()


def test_every_torch_load_says_weights_only() -> None:
    found = 0
    for path in [*ROOT.glob("pathgen/**/*.py"), *ROOT.glob("benchmarks/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                found += 1
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"
            assert not (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) in ("pickle.load", "pickle.loads", "pickle.Unpickler")
            ), f"{path}:{node.lineno}"
    assert found


# --- models --------------------------------------------------------------------------------


def test_a_model_comes_back_from_its_folder_or_its_run(tmp_path: Path) -> None:
    run = begin(tmp_path)
    net = Net(NetConfig(width=4))
    run.finish(net, {"loss": 1.0})
    assert run.finished
    assert begin(tmp_path).finished
    assert run.metrics == {"loss": 1.0}
    for path in (run.path, run.path / "model"):
        again = load_model(path, Net)
        assert again.config == net.config
        assert torch.equal(again.layer.weight, net.layer.weight)
        assert not again.training


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    net = Net(NetConfig())
    save_model(tmp_path / "a", net)
    save_model(tmp_path / "b", net)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    class Other(Net):
        pass

    save_model(tmp_path / "m", Net(NetConfig()))
    with pytest.raises(RunError, match="'Net', needed is 'Other'"):
        load_model(tmp_path / "m", Other)
    description = json.loads((tmp_path / "m" / "config.json").read_text())
    description["config"]["width"] = 9
    (tmp_path / "m" / "config.json").write_text(json.dumps(description))
    with pytest.raises(RunError, match=r"layer\.weight expects \(2, 9\), file has \(2, 3\)"):
        load_model(tmp_path / "m", Net)
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(RunError, match="cannot be read"):
        load_model(tmp_path / "m", Net)
    with pytest.raises(RunError, match="no model here"):
        load_model(tmp_path / "nothing", Net)
    with pytest.raises(RunError, match="not finished"):
        load_model(begin(tmp_path).path, Net)


# --- the engine ----------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_named() -> None:
    assert find_device("cpu").type == "cpu"
    for name in ("gpu", "cuda:99"):
        with pytest.raises(ConfigError) as caught:
            find_device(name)
        assert caught.value.code == "PG-C05"


def test_precision_on_the_cpu_is_single_unless_asked() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == "fp32"
    assert choose_precision("bf16", cpu) == "bf16"
    with pytest.raises(ConfigError, match="needs a GPU"):
        choose_precision("fp16", cpu)


def test_engines_of_different_precision_live_one_after_the_other() -> None:
    x = torch.ones(2, 2)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)) * 2:
        engine = Engine(RunConfig(device="cpu", precision=precision))
        with engine.autocast():
            assert (x @ x).dtype == dtype


def test_a_seed_decides_every_generator_and_each_step_its_own() -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    engine = Engine(RunConfig(device="cpu", seed=5))
    first = draw()
    Engine(RunConfig(device="cpu", seed=5))
    assert draw() == first
    engine.at_step(3)
    third = draw()
    engine.at_step(4)
    assert draw() != third
    engine.at_step(3)
    assert draw() == third


def test_a_loss_that_is_not_finite_names_step_and_checkpoint(tmp_path: Path) -> None:
    run = begin(tmp_path)
    engine = Engine(RunConfig(device="cpu"))
    assert engine.finite(torch.tensor(2.0), 0, run) == 2.0
    run.save(40, net=Net(NetConfig()))
    with pytest.raises(RunError) as caught:
        engine.finite(torch.tensor(float("nan")), 41, run)
    assert caught.value.code == "PG-T03"
    assert "step 41" in str(caught.value)
    assert "step-00000040" in str(caught.value)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_ends_in_a_checkpoint_and_stopped(tmp_path: Path, name: str) -> None:
    run, net = begin(tmp_path), Net(NetConfig())
    before = {n: signal.getsignal(getattr(signal, n)) for n in StopRequest.SIGNALS}
    done = 0

    def train() -> None:
        nonlocal done
        with StopRequest() as stop:
            for done, _ in enumerate(stop.batches(range(10)), 1):
                if done == 3:
                    os.kill(os.getpid(), getattr(signal, name))
                checkpoint(run, done, 10, stop, 100, net=net)

    with pytest.raises(Stopped) as caught:
        train()
    assert caught.value.exit_code == 85
    assert caught.value.code == "PG-T07"
    assert name in str(caught.value)
    assert done == 3
    assert run.restore(net=net) == 3
    assert before == {n: signal.getsignal(getattr(signal, n)) for n in StopRequest.SIGNALS}


def test_a_second_interrupt_is_immediate() -> None:
    def interrupt_twice() -> None:
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        interrupt_twice()


def test_outside_the_main_thread_there_are_no_handlers_but_a_request(tmp_path: Path) -> None:
    run, caught = begin(tmp_path), []

    def work() -> None:
        with StopRequest() as stop:
            stop.request()
            try:
                checkpoint(run, 1, 5, stop, 100, net=Net(NetConfig()))
            except PathgenError as error:
                caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [type(error) for error in caught] == [Stopped]


def test_a_worker_killed_by_the_same_signal_is_part_of_stopping() -> None:
    stop = StopRequest()

    def loader() -> Any:
        yield 1
        stop.request()
        raise RuntimeError("DataLoader worker exited unexpectedly")

    assert list(stop.batches(loader())) == [1]
    with pytest.raises(RuntimeError, match="other"):
        list(StopRequest().batches(_failing()))


def _failing() -> Any:
    yield 1
    raise RuntimeError("other")


def test_the_last_step_saves_and_a_late_stop_lets_it_end(tmp_path: Path) -> None:
    run, stop = begin(tmp_path), StopRequest()
    stop.request()
    checkpoint(run, 5, 5, stop, 100, net=Net(NetConfig()))
    assert [path.name for path in run.checkpoints()] == ["step-00000005"]
