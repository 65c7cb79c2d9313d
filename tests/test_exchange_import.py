"""Files of CLAM, TRIDENT and torchmil come back as stores of equal content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from helpers_exchange import BLOCK, tree, vectors, write_features, write_patches
from helpers_tiling import tissue_image, write_svs

from pathgen.errors import DataError, NoInputError, StorageError
from pathgen.exchange import ImportConfig, export_stores, import_files, verify
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import PatchStore
from pathgen.tiling import TileConfig, tile

pytest.importorskip("torch")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stores")
    one = write_patches(root / "tiles/S1.h5", "S1", label="tumor")
    two = write_patches(root / "tiles/S2.h5", "S2", BLOCK[:5], label="normal")
    write_features(root / "features/S1.h5", one, labeled=True)
    write_features(root / "features/S2.h5", two)
    return root


@pytest.mark.parametrize("form", ["clam", "trident", "torchmil"])
def test_features_come_back_equal(stores: Path, form: str, tmp_path: Path) -> None:
    export_stores(stores, tmp_path / "out", form)
    labels = tmp_path / "labels.csv"
    labels.write_text("slide,label,patient\nS1,tumor,P1\nS2,normal,P2\n")
    config = ImportConfig(encoder="vit")
    report = import_files(tmp_path / "out", tmp_path / "in", form, config, labels=labels)
    assert not report.failed
    assert [path.name for path in report.stores] == ["S1.h5", "S2.h5"]
    for name in ("S1", "S2"):
        with (
            FeatureStore.open(tmp_path / f"in/{name}.h5") as found,
            FeatureStore.open(stores / f"features/{name}.h5") as wanted,
        ):
            assert np.array_equal(found.features(), wanted.features())
            assert (found.name, found.label) == (name, wanted.label)
            assert found.encoder["name"] == "vit"
            if form != "torchmil":  # which keeps cells of the grid, and no pixels
                assert np.array_equal(found.coords(), wanted.coords())
                assert found.patch_size_level0 == 64
            elif name == "S1":
                assert np.array_equal(found.labels(), wanted.labels())
                assert found.classes == wanted.classes


def test_a_bag_of_pt_files_alone_has_no_places(stores: Path, tmp_path: Path) -> None:
    export_stores(stores, tmp_path / "out", "clam")
    report = import_files(tmp_path / "out/pt_files", tmp_path / "in", "clam")
    assert any("without level-0 positions" in note for note in report.notes)
    with FeatureStore.open(tmp_path / "in/S1.h5") as found:
        assert np.array_equal(found.features(), vectors(len(BLOCK)))
        assert (found.coords() == -1).all()


def test_imported_features_train(stores: Path, tmp_path: Path) -> None:
    from pathgen.data.bags import load_bags

    export_stores(stores, tmp_path / "out", "trident")
    labels = tmp_path / "labels.csv"
    labels.write_text("slide,label\nS1,tumor\nS2,normal\n")
    import_files(tmp_path / "out", tmp_path / "in", "trident")
    bags, _ = load_bags(tmp_path / "in", labels)
    assert [len(bag) for bag in bags.features] == [len(BLOCK), 5]
    assert set(bags.classes) == {"normal", "tumor"}


def test_equal_imports_are_kept_and_others_refused(stores: Path, tmp_path: Path) -> None:
    export_stores(stores, tmp_path / "out", "clam")
    import_files(tmp_path / "out", tmp_path / "in", "clam")
    before = tree(tmp_path / "in")
    import_files(tmp_path / "out", tmp_path / "in", "clam")
    assert tree(tmp_path / "in") == before
    named = ImportConfig(encoder="vit")
    with pytest.raises(StorageError, match="in use"):
        import_files(tmp_path / "out", tmp_path / "in", "clam", named)
    import_files(tmp_path / "out", tmp_path / "in", "clam", named, overwrite=True)
    other = tmp_path / "other"
    export_stores(stores, tmp_path / "t", "trident")
    write_features(other / "S1.h5", stores / "tiles/S1.h5")
    with pytest.raises(StorageError, match="in use"):  # not an import: never replaced
        import_files(tmp_path / "t", other, "trident", overwrite=True)


def _broken(path: Path, **arrays: Any) -> None:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values


def test_a_bad_file_does_not_end_the_others(stores: Path, tmp_path: Path) -> None:
    export_stores(stores, tmp_path / "out", "clam")
    folder = tmp_path / "out/h5_files"
    ones = np.ones((3, 4), np.float32)
    _broken(folder / "short.h5", features=ones, coords=np.zeros((2, 2), int))
    _broken(folder / "nan.h5", features=ones * np.nan, coords=np.zeros((3, 2), int))
    _broken(folder / "half.h5", features=ones, coords=np.full((3, 2), 0.5))
    report = import_files(tmp_path / "out", tmp_path / "in", "clam")
    assert set(report.failed) == {"short", "nan", "half"}
    assert all("PG-F04" in why for why in report.failed.values())
    assert len(report.stores) == 2


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="no such file"):
        import_files(tmp_path / "nowhere", tmp_path / "in", "clam")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoInputError, match="no features found"):
        import_files(tmp_path / "empty", tmp_path / "in", "trident")
    assert not (tmp_path / "in").exists()


def test_several_encoders_must_be_chosen(stores: Path, tmp_path: Path) -> None:
    for name in ("vit", "conch"):
        write_features(tmp_path / f"{name}/S1.h5", stores / "tiles/S1.h5", encoder=name)
    export_stores([tmp_path / "vit", tmp_path / "conch"], tmp_path / "out", "trident")
    with pytest.raises(DataError, match="several folders"):
        import_files(tmp_path / "out", tmp_path / "in", "trident")
    report = import_files(tmp_path / "out", tmp_path / "in", "trident", ImportConfig(encoder="vit"))
    assert len(report.stores) == 1


# Coordinates with slides: the same regions are cut again.


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One slide with a level at the target's scale, one where patches are resampled; tiled."""
    root = tmp_path_factory.mktemp("slides")
    write_svs(root / "slides/A.svs", tissue_image(1280, 1024, 0), mpp=0.25, levels=(1, 2, 4))
    write_svs(root / "slides/B.svs", tissue_image(1280, 1024, 1), mpp=0.2, levels=(1, 4))
    report = tile([root / "slides"], root / "tiles", TileConfig(patch_size=64), workers=0)
    assert report.counts["done"] == 2
    return root


def test_regions_are_cut_again_with_the_same_pixels_and_scores(
    slides: Path, tmp_path: Path
) -> None:
    for form, names in (("clam", "A"), ("trident", "AB")):
        export_stores(slides / "tiles", tmp_path / form, form)
        report = import_files(
            tmp_path / form, tmp_path / f"in-{form}", form, slides=slides / "slides"
        )
        assert not report.failed
        held = verify(tmp_path / form, slides=slides / "slides")
        assert held.good
        assert any("fits A.svs" in finding.what for finding in held.findings)
        for name in names:
            with (
                PatchStore.open(slides / f"tiles/{name}.h5") as wanted,
                PatchStore.open(tmp_path / f"in-{form}/{name}.h5") as found,
            ):
                assert np.array_equal(found.coords(), wanted.coords())
                assert np.array_equal(found.images(), wanted.images())
                assert found.patch_size_level0 == wanted.patch_size_level0
                assert set(found.measures) == set(wanted.measures)
                for measure in wanted.measures:
                    assert np.allclose(found.measure(measure), wanted.measure(measure))


def test_where_no_level_fits_clam_gets_level_0(slides: Path, tmp_path: Path) -> None:
    export_stores(slides / "tiles", tmp_path / "out", "clam")
    import_files(tmp_path / "out", tmp_path / "in", "clam", slides=slides / "slides")
    with PatchStore.open(tmp_path / "in/B.h5") as found:
        assert found.spec.size == 160
        assert found.attrs["target_mpp"] == 0.2


def test_rows_keep_the_order_of_the_file(slides: Path, tmp_path: Path) -> None:
    """CLAM goes contour by contour and column by column, off any common grid, and may repeat."""
    rng = np.random.default_rng(0)
    coords = rng.integers(0, (1280 - 64, 1024 - 64), (40, 2))
    coords[7] = coords[3]
    (tmp_path / "patches").mkdir()
    with h5py.File(tmp_path / "patches/A.h5", "w") as file:
        file["coords"] = coords.astype(np.int32)
        file["coords"].attrs.update({"patch_size": 64, "patch_level": 0})
    import_files(tmp_path, tmp_path / "in", "clam", slides=slides / "slides")
    import openslide

    with (
        PatchStore.open(tmp_path / "in/A.h5") as found,
        openslide.OpenSlide(slides / "slides/A.svs") as slide,
    ):
        assert np.array_equal(found.coords(), coords)
        for row, image in zip(coords.tolist(), found.images(), strict=True):
            wanted = np.asarray(slide.read_region(tuple(row), 0, (64, 64)).convert("RGB"))
            assert np.abs(image.astype(int) - wanted).mean() < 3  # stored as JPEG


def test_what_does_not_fit_the_slides_is_said(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "patches").mkdir()
    for name, attrs, last in (
        ("A", {"patch_size": 64, "patch_level": 5}, 100),
        ("B", {"patch_size": 64, "patch_level": 0}, 5000),
        ("C", {"patch_size": 64, "patch_level": 0}, 100),
    ):
        with h5py.File(tmp_path / f"patches/{name}.h5", "w") as file:
            file["coords"] = np.array([[0, 0], [last, 0]])
            file["coords"].attrs.update(attrs)
    found = {f.path.stem: f for f in verify(tmp_path, "clam", slides=slides / "slides").findings
             if f.state == "error"}  # fmt: skip
    assert "but the slide has 3 levels" in found["A"].what
    assert "outside of the slide" in found["B"].what
    assert "no slide of this name" in found["C"].what
    report = import_files(tmp_path, tmp_path / "in", "clam", slides=slides / "slides")
    assert report.rows == 0
    assert "no such level" in report.failed["A"]
    assert "outside of the slide" in report.failed["B"]
    assert "no slide of this name" in report.failed["C"]
    assert not list((tmp_path / "in").glob("*.h5"))
