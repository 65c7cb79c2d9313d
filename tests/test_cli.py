"""What a person sees: help, messages, exit codes. Most commands run in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pathgen import cli
from pathgen.cli import main
from pathgen.console import command_line
from pathgen.synthetic import SlideSpec, make_slide


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    code = stop.value.code
    return (0 if code is None else int(code)), out, err


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "one.svs"
    make_slide(path, SlideSpec(width=1536, height=1536, seed=3))
    return path


@pytest.mark.parametrize(
    "command",
    [[], ["info"], ["tile"], ["doctor"], ["pretrain"], ["extract-features"], ["train-mil"],
     ["evaluate", "knn"], ["evaluate", "mil"], ["report"], ["demo"], ["demo-slides"]],
    ids=" ".join,
)  # fmt: skip
def test_every_command_explains_itself(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert "Usage" in out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["info", "nowhere.svs"], 4, ["PG-", "nowhere.svs"]),
        (["tile", "nowhere/", "-o", "OUT"], 4, ["PG-N01", "nowhere"]),
        (["tile", "EMPTY", "-o", "OUT"], 4, ["PG-N01"]),
        (["tile", "EMPTY", "-o", "OUT", "--set", "patchsize=3"], 2, ["patchsize", "patch_size"]),
        (["tile", "SLIDE", "-o", "FILE"], 7, ["PG-O01", "not a folder"]),
        (["pretrain", "EMPTY", "-o", "OUT"], 4, ["PG-N01"]),
        (["pretrain", "EMPTY", "-o", "OUT", "--recipe", "tinny"], 2, ["PG-C02", "'tiny'"]),
        (["pretrain", "EMPTY", "-o", "OUT", "--stages", "dyno"], 2, ["PG-C03", "dyno"]),
        (["extract-features", "EMPTY", "--encoder", "x", "-o", "OUT"], 4, ["PG-N01"]),
        (["report", "nowhere"], 4, ["PG-N01", "nowhere"]),
        (["evaluate", "knn", "EMPTY"], 4, ["PG-N01"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_mistakes_get_one_clear_message(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    slide: Path,
    arguments: list[str],
    code: int,
    words: list[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    places = {"EMPTY": tmp_path / "empty", "OUT": tmp_path / "out", "FILE": tmp_path / "file"}
    given = [str({**places, "SLIDE": slide}.get(word, word)) for word in arguments]
    found, out, err = run(capsys, *given)
    assert found == code, err
    assert "Traceback" not in err
    assert not out
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("finished", "from_encoder", "count", "following"),
    [
        (["autoencoder"], None, "1 of 5", "--stages dino,ldm,augment,gen-dino"),
        (["dino", "autoencoder"], None, "2 of 5", "pathgen extract-features"),
        (["dino", "autoencoder"], "timm:vit", "1 of 4", "pathgen extract-features"),
        (["autoencoder"], "timm:vit", "1 of 4", "--stages ldm,augment,gen-dino"),
    ],
)
def test_pretrain_names_features_only_where_there_is_an_encoder(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    finished: list[str], from_encoder: str | None, count: str, following: str,
) -> None:  # fmt: skip
    pytest.importorskip("torch")
    from pathgen import pretraining

    result = pretraining.PretrainResult(
        tmp_path, pretraining.PretrainConfig(from_encoder=from_encoder),
        {stage: tmp_path / stage for stage in finished},
    )  # fmt: skip
    monkeypatch.setattr(pretraining, "pretrain", lambda *args, **options: result)
    code, out, _ = run(capsys, "pretrain", tmp_path, "-o", tmp_path)
    assert code == 0
    assert f"{count} stages are finished" in out
    assert following in out.splitlines()[-1]


def test_an_unknown_option_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "tile", "x", "-o", "y", "--patch-sice", "3")
    assert code == 2
    assert "patch-sice" in err


def test_info_prints_and_can_be_parsed(capsys: pytest.CaptureFixture[str], slide: Path) -> None:
    code, out, _ = run(capsys, "info", slide)
    assert code == 0
    assert "aperio" in out
    code, out, _ = run(capsys, "info", slide, "--json")
    facts = json.loads(out)
    assert facts["mpp_x"] == pytest.approx(0.5)


def test_tile_says_where_and_what_next_and_does_nothing_twice(
    capsys: pytest.CaptureFixture[str], slide: Path, tmp_path: Path
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "one.svs").symlink_to(slide)
    (tmp_path / "slides" / "broken.svs").write_text("not a slide")
    command = ("tile", tmp_path / "slides", "-o", tmp_path / "tiles", "--workers", 0)
    code, out, err = run(capsys, *command)
    assert code == 3  # one slide failed, the other is done
    assert "2 slides: 1 done, 0 empty, 1 failed" in out
    assert "Next: pathgen pretrain" in out
    assert "broken" in err
    store = tmp_path / "tiles" / "one.h5"
    before = store.stat()
    code, out, _ = run(capsys, *command, "--json")
    result = json.loads(out.splitlines()[-1])
    assert (result["done"], result["failed"]) == (1, 1)
    assert store.stat().st_mtime_ns == before.st_mtime_ns
    assert store.stat().st_ino == before.st_ino


def test_underscores_are_dashes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "tile", tmp_path, "-o", tmp_path / "o", "--patch_size", "0")
    assert code == 2
    assert "patch_size" in err


def test_a_bug_keeps_its_traceback_and_exits_with_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, slide: Path
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("pathgen.tiling.slide_info", fail)
    code, _, err = run(capsys, "info", slide)
    assert code == 1
    assert "PG-X01" in err
    assert "Traceback" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version")[1].startswith("pathgen 0.")


def test_a_closed_pipe_is_no_error(slide: Path) -> None:
    command = f"{sys.executable} -m pathgen info {slide} | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


def test_the_options_are_named_alike_everywhere() -> None:
    import typer.main

    group = typer.main.get_command(cli.app)
    for command in group.commands.values():  # type: ignore[attr-defined]
        for sub in getattr(command, "commands", {"": command}).values():
            names = {name for option in sub.params for name in option.opts}
            assert "--verbose" in names
            assert "--json" in names
            if sub.name not in ("info",):
                assert "--quiet" in names


def test_what_resumes_a_command_does_not_start_it_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["pathgen", "pretrain", "my tiles", "-o", "run", "--overwrite", "--no-resume"]
    monkeypatch.setattr(sys, "argv", words)
    assert command_line(resuming=True) == "pathgen pretrain 'my tiles' -o run"
    assert command_line().endswith("--overwrite --no-resume")
