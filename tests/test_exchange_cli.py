"""The commands export and import, as a new user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_exchange import write_features, write_patches
from typer.testing import CliRunner

from pathgen.cli import app

pytest.importorskip("torch")
run = CliRunner()


def test_out_and_back(tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "tiles/S1.h5", "S1", label="tumor")
    write_features(tmp_path / "f/S1.h5", patches)
    done = run.invoke(app, ["export", str(tmp_path / "tiles"), str(tmp_path / "f"), "--as",
                            "trident", "-o", str(tmp_path / "out")])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "1 slide, 15 patches" in done.output
    assert "Next: pathgen verify" in done.output
    back = run.invoke(app, ["import", str(tmp_path / "out"), "--from", "trident", "-o",
                            str(tmp_path / "in"), "--json"])  # fmt: skip
    assert back.exit_code == 0, back.output
    result = json.loads(back.output.splitlines()[-1])
    assert (result["rows"], result["kind"], result["failed"]) == (15, "features", {})


@pytest.mark.parametrize(
    ("words", "exit_code"),
    [
        (["export", "nowhere", "--as", "clam", "-o", "out"], 4),
        (["export", ".", "--as", "clam", "-o", "out"], 4),
        (["export", ".", "--as", "clamm", "-o", "out"], 2),
        (["import", "nowhere", "--from", "clam", "-o", "out"], 4),
        (["import", ".", "--from", "stamp", "-o", "out"], 2),
        (["verify", "nowhere"], 4),
        (["verify", "."], 4),
    ],
)
def test_mistakes_have_their_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], exit_code: int
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run.invoke(app, words)
    assert done.exit_code == exit_code
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()
