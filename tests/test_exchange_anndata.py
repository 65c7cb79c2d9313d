"""Features for scanpy and squidpy, read with anndata as they do; and what the grid column does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_exchange import BLOCK, tree, vectors, write_features, write_patches
from test_cli import run

from pathgen.errors import ConfigError, DataError
from pathgen.exchange import ExportConfig, export_stores, verify
from pathgen.provenance import Provenance, digest
from pathgen.stores.features import FeatureStore

anndata = pytest.importorskip("anndata")


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    """Two slides with features; patches of 32 px at 0.5 um, level 0 at 0.25 um."""
    folder = tmp_path / "stores"
    for name, label in (("S1", "benign"), ("S2", None)):
        known = {"label": label, "patient": "P1"} if label else {}
        patches = write_patches(folder / "patches" / f"{name}.h5", name, **known)
        write_features(folder / "features" / f"{name}.h5", patches, labeled=name == "S1")
    return folder


def test_a_slide_as_its_reader_sees_it(stores: Path, tmp_path: Path) -> None:
    report = export_stores(stores, tmp_path / "out", "anndata")
    assert report.files == 2
    table = anndata.read_h5ad(tmp_path / "out" / "vit" / "S1.h5ad")
    assert table.X.dtype == np.float32
    np.testing.assert_array_equal(table.X, vectors(15))
    obs, grid = table.obs, np.array(BLOCK)
    np.testing.assert_array_equal(obs[["row", "col"]], grid)
    corners = grid[:, ::-1] * 64 + [100, 60]  # 32 px at 0.5 um are 64 at 0.25
    np.testing.assert_array_equal(obs[["x", "y"]], corners)
    np.testing.assert_allclose(obs[["x_um", "y_um"]], corners * 0.25)
    assert set(obs["side_um"]) == {16.0}
    np.testing.assert_array_equal(table.obsm["spatial"], corners + 32)
    assert table.uns["spatial"]["S1"]["scalefactors"]["spot_diameter_fullres"] == 64
    assert set(obs["slide"]) == {"S1"}
    assert set(obs["patient"]) == {"P1"}
    assert set(obs["slide_label"]) == {"benign"}
    expected = [("stroma", "tumor")[i] if i >= 0 else None for i in np.arange(15) % 3 - 1]
    assert [None if value != value else value for value in obs["label"]] == expected
    assert obs.index.is_unique
    assert table.uns["encoder"]["name"] == "vit"
    with FeatureStore.open(stores / "features" / "S1.h5") as store:
        assert table.uns["pathgen"]["S1"]["store"] == store.id


def test_what_is_not_known_is_missing(stores: Path, tmp_path: Path) -> None:
    export_stores(stores, tmp_path / "out", "anndata")
    obs = anndata.read_h5ad(tmp_path / "out" / "vit" / "S2.h5ad").obs
    for column in ("patient", "slide_label", "label"):
        assert obs[column].isna().all()


def test_all_slides_in_one_file(stores: Path, tmp_path: Path) -> None:
    report = export_stores(stores, tmp_path / "out", "anndata", ExportConfig(one_file=True))
    assert report.files == 1
    whole = anndata.read_h5ad(tmp_path / "out" / "vit.h5ad")
    np.testing.assert_array_equal(whole.X, np.concatenate([vectors(15)] * 2))
    assert whole.obs["slide"].value_counts().to_dict() == {"S1": 15, "S2": 15}
    assert whole.obs.index.is_unique
    assert whole.obsm["spatial"].shape == (30, 2)
    assert set(whole.uns["spatial"]) == {"S1", "S2"}
    assert whole.uns["encoder"]["dim"] == 6
    assert set(whole.obs["slide_label"].dropna()) == {"benign"}


def test_each_encoder_has_a_folder(stores: Path, tmp_path: Path) -> None:
    patches = stores / "patches" / "S1.h5"
    write_features(stores / "more" / "S1.h5", patches, dim=4, encoder="uni")
    export_stores(stores, tmp_path / "out", "anndata")
    found = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.h5ad")}
    assert found == {"vit/S1.h5ad", "vit/S2.h5ad", "uni/S1.h5ad"}


def test_the_card_of_the_encoder_goes_along(tmp_path: Path) -> None:
    """With every kind of value that a card holds."""
    patches = write_patches(tmp_path / "p" / "S1.h5")
    card = {"license": "MIT", "gated": False, "mpp": [0.25, 0.5], "note": "", "more": {"a": None},
            "nothing": [], "deep": [{"a": 1}]}  # fmt: skip
    write_with(tmp_path / "f" / "S1.h5", patches, {"card": card})
    export_stores(tmp_path / "f", tmp_path / "out", "anndata")
    read = anndata.read_h5ad(tmp_path / "out" / "uni" / "S1.h5ad").uns["encoder"]["card"]
    assert read["license"] == "MIT"
    assert not read["gated"]
    assert list(read["mpp"]) == [0.25, 0.5]
    assert read["deep"]["0"]["a"] == 1


def write_with(
    path: Path, patches: Path, facts: dict[str, object], *, grid: bool = True, moved: int = 0
) -> Path:
    """Features with the grid column or without it; the last patch lies `moved` pixels off."""
    from pathgen.stores.patches import PatchStore

    with PatchStore.open(patches) as source:
        keys = ("patch_size", "patch_size_level0", "target_mpp", "level0_mpp", "overlap", "slide")
        known = {key: source.attrs[key] for key in keys if source.attrs.get(key) is not None}
        with FeatureStore.create(
            path, 3, Provenance(stage="extract", config={}, inputs={"patches": source.id}),
            encoder={"name": "uni", "id": digest("uni"), "dim": 3, **facts},
            source={"id": source.id, "name": source.name, **known}, with_grid=grid,
        ) as writer:  # fmt: skip
            places = {"grid": source.grid()} if grid else {}
            coords = source.coords()
            coords[-1] += moved
            writer.append(
                features=np.zeros((len(source), 3), np.float32), coords=coords,
                label=np.full(len(source), -1, np.int32), **places,
            )  # fmt: skip
    return path


def test_equal_stores_give_equal_bytes(stores: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_stores(stores, tmp_path / name, "anndata", ExportConfig(one_file=True))
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_patches_alone_are_refused(stores: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="takes features"):
        export_stores(stores / "patches", tmp_path / "out", "anndata")
    assert not (tmp_path / "out").exists()


def test_verify_reads_what_was_written(stores: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_stores(stores, out, "anndata")
    assert verify(out).good
    table = anndata.read_h5ad(out / "vit" / "S1.h5ad")
    table.X[0, 0] = np.nan
    table.write_h5ad(out / "vit" / "S1.h5ad")
    (out / "vit" / "S2.h5ad").write_bytes(b"no file")
    found = [f for f in verify(out, "anndata").findings if f.state == "error"]
    assert len({f.path.name for f in found}) == 2


def test_the_command_writes_one_file(
    stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", stores, "--as", "anndata", "--one-file", "-o", tmp_path / "out"]
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert "anndata.read_h5ad" in out
    assert (tmp_path / "out" / "vit.h5ad").is_file()
    with pytest.raises(ConfigError, match="unknown format"):
        export_stores(stores, tmp_path / "other", "h5ad")


# --- the grid column, in other exports -------------------------------------------------------


@pytest.mark.parametrize("grid", [True, False])
def test_torchmil_gets_the_grid_that_was_tiled(grid: bool, tmp_path: Path) -> None:
    """Integers, also of a patch that lies off its cell; without the column they are guessed."""
    patches = write_patches(tmp_path / "p" / "S1.h5", cells=[(2, 4), (2, 8), (6, 4)])
    write_with(tmp_path / "f" / "S1.h5", patches, {}, grid=grid, moved=20 if grid else 0)
    export_stores(tmp_path / "f", tmp_path / "out", "torchmil")
    found = np.load(tmp_path / "out" / "coords" / "S1.npy")
    assert np.issubdtype(found.dtype, np.integer)
    np.testing.assert_array_equal(found, [(0, 0), (4, 0), (0, 4)])  # (column, row) from 0


def test_a_grid_that_is_not_known_is_minus_one(tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "p" / "S1.h5", cells=[(0, 1)])
    write_with(tmp_path / "f" / "S1.h5", patches, {}, grid=False)
    export_stores(tmp_path / "f", tmp_path / "out", "anndata")
    obs = anndata.read_h5ad(tmp_path / "out" / "uni" / "S1.h5ad").obs
    assert obs[["row", "col"]].to_numpy().tolist() == [[-1, -1]]


@pytest.mark.parametrize("form", ["clam", "trident", "torchmil", "stamp"])
def test_stores_with_a_grid_export_as_those_without(form: str, tmp_path: Path) -> None:
    """The new column adds nothing that a consumer could trip over."""
    patches = write_patches(tmp_path / "p" / "S1.h5")
    for name, grid in (("with", True), ("without", False)):
        write_with(tmp_path / name / "S1.h5", patches, {}, grid=grid)
        export_stores(tmp_path / name, tmp_path / f"{name} out", form)
    first, second = (
        {k: v for k, v in tree(tmp_path / f"{name} out").items() if k != "pathgen-export.json"}
        for name in ("with", "without")
    )
    assert first == second
    manifest = json.loads((tmp_path / "with out" / "pathgen-export.json").read_text())
    assert manifest["as"] == form
