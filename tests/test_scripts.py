"""The five scripts of docs/scripts run as they stand, in a folder with slides drawn here."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import runpy
from pathlib import Path

import numpy as np
import pytest
import shapely
from helpers_mil import write_store
from numpy.typing import NDArray
from PIL import Image

import pathgen
from pathgen.stores import FeatureStore, PatchStore
from pathgen.synthetic import SlideSpec, make_slide

SCRIPTS = Path(__file__).resolve().parents[1] / "docs" / "scripts"
#: The tumor is left of 1000, the stroma right of it; a third outline crosses itself.
TUMOR = [[0, 0], [1000, 0], [1000, 1536], [0, 1536]]
STROMA = [[1000, 0], [2048, 0], [2048, 1536], [1000, 1536]]
BOW_TIE = [[100, 100], [200, 200], [200, 100], [100, 200]]
SLIDES, DIM = 12, 6


def feature(name: str, ring: list[list[int]]) -> dict[str, object]:
    return {
        "type": "Feature", "properties": {"classification": {"name": name}},
        "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
    }  # fmt: skip


def run(number: int) -> str:
    """What script `number` prints, run in the working folder."""
    (script,) = SCRIPTS.glob(f"{number}_*.py")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(str(script), run_name="__main__")
    return said.getvalue()


class Colors:
    """Mean color and its square: an encoder of six positive numbers."""

    dim, id = DIM, "colors"

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        mean = patches.reshape(len(patches), -1, 3).mean(axis=1, dtype=np.float64) / 255
        return np.concatenate([mean, mean**2], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    spec = SlideSpec(width=2048, height=1536, grade=4, seed=1)
    make_slide(folder / "slides" / "B12.svs", spec)
    (folder / "slides" / "bad.svs").write_bytes(b"II*\0 no slide")
    features = [feature("Tumor", TUMOR), feature("Stroma", STROMA), feature("Tumor", BOW_TIE)]
    drawn = {"type": "FeatureCollection", "features": features}
    (folder / "B12.geojson").write_text(json.dumps(drawn))
    return folder


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})  # one worker starts faster
    return project


@pytest.fixture
def tiles(here: Path) -> str:
    """What script 3 printed when it was first run."""
    kept = here / "said-3.txt"
    if not kept.exists():
        kept.write_text(run(3), encoding="utf-8")
    return kept.read_text(encoding="utf-8")


@pytest.fixture
def features(here: Path, tiles: str) -> Path:
    """Features of B12, and of slides whose classes differ; those point the other way."""
    folder = here / "features"
    if not folder.exists():
        pathgen.extract_features(Colors(), "tiles/", folder)
        with FeatureStore.open(folder / "B12.h5") as store:
            encoder = dict(store.encoder)
        rng = np.random.default_rng(0)
        lines = ["slide,grade,patient", "B12.svs,2,p0"]
        for i in range(SLIDES):
            vectors = -1.0 - rng.random((20, DIM)) / 4
            vectors[:, i % 3] -= 1.0
            write_store(
                folder,
                f"S{i:02}",
                vectors.astype(np.float32),
                encoder=encoder["id"],
                patient=f"p{i // 2}",
            )
            lines.append(f"S{i:02}.svs,{i % 3},p{i // 2}")
        (here / "cases.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_1_what_is_here(here: Path) -> None:
    said = run(1).splitlines()
    assert said[0].startswith("2 slides · 1 problem · 0.50 um/px · 1 scanner vendor")
    assert "bad" in said[2]
    assert "PG-S" in said[2]
    with (here / "inventory.csv").open(newline="") as handle:
        rows = {row["slide"]: row for row in csv.DictReader(handle)}
    assert rows["B12"]["width"] == "2048"
    assert rows["B12"]["problems"] == ""
    assert rows["bad"]["problems"].startswith("PG-S")


def test_2_look_before_you_cut(here: Path) -> None:
    said = run(2).splitlines()
    assert said[0] == "B12 · 2,048 x 1,536 px · 0.5 um/px · 1.0 x 0.8 mm · aperio 20x · 3 levels"
    area = float(said[1].split()[0])
    with Image.open(here / "B12.png") as thumbnail:
        assert thumbnail.size == (1200, 900)
    with Image.open(here / "B12_field.png") as field:
        assert field.size == (512, 512)  # 256 um at 0.5
    outlines = json.loads((here / "B12_tissue.geojson").read_text())["features"]
    shapes = [shapely.geometry.shape(one["geometry"]) for one in outlines]
    assert all(shape.is_valid for shape in shapes)
    assert sum(shape.area for shape in shapes) * 0.5**2 / 1e6 == pytest.approx(area, abs=0.01)


def test_3_cut_what_was_drawn(here: Path, tiles: str) -> None:
    lines = tiles.splitlines()
    # The bow tie became two triangles.
    assert lines[0] == "4 regions: Tumor 3, Stroma 1 · 1 problem"
    assert "crosses itself" in tiles
    with PatchStore.open(here / "tiles" / "B12.h5") as store:
        coords, names = store.coords(), store.class_names
        shares = store.class_shares()
    assert names == ("Stroma", "Tumor")
    # Patches of 256: those that begin left of 872 have more than half in the tumor.
    left = coords[:, 0] < 1000 - 128
    assert (shares[left, 1] >= 0.5).all()
    assert (shares.max(axis=1) >= 0.5).all()
    tumor, stroma = int((shares.argmax(1) == 1).sum()), int((shares.argmax(1) == 0).sum())
    assert f"{tumor + stroma} patches of 1 slide" in lines[-1]
    assert f"Tumor {tumor}" in lines[-1]
    assert f"Stroma {stroma}" in lines[-1]
    with Image.open(here / "check.png") as sheet:
        assert sheet.width > 128


def test_3_goes_on_where_it_was(here: Path, tiles: str) -> None:
    store = here / "tiles" / "B12.h5"
    before = store.stat().st_mtime_ns
    assert run(3) == tiles
    assert store.stat().st_mtime_ns == before


def test_4_do_the_groups_differ(here: Path, features: Path) -> None:
    said = run(4)
    # Whatever is said of B12, which is like no other, the others' classes are plain.
    accuracy = float(said.split("accuracy ")[1].split()[0])
    assert accuracy >= SLIDES / (SLIDES + 1) - 0.001
    assert "kappa" in said
    assert f"on {SLIDES + 1} slides of {SLIDES // 2} patients" in said
    page = (here / "result.html").read_text(encoding="utf-8")
    assert "Confusion matrix" in page
    assert "quadratic kappa" in page
    assert (here / "pca.png").stat().st_size > 5000


def test_5_show_me_why(here: Path, features: Path) -> None:
    pytest.importorskip("torch")
    from pathgen.train.mil import MILTrainConfig

    config = MILTrainConfig(epochs=2)
    pathgen.train_mil(
        "features/", "cases.csv", "runs/panda", config, folds=2, label_column="grade"
    )  # fmt: skip
    run(5)
    with Image.open(here / "B12_heat.png") as picture:
        assert min(picture.size) > 200
    with PatchStore.open(here / "tiles" / "B12.h5") as store:
        corners = {(int(x), int(y)) for x, y in store.coords()}
    found = json.loads((here / "B12_heat.geojson").read_text())["features"]
    assert len(found) == min(50, len(corners))
    for one in found:
        x0, y0, x1, y1 = shapely.geometry.shape(one["geometry"]).bounds
        assert (round(x0), round(y0)) in corners
        assert (x1 - x0, y1 - y0) == pytest.approx((256, 256))
    with Image.open(here / "similar.png") as sheet:
        assert sheet.width > 200


def test_patches_become_one_table_of_anndata(here: Path, features: Path) -> None:
    pytest.importorskip("anndata")
    table = pathgen.features("features/B12.h5").to_anndata()
    with FeatureStore.open(features / "B12.h5") as store:
        assert np.array_equal(table.X, store.features())
        assert np.array_equal(table.obs[["x", "y"]].to_numpy(), store.coords())
    assert set(table.obs["slide"]) == {"B12"}
    assert np.array_equal(table.obsm["spatial"], table.obs[["x", "y"]].to_numpy() + 128)


def test_the_scripts_are_five_and_listed() -> None:
    listed = (SCRIPTS / "README.md").read_text(encoding="utf-8")
    found = sorted(path.name for path in SCRIPTS.glob("*.py"))
    assert [name[0] for name in found] == list("12345")
    assert all(f"({name})" in listed for name in found)
