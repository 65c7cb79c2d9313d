"""A checkpoint is whole or absent, comes back to the bit, and runs nothing."""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_runs import Net, NetConfig, begin
from safetensors.torch import load_file
from torch import nn

from pathgen.checkpoints import fingerprint, read_checkpoint
from pathgen.errors import RunError, StorageError
from pathgen.runs import Run, RunConfig

ROOT = Path(__file__).resolve().parents[1]


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


def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path: Path) -> None:
    run = begin(tmp_path)
    for step in (1, 2, 3):
        run.save(step, net=Net(NetConfig()))
    assert [path.name for path in run.checkpoints()] == ["step-00000002", "step-00000003"]
    run.save(4, keep=3, net=Net(NetConfig()))
    assert len(run.checkpoints()) == 3
    run.save(5, keep=1, net=Net(NetConfig()))
    assert [path.name for path in run.checkpoints()] == ["step-00000005"]
    assert not list((run.path / "checkpoints").glob(".*"))


def test_networks_and_averages_are_safetensors_and_the_rest_is_not(tmp_path: Path) -> None:
    run, net = begin(tmp_path), Net(NetConfig())
    optimizer = torch.optim.AdamW(net.parameters())
    net.layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    folder = run.save(7, net=net, optimizer=optimizer)
    assert {path.name for path in folder.iterdir()} == {"COMPLETE", "net.safetensors", "state.pt"}
    assert torch.equal(load_file(folder / "net.safetensors")["layer.weight"], net.layer.weight)
    state = torch.load(folder / "state.pt", weights_only=True)
    assert set(state) == {"parts", "random", "step"}
    assert set(state["parts"]) == {"optimizer"}
    assert set(read_checkpoint(folder)["parts"]) == {"net", "optimizer"}


def test_a_checkpoint_of_the_format_before_is_refused_by_name(tmp_path: Path) -> None:
    run = begin(tmp_path)
    folder = run.save(1, net=Net(NetConfig()))
    (folder / "COMPLETE").write_text(json.dumps({"step": 1, **fingerprint(folder / "state.pt")}))
    with pytest.raises(RunError, match="PG-T04 checkpoint is of an older format"):
        run.restore(net=Net(NetConfig()))


def test_a_full_disk_is_said_as_such_and_leaves_no_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(*_: Any) -> None:
        raise SafetensorError("Error: I/O error: No space left on device (os error 28)")

    run = begin(tmp_path)
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(StorageError, match="PG-O03 no space left"):
        run.save(1, net=Net(NetConfig()))
    assert not run.checkpoints()
    assert not list(run.path.rglob(".pathgen-tmp-*"))


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


def _cut(path: Path, name: str = "state.pt") -> None:
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: len(data) // 2])


def _flip(path: Path, name: str = "state.pt") -> None:
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)


DAMAGES: list[Callable[[Path], object]] = [
    _cut,
    _flip,
    lambda path: _flip(path, "net.safetensors"),
    lambda path: (path / "COMPLETE").unlink(),
    lambda path: (path / "COMPLETE").write_text("{"),
    lambda path: (path / "COMPLETE").write_text("{}"),
    lambda path: (path / "state.pt").unlink(),
    lambda path: (path / "net.safetensors").unlink(),
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


def test_a_damaged_later_checkpoint_pushes_no_good_one_out(tmp_path: Path) -> None:
    run = begin(tmp_path)
    run.save(1, net=Net(NetConfig()))
    _cut(run.save(9, net=Net(NetConfig())))
    assert run.restore(net=Net(NetConfig())) == 1
    run.save(3, keep=1, net=Net(NetConfig()))
    assert [path.name for path in run.checkpoints()] == ["step-00000003", "step-00000009"]
    assert run.restore(net=Net(NetConfig())) == 3


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
    if forced:  # turns torch's default off; an explicit argument resists it
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    run = begin(tmp_path)
    folder = run.save(1, net=Net(NetConfig()))
    canary = tmp_path / "executed"
    torch.save({"parts": Evil(canary)}, folder / "state.pt")
    seal = {"step": 1, "files": {"state.pt": fingerprint(folder / "state.pt")}}
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
