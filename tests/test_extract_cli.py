"""`pathgen extract-features`: what it takes for slides and for patches, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_data import make_folder, make_patches, noise
from helpers_extract import Means, Pixels, content
from helpers_tiling import tissue_image, write_svs

from pathgen.cli import main
from pathgen.extract import extract
from pathgen.stores import FeatureStore
from pathgen.tiling import TileConfig


@pytest.fixture(autouse=True)
def encoders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Two that are known by name, and what they were loaded with."""
    said: dict[str, Any] = {}

    def load(name: str, device: str, **more: Any) -> Any:
        said[name] = {"device": device, **more}
        return {"means": Means, "pixels": Pixels}[name]()

    monkeypatch.setattr("pathgen.extract.encoding.load_encoder", load)
    return said


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    write_svs(tmp_path / "slides/a.svs", tissue_image(500, 400))
    (tmp_path / "slides/b.svs").write_text("no slide\n" * 99)
    return tmp_path / "slides"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as stop:
        main(["extract-features", *map(str, arguments)])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err  # type: ignore[arg-type]


def test_slides_are_encoded_as_the_options_say(
    slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], encoders: dict[str, Any]
) -> None:
    code, out, err = run(
        capsys, slides, "--encoder", "means", "--encoder", "pixels", "-o", tmp_path / "out",
        "--patch-size", 64, "--mpp", 1, "--set", "max_white=0.9", "--workers", 0,
        "--weights", tmp_path, "--device", "cpu", "--dtype", "float16",
    )  # fmt: skip
    assert code == 3  # finished, but a slide failed
    assert err.count("  b: Not a slide.") == 1
    assert "1 source failed" in out
    assert f"Next: pathgen train-mil {tmp_path}/out/Means" in out
    assert encoders["pixels"]["weights"] == tmp_path
    assert encoders["pixels"]["device"] == "cpu"
    tile = TileConfig(patch_size=64, mpp=1, max_white=0.9)
    truth = extract(Pixels(), slides, tmp_path / "truth", tile=tile)
    with FeatureStore.open(tmp_path / "out/Pixels/a.h5") as store:
        assert store.features().dtype == np.float16
        with FeatureStore.open(truth.stores[0]) as other:
            assert np.array_equal(store.features(), other.features())
    before = content(tmp_path / "out")
    more = ("--patch-size", 64, "--mpp", 1, "--set", "max_white=0.9", "--dtype", "float16")
    names = ("--encoder", "means", "--encoder", "pixels")
    code, out, err = run(capsys, slides, *names, "-o", tmp_path / "out", *more, "--plan")
    assert code == 0
    assert "PG-S" in err  # why one of them will fail
    assert [line.split()[:6] for line in out.splitlines()[1:3]] == [
        ["Means", "3", "2", "1", "1", "0"], ["Pixels", "48", "2", "1", "1", "0"]
    ]  # fmt: skip
    assert content(tmp_path / "out") == before


def test_patches_take_no_tiling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = noise(np.random.default_rng(0), 3, 16)
    make_patches(tmp_path / "tiles/a.h5", images)
    given = (tmp_path / "tiles", "--encoder", "means", "-o", tmp_path / "out")
    code, _, err = run(capsys, *given, "--mpp", "0.5")
    assert (code, "tiled already" in err, "--mpp" in err) == (2, True, True)
    code, out, _ = run(capsys, *given, "--json")
    found = [json.loads(line) for line in out.splitlines()][-1]
    assert (code, found["features"], found["dim"], found["stores"]) == (0, 3, 3, 1)
    labeled = make_folder(tmp_path / "images", {"a/1.png": images[0], "b/1.png": images[1]})
    _, out, _ = run(capsys, labeled, "--encoder", "means", "-o", tmp_path / "labeled")
    assert "Next: pathgen evaluate knn" in out


def test_a_single_bad_store_is_its_own_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_patches(tmp_path / "a.h5", noise(np.random.default_rng(0), 3, 16))
    (tmp_path / "a.h5").write_bytes((tmp_path / "a.h5").read_bytes()[:3000])
    code, out, err = run(
        capsys, tmp_path / "a.h5", "--encoder", "means", "-o", tmp_path / "out"
    )  # fmt: skip
    assert (code, out) == (8, "")
    assert "PG-O" in err
