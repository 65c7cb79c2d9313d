"""torchmil's own datasets open our exports, and every patch knows its neighbors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_exchange import BLOCK, vectors, write_features, write_patches

from pathgen.exchange import export_stores, verify

datasets = pytest.importorskip("torchmil.datasets")
pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")


def neighbors(cells: list[tuple[int, int]]) -> set[tuple[int, int]]:
    """Pairs (i, j) of cells that touch, corners included, by the definition."""
    return {
        (i, j)
        for i, (r, c) in enumerate(cells)
        for j, (s, d) in enumerate(cells)
        if i != j and max(abs(r - s), abs(c - d)) == 1
    }


def pairs(bag: Any) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in bag["adj"].coalesce().indices().T.tolist()}


@pytest.mark.parametrize("overlap", [0, 16])
@pytest.mark.parametrize("level0_mpp", [0.25, 0.251])
def test_the_graph_is_right_for_any_scale_and_overlap(
    tmp_path: Path, overlap: int, level0_mpp: float
) -> None:
    patches = write_patches(
        tmp_path / "S1.h5", "S1", overlap=overlap, level0_mpp=level0_mpp, label="tumor"
    )
    write_features(tmp_path / "f/S1.h5", patches, labeled=True)
    export_stores([tmp_path / "S1.h5", tmp_path / "f"], tmp_path / "out", "torchmil")
    out = tmp_path / "out"
    bags = datasets.ProcessedMILDataset(
        str(out / "features"), str(out / "labels"), str(out / "inst_labels"), str(out / "coords"),
        verbose=False,
    )  # fmt: skip
    bag = bags[0]
    assert pairs(bag) == neighbors(BLOCK)
    assert np.array_equal(bag["X"].numpy(), vectors(len(BLOCK)))
    assert bag["Y"].tolist() == [0]
    assert bag["y_inst"].tolist() == [i % 3 - 1 for i in range(len(BLOCK))]


def test_the_stride_bug_is_found_and_the_fix_works(tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "S1.h5", "S1", bounds=(0, 0, 2000, 1500), label="tumor")
    write_features(tmp_path / "f/S1.h5", patches)
    export_stores([tmp_path / "S1.h5", tmp_path / "f"], tmp_path / "out", "trident")
    base = f"{tmp_path}/out/20x_32px_0px_overlap/"

    def opened(patch_size: int) -> Any:
        return datasets.TridentWSIDataset(
            base, str(tmp_path / "out/labels.csv"), "vit", bag_keys=["X", "adj", "coords"],
            patch_size=patch_size, wsi_name_col="wsi", wsi_label_col="label",
        )[0]  # fmt: skip

    (warning,) = [f for f in verify(tmp_path / "out").findings if f.state == "warning"]
    assert warning.reader == "torchmil TridentWSIDataset"
    assert "patch_size=64" in warning.why
    assert pairs(opened(32)) != neighbors(BLOCK)
    assert f"{len(pairs(opened(32)))} of {len(neighbors(BLOCK))}" in warning.what
    assert pairs(opened(64)) == neighbors(BLOCK)


def test_patches_off_any_grid_keep_their_distances(tmp_path: Path) -> None:
    from pathgen.stores.features import FeatureStore
    from pathgen.stores.patches import PatchStore

    patches = write_patches(tmp_path / "S1.h5", "S1", BLOCK[:2])
    features = write_features(tmp_path / "f/S1.h5", patches)
    with FeatureStore.open(features) as store, PatchStore.open(patches) as known:
        shifted = known.coords() + np.array([[0, 0], [0, 20]])
        with FeatureStore.create(
            tmp_path / "g/S1.h5", store.dim, store.provenance, encoder=store.encoder,
            source=store.source,
        ) as writer:  # fmt: skip
            third = np.vstack([shifted, shifted[:1] + (640, 7)])
            writer.append(
                features=np.zeros((3, store.dim), np.float32), coords=third,
                label=np.full(3, -1, np.int32),
            )  # fmt: skip
    report = export_stores(tmp_path / "g", tmp_path / "out", "torchmil")
    assert any("no common grid" in note for note in report.notes)
    coords = np.load(tmp_path / "out/coords/S1.npy")
    assert coords.dtype == np.float32
    assert np.allclose(coords, (third - third.min(axis=0)) / 64)


def test_an_empty_slide_is_no_bag(tmp_path: Path) -> None:
    for name, cells in (("E", []), ("S", BLOCK)):
        write_features(
            tmp_path / f"f/{name}.h5", write_patches(tmp_path / f"{name}.h5", name, cells)
        )
    report = export_stores(tmp_path / "f", tmp_path / "out", "torchmil")
    assert set(report.skipped) == {"E"}
    assert [p.name for p in (tmp_path / "out/features").iterdir()] == ["S.npy"]
