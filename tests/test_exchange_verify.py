"""Verification finds what was damaged, and who would misread what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_exchange import BLOCK, write_features, write_patches
from typer.testing import CliRunner

from pathgen.cli import app
from pathgen.errors import NoInputError
from pathgen.exchange import export_stores, verify

pytest.importorskip("torch")


def coords_file(path: Path, **attrs: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["coords"] = np.array([[0, 0], [512, 0], [0, 512]])
        file["coords"].attrs.update(attrs)
    return path


TRIDENT = {"patch_size": 256, "level0_magnification": 40, "target_magnification": 20}


@pytest.mark.parametrize(
    ("form", "attrs", "state", "said"),
    [
        ("clam", {"patch_size": 256, "patch_level": 1, "downsample": (2.0, 2.0),
                  "level_dim": (10, 10)}, "ok", "256 pixels at level 1"),
        ("clam", {"patch_size": 256}, "error", "patch_level"),
        ("clam", {**TRIDENT, "patch_size_level0": 512}, "error", "attributes missing"),
        ("clam", {"patch_size": 256, "patch_level": 0, "patch_size_level0": 512}, "error",
         "two senses"),
        ("trident", {**TRIDENT, "patch_size_level0": 512}, "ok", "512 level-0 pixels"),
        ("trident", {**TRIDENT, "patch_size_level0": 256}, "error", "two senses"),
        ("trident", {**TRIDENT, "patch_level": 0}, "error", "two senses"),
        ("trident", {"patch_size": 256, "patch_level": 0}, "warning", "level0_magnification"),
        ("trident", {"patch_size": 256}, "error", "attributes missing"),
    ],
)  # fmt: skip
def test_both_senses_of_patch_size_are_told_apart(
    tmp_path: Path, form: str, attrs: dict[str, Any], state: str, said: str
) -> None:
    ending = "_patches" if form == "trident" else ""
    coords_file(tmp_path / f"patches/S{ending}.h5", **attrs)
    first = verify(tmp_path, form).findings[0]
    assert first.state == state
    assert said in first.what


def test_an_empty_clam_level_is_noticed(tmp_path: Path) -> None:
    coords_file(tmp_path / "patches/S.h5", patch_size=256, patch_level=2, downsample=(4.0, 4.0))
    (finding,) = verify(tmp_path, "clam").findings
    assert (finding.state, "not described" in finding.what) == ("warning", True)


def test_stamp_versions_and_units_are_noticed(tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "S.h5", "S")
    features = write_features(tmp_path / "f/S.h5", patches)
    export_stores(features, tmp_path / "out", "stamp")
    path = tmp_path / "out/vit/S.h5"
    with h5py.File(path, "a") as file:
        file.attrs["stamp_version"] = "99.0"
    assert "stamp_version" in verify(tmp_path / "out", "stamp").findings[1].what
    with h5py.File(path, "a") as file:
        del file.attrs["stamp_version"], file.attrs["unit"]
    assert "unit" in verify(tmp_path / "out", "stamp").findings[1].what


def test_pixels_as_torchmil_coordinates_lose_the_graph(tmp_path: Path) -> None:
    for name, values in (("features", np.ones((4, 3), np.float32)),
                         ("coords", np.array([[0, 0], [64, 0], [0, 64], [64, 64]]))):  # fmt: skip
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "S.npy", values)
    states = {finding.state: finding.what for finding in verify(tmp_path).findings}
    assert states["warning"] == "no patch has a neighbor"


@pytest.mark.parametrize("form", ["clam", "trident", "stamp", "slideflow", "webdataset", "folder",
                                  "torchmil", "qupath"])  # fmt: skip
def test_every_damaged_byte_of_an_export_is_seen(tmp_path: Path, form: str) -> None:
    patches = write_patches(tmp_path / "S.h5", "S", label="tumor")
    write_features(tmp_path / "f/S.h5", patches)
    export_stores([patches, tmp_path / "f"], tmp_path / "out", form)
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file() and p.suffix != ".json"]
    victim = max(files, key=lambda path: (path.stat().st_size, path.name))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 0xFF
    victim.write_bytes(data)
    report = verify(tmp_path / "out")
    assert not report.good
    victim.write_bytes(b"")
    assert not verify(tmp_path / "out").good
    victim.unlink()
    assert not verify(tmp_path / "out").good


def test_a_damaged_store_is_named_and_the_others_checked(tmp_path: Path) -> None:
    for name in ("A", "B"):
        write_patches(tmp_path / f"{name}.h5", name)
    data = bytearray((tmp_path / "A.h5").read_bytes())
    at = len(data) // 2
    data[at : at + 64] = bytes(64)
    (tmp_path / "A.h5").write_bytes(data)
    states = {f.path.name: f.state for f in verify(tmp_path).findings}
    assert states == {"A.h5": "error", "B.h5": "ok"}


def ledger(folder: Path, **change: Any) -> None:
    row = {"slide": "A", "state": "done", "store": "A.h5", "candidates": 20, "dropped_tissue": 3,
           "dropped_stain": 2, "patches": len(BLOCK), **change}  # fmt: skip
    counts = {"done": 1, "empty": 0, "failed": 0, "patches": row["patches"]}
    (folder / "slides.json").write_text(json.dumps({"counts": counts, "slides": [row]}))


def test_the_ledger_is_held_against_the_stores(tmp_path: Path) -> None:
    write_patches(tmp_path / "A.h5", "A")
    ledger(tmp_path)
    assert verify(tmp_path).good
    ledger(tmp_path, patches=14, candidates=19)
    assert "15 in its store" in verify(tmp_path).findings[-1].what
    ledger(tmp_path, candidates=99)
    assert "not dropped plus patches" in verify(tmp_path).findings[-1].what
    ledger(tmp_path, store="gone.h5")
    said = " ".join(f.what for f in verify(tmp_path).findings)
    assert "gone.h5 is not there" in said
    assert "A.h5 is in no row" in said


def test_the_command_says_it_with_its_exit_code(tmp_path: Path) -> None:
    write_patches(tmp_path / "A.h5", "A")
    run = CliRunner()
    good = run.invoke(app, ["verify", str(tmp_path)])
    assert good.exit_code == 0
    assert "1 good" in good.output
    coords_file(tmp_path / "x/patches/S.h5", **TRIDENT)
    bad = run.invoke(app, ["verify", str(tmp_path / "x"), "--as", "clam", "--json"])
    assert bad.exit_code == 8
    assert json.loads(bad.output.splitlines()[-1])["error"] == 1


def test_nothing_to_verify_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="nothing to verify"):
        verify(tmp_path)
    with pytest.raises(NoInputError, match="no such file"):
        verify(tmp_path / "nowhere")
    assert not verify(tmp_path, "clam").good
