"""A run folder resumes exactly what was asked, refuses what was not, and trusts no file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers_runs import Net, NetConfig, StageConfig, begin

from pathgen.errors import BusyError, RunError
from pathgen.runs import Run, RunConfig, load_model, save_model

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
    free = RunConfig(
        device="cpu", workers=3, save_every=7, log_every=2, accumulate=4, compile=False,
        recompute=True, keep_checkpoints=5, pictures_every=0, tensorboard=False,
    )  # fmt: skip
    assert begin(tmp_path, StageConfig(run=free)).id == first.id


@pytest.mark.parametrize(
    ("config", "inputs", "named"),
    [
        (StageConfig(rate=0.2), {"a": "1"}, "rate: it has 0.1, asked for 0.2"),
        (StageConfig(net=NetConfig(width=5)), {"a": "1"}, "net.width: it has 3, asked for 5"),
        (StageConfig(run=RunConfig(seed=1)), {"a": "1"}, "run.seed: it has 0, asked for 1"),
        (StageConfig(), {"a": "2"}, "other patches or models"),
        (StageConfig(), {"a": "1", "b": "2"}, "b: it has nothing, asked for 2"),
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
