"""Encoders that others bring, the names one can give, and the command that lists them."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from helpers_data import make_patches
from helpers_extract import Means
from test_cli import run
from test_encoders_zoo import patches

from pathgen.encoders import load_encoder, load_trained, public_encoders
from pathgen.errors import ConfigError, RunError
from pathgen.extract import extract_features
from pathgen.progress import Silent

MODULE = """
import numpy as np
import torch
from torchvision.transforms import v2

class Means:
    dim = 3
    def encode(self, patches):
        return patches.mean(axis=(1, 2))

class Digest(Means):
    id = "0123"
    card = {"name": "digest", "license": "MIT"}

class Net(torch.nn.Module):
    dim = 2
    def __init__(self, value=1.0):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))
    def encode(self, patches):
        return np.full((len(patches), 2), self.value.item())

def make(): return Means()
def digest(): return Digest()
def placed(device): return Net(float(device == torch.device("cpu")))
def other(): return Net(2.0)
def nothing(): return 5
def pair():
    torch.manual_seed(0)
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    transform = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=False)])
    return pool.train(), transform
def maps(): return torch.nn.Identity(), pair()[1]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    return path


def test_a_function_of_a_file_makes_an_encoder(file: Path) -> None:
    expected = patches(32).mean(axis=(1, 2))
    for name in ("make", "pair"):
        encoder: Any = load_encoder(f"{file}:{name}", "cpu")
        found = encoder.encode(patches(32))
        assert encoder.dim == 3
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        assert encoder.card["name"] == f"mine:{name}"


def test_it_is_told_the_device_where_it_asks(file: Path) -> None:
    encoder = load_encoder(f"{file}:placed", "cpu")
    assert encoder.encode(patches(8)).tolist() == [[1, 1], [1, 1]]


def test_the_id_follows_the_code_and_the_weights(file: Path) -> None:
    def found(name: str) -> str:
        return load_encoder(f"{file}:{name}", "cpu").id

    first = found("make")
    assert found("make") == first
    assert found("digest") == "0123"
    assert len({first, found("placed"), found("other"), found("pair")}) == 4
    file.write_text(MODULE.replace("axis=(1, 2)", "axis=(2, 1)"))
    assert found("make") != first


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mine.py", "FILE.py:FUNCTION"),
        ("mine.py:absent", "digest"),
        ("other.py:make", "no such Python file"),
        ("mine.py:nothing", "returned int"),
        ("mine.py:maps", "one vector an image"),
    ],
)
def test_what_makes_no_encoder_is_said(
    spec: str, words: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    with pytest.raises(ConfigError, match="PG-C04") as caught:
        load_encoder(spec, "cpu")
    assert words in str(caught.value)


def test_nothing_is_run_unless_a_file_is_written_out(tmp_path: Path) -> None:
    """A folder that holds Python files is a model folder, or nothing."""
    (tmp_path / "encoder.py").write_text("raise SystemExit")
    with pytest.raises(RunError):
        load_encoder(tmp_path, "cpu")


def test_an_installed_package_offers_an_encoder(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(file.parent))
    points = [EntryPoint("theirs", "mine:make", "pathgen.encoders"),
              EntryPoint("broken", "mine:absent", "pathgen.encoders")]  # fmt: skip
    monkeypatch.setattr("pathgen.encoders.own.entry_points", lambda group: points)
    encoder: Any = load_encoder("theirs", "cpu")
    np.testing.assert_allclose(encoder.encode(patches(8)), patches(8).mean(axis=(1, 2)), rtol=1e-6)
    assert encoder.card["name"] == "theirs"
    with pytest.raises(ConfigError, match="cannot be imported"):
        load_encoder("broken", "cpu")
    with pytest.raises(ConfigError, match="'theirs'"):
        load_encoder("theris", "cpu")
    _, out, _ = run(capsys, "encoders", "theirs")
    assert "mine:make" in out


# --- names -----------------------------------------------------------------------------------


def test_a_typo_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="Did you mean 'virchow2'"):
        load_encoder("virchov2", "cpu")
    for place in ("runs/first", "./uni", Path("uni")):
        with pytest.raises(RunError, match="no such folder"):
            load_encoder(place, "cpu")


def test_a_folder_named_like_an_encoder_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "uni").mkdir()
    with pytest.raises(ConfigError, match=r"\./uni"):
        load_encoder("uni", "cpu")
    with pytest.raises(RunError, match="config"):
        load_encoder("./uni", "cpu")


def test_what_is_trained_on_comes_from_runs_and_timm() -> None:
    assert load_trained("timm:test_vit,random", "cpu").dim == 64
    with pytest.raises(RunError):
        load_trained("uni", "cpu")


@pytest.mark.parametrize(("meant", "said"), [([2.0], 1), ([0.5, 2.0], 0), ([], 0)])
def test_extraction_says_that_patches_have_another_scale(
    meant: list[float], said: int, tmp_path: Path
) -> None:
    """Once, though both stores have it."""

    class Scaled(Means):
        card: ClassVar[Any] = {"name": "scaled", "mpp": meant}

    class Lines(Silent):
        lines: ClassVar[list[str]] = []

        def say(self, text: str) -> None:
            self.lines.append(text)

    for name in "ab":
        make_patches(tmp_path / f"{name}.h5", patches(16), name=name)
    Lines.lines.clear()
    extract_features(Scaled(), [tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "out",
                     progress=Lines())  # fmt: skip
    assert sum("scaled is meant for 2" in line for line in Lines.lines) == said


# --- the command -----------------------------------------------------------------------------


def test_the_list_has_every_encoder(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "encoders")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    for name, row in public_encoders().items():
        cells = lines[name].split()
        assert cells[1:3] == [str(row.dim), str(row.image_size)]
        assert row.license in lines[name]
    _, out, _ = run(capsys, "encoders", "--json")
    found = json.loads(out)["encoders"]
    assert found == [row.card for row in public_encoders().values()]


def test_a_card_says_how_to_get_the_weights(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("uni", "conch-v1.5", "phikon", "midnight-12k", "resnet50"):
        row = public_encoders()[name]
        code, out, _ = run(capsys, "encoders", name)
        assert code == 0
        assert row.citation in out
        assert row.license in out
        assert row.access in out
        assert ("HF_TOKEN" in out) == row.gated
        assert f"DIR/{name}/" in out
        assert (row.files or ("model.safetensors",))[0] in out
    code, _, err = run(capsys, "encoders", "uni3-h")
    assert code == 2
    assert "Did you mean 'uni2-h'" in err


def test_listing_needs_no_torch() -> None:
    import subprocess
    import sys

    check = (
        "import sys\nfrom pathgen.cli import main\ntry:\n    main(['encoders', 'uni'])\n"
        "except SystemExit: pass\nprint([n for n in ('torch', 'timm') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
