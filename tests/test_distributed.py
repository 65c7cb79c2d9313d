"""Two processes train what one does: the same losses, one run folder, one end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_distributed import autoencoder, dino, dino_config, ldm, ldm_config, prepare
from torch import Tensor

from pathgen import parallel
from pathgen.checkpoints import read_checkpoint
from pathgen.errors import RunError, Stopped
from pathgen.parallel import Share, whole
from pathgen.runs import Run

pytestmark = pytest.mark.usefixtures("one_thread")

TESTS = Path(__file__).resolve().parent
CLOSE: dict[str, float] = {"rtol": 2e-4, "atol": 2e-5}
NAMES = ("dino", "ldm", "autoencoder", "shrunk", "stopped", "poisoned", "odd")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    prepare(folder)
    dino(folder, "dino", dino_config())
    ldm(folder, "ldm", ldm_config())
    autoencoder(folder, "autoencoder")
    return folder


@pytest.fixture(scope="module")
def two(one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a launcher with two processes leaves, after one process began "shrunk"."""
    folder = tmp_path_factory.mktemp("two")
    for name in ("patches.h5", "made.h5", "features.h5"):
        (folder / name).symlink_to(one / name)
    with pytest.raises(Stopped):
        dino(folder, "stopped", dino_config(log_every=1))  # by one process, at step 1
    (folder / "stopped").rename(folder / "shrunk")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
        "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0",
        str(TESTS / "helpers_distributed.py"), str(folder), *NAMES,
    ]  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def said(folder: Path, name: str) -> list[dict[str, Any]]:
    """What each of the two processes raised."""
    return [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]


def lines(run: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line.items() if name != "images_per_second"}
        for line in Run.open(run).step_log()
    ]


def same_lines(a: Path, b: Path) -> None:
    """All that was logged, within what float sums differ by."""
    mine, its = lines(a), lines(b)
    assert [line.keys() for line in mine] == [line.keys() for line in its]
    for x, y in zip(mine, its, strict=True):
        torch.testing.assert_close(torch.tensor(list(x.values())), torch.tensor(list(y.values())),
                                   **CLOSE)  # fmt: skip


def same_weights(a: Path, b: Path) -> None:
    mine, its = (read_checkpoint(Run.open(run).checkpoints()[-1])["parts"] for run in (a, b))
    for name in mine.keys() - {"optimizer", "discriminator_optimizer"}:
        for key, value in mine[name].items():
            assert isinstance(value, Tensor)
            torch.testing.assert_close(value, its[name][key], rtol=1e-2, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["dino", "ldm", "autoencoder"])
def test_two_processes_train_the_same_losses_as_one(one: Path, two: Path, name: str) -> None:
    """Gen-DINO with uneven blends, stochastic depth and a frozen layer; the E-LDM; the
    autoencoder with its critic."""
    assert said(two, name) == [{}, {}]
    same_lines(one / name, two / name)
    same_weights(one / name, two / name)
    losses = [line["loss"] for line in lines(two / name)]
    assert len(losses) == 4
    assert max(losses) - min(losses) > 100 * CLOSE["rtol"] * max(
        losses
    )  # there is something to see


def test_one_process_alone_writes_the_run(two: Path) -> None:
    assert [line["step"] for line in lines(two / "dino")] == [0, 1, 2, 3]
    assert Run.open(two / "dino").finished
    assert not list(two.rglob(".pathgen-tmp-*"))


def test_begun_by_one_process_and_ended_by_two(one: Path, two: Path) -> None:
    assert said(two, "shrunk") == [{}, {}]
    same_lines(one / "dino", two / "shrunk")


def test_a_signal_to_one_process_stops_both_and_one_alone_goes_on(one: Path, two: Path) -> None:
    for problem in said(two, "stopped"):
        assert (problem["code"], problem["exit"]) == ("PG-T07", 85)
        assert "after step 2 of 4" in str(problem["what"])
    run = Run.open(two / "stopped")
    assert [path.name for path in run.checkpoints()] == ["step-00000002"]
    run.path.rename(two / "goes-on")  # no signal this time
    dino(two, "goes-on", dino_config())
    same_lines(one / "dino", two / "goes-on")
    same_weights(one / "dino", two / "goes-on")


def test_a_number_that_is_none_in_one_process_stops_both(two: Path) -> None:
    for problem in said(two, "poisoned"):
        assert problem["code"] == "PG-T03"
        assert "step 3" in str(problem["what"])
        assert "step-00000002" in str(problem["why"])
    state = read_checkpoint(Run.open(two / "poisoned").checkpoints()[-1])
    assert all(bool(torch.isfinite(value).all()) for value in state["parts"]["pair"].values())


def test_a_batch_that_cannot_be_shared_out_is_refused(two: Path) -> None:
    for problem in said(two, "odd"):
        assert problem["code"] == "PG-T06"
        assert problem["why"] == "7 patches for 2 processes"


@pytest.mark.parametrize(("gpus", "expected"), [(0, False), (1, False), (2, True)])
def test_gpus_are_taken_when_there_is_one_for_each_process(
    gpus: int, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes on the CPU of a machine with one GPU must not ask for a second."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert parallel._has_gpu_each() == expected


def test_shares_are_every_row_once() -> None:
    shares = [part for share in whole(12).parts(2) for part in share.parts(3)]
    assert [row for share in shares for row in range(12)[share.rows]] == list(range(12))
    assert {share.size for share in shares} == {2}
    assert Share(6, 12, 12).parts(2) == [Share(6, 9, 12), Share(9, 12, 12)]
    with pytest.raises(RunError, match="6 patches for 4 parts"):
        Share(6, 12, 12).parts(4)
