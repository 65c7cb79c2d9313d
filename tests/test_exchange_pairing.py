"""Features made elsewhere find the patches of their slide, and what an export tells its user."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_exchange import BLOCK, write_features, write_patches
from helpers_tiling import tissue_image, write_svs
from numpy.typing import NDArray
from typer.testing import CliRunner

from pathgen.cli import app
from pathgen.errors import DataError, StorageError
from pathgen.exchange import ImportConfig, export_stores, import_files
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import PatchStore
from pathgen.tiling import TileConfig, tile

pytest.importorskip("torch")
run = CliRunner()


def imported(patches: Path, place: Path, order: NDArray[np.int64], shift: int = 0) -> Path:
    """Features that another program made at a store's coordinates, in TRIDENT's layout."""
    folder = place / "job/20x_32px_0px_overlap/features_uni"
    folder.mkdir(parents=True)
    with PatchStore.open(patches) as store, h5py.File(folder / f"{store.name}.h5", "w") as file:
        coords = store.coords()[order]
        coords[: abs(shift)] += shift
        file["coords"] = coords
        file["features"] = np.repeat(order[:, None], 3, axis=1).astype(np.float32)
        file["coords"].attrs.update({
            "patch_size": 32, "patch_size_level0": 64, "level0_magnification": 40,
            "target_magnification": 20, "overlap": 0,
        })  # fmt: skip
    import_files(place / "job", place / "fe", "trident")
    return place / "fe"


@pytest.mark.parametrize("form", ["torchmil", "stamp", "slideflow", "clam", "trident", "qupath"])
def test_own_patches_and_imported_features_are_one_slide(form: str, tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "tiles/S1.h5")
    features = imported(patches, tmp_path, np.arange(len(BLOCK)))
    report = export_stores([patches, features], tmp_path / "out", form)
    assert (report.slides, report.patches) == (1, len(BLOCK))


def test_rows_follow_their_coordinates(tmp_path: Path) -> None:
    """Row i of the features of another order stands beside patch i after the export."""
    patches = write_patches(tmp_path / "tiles/S1.h5")
    order = np.random.default_rng(0).permutation(len(BLOCK))
    features = imported(patches, tmp_path, order)
    export_stores([patches, features], tmp_path / "out", "clam")
    with h5py.File(tmp_path / "out/h5_files/S1.h5") as file, PatchStore.open(patches) as store:
        assert np.array_equal(file["coords"], store.coords())
        assert np.array_equal(file["features"][:, 0], np.arange(len(BLOCK)))


def test_other_places_are_refused_with_their_number(tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "tiles/S1.h5")
    features = imported(patches, tmp_path, np.arange(len(BLOCK)), shift=3)
    with pytest.raises(DataError, match="3 of 15 coordinates of the features") as caught:
        export_stores([patches, features], tmp_path / "out", "torchmil")
    assert caught.value.code == "PG-F02"


def test_two_encoders_join_and_one_encoder_twice_does_not(tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "tiles/S1.h5")
    features = imported(patches, tmp_path, np.arange(len(BLOCK)))
    own = write_features(tmp_path / "own/S1.h5", patches)
    report = export_stores([patches, features, own], tmp_path / "out", "trident")
    assert report.slides == 1
    assert len(list((tmp_path / "out").glob("*/features_*/S1.h5"))) == 2
    again = imported(patches, tmp_path / "b", np.arange(len(BLOCK))[::-1])
    with pytest.raises(DataError, match="two stores of one slide"):
        export_stores([patches, features, again], tmp_path / "two", "trident")


def test_features_alone_ask_for_their_patches(tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "tiles/S1.h5")
    features = imported(patches, tmp_path, np.arange(len(BLOCK)))
    with pytest.raises(DataError) as caught:
        export_stores(features, tmp_path / "out", "stamp")
    assert caught.value.hint == "give the patch store too"


def test_labels_of_other_slides_name_both_sides(tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "tiles/S1.h5")
    labels = tmp_path / "labels.csv"
    labels.write_text("slide,label\nX9,tumor\n")
    with pytest.raises(DataError, match=r"'X9'.*'S1'") as caught:
        export_stores(patches, tmp_path / "out", "clam", labels=labels)
    assert caught.value.code == "PG-N06"
    labels.write_text("slide,label\nX9,tumor\nS1,normal\n")
    report = export_stores(patches, tmp_path / "out", "clam", labels=labels)
    assert any("'X9'" in note for note in report.notes)


def test_an_output_that_cannot_be_made_is_no_bug(tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "tiles/S1.h5")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="not a folder") as caught:
        export_stores(patches, tmp_path / "file/out", "clam")
    assert caught.value.code == "PG-O01"
    if Path("/proc/self").exists():
        with pytest.raises(StorageError) as caught:
            export_stores(patches, "/proc/x", "clam")
        assert caught.value.code == "PG-O01"


def test_the_next_command_is_that_of_the_reader(tmp_path: Path) -> None:
    write_patches(tmp_path / "tiles/S1.h5")
    for form, wanted in (
        ("clam", "--slide_ext .svs --target_patch_size 32"),
        ("trident", "--patch_encoder uni_v1 --mag 20 --patch_size 32"),
        ("qupath", "S1.geojson"), ("webdataset", "WebDataset("),
    ):  # fmt: skip
        done = run.invoke(app, ["export", str(tmp_path / "tiles"), "--as", form, "-o",
                                str(tmp_path / form)])  # fmt: skip
        assert done.exit_code == 0, done.output
        *_, first, then = done.output.splitlines()
        assert first.startswith("Next: pathgen verify")
        assert then.startswith("Then: ")
        assert wanted in then


def test_odd_file_names_are_those_of_the_slides(tmp_path: Path) -> None:
    """CLAM joins folder, slide_id and suffix, and must come to the file."""
    slide = tmp_path / "slides/--x.svs"
    slide.parent.mkdir()
    write_svs(slide, tissue_image(512, 512, 0), mpp=0.5, levels=(1,))
    tile([slide.parent], tmp_path / "tiles", TileConfig(patch_size=64), workers=0)
    export_stores(tmp_path / "tiles", tmp_path / "out", "clam")
    row = (tmp_path / "out/process_list_autogen.csv").read_text().splitlines()[1]
    assert (slide.parent / row.split(",")[0]).is_file()
    assert (tmp_path / "out/patches/--x.h5").is_file()
    report = import_files(tmp_path / "out", tmp_path / "in", "clam", slides=slide.parent)
    assert not report.failed
    assert len(report.stores) == 1


def test_normalized_pixels_are_not_what_clam_reads(tmp_path: Path) -> None:
    slide = tmp_path / "slides/A.svs"
    slide.parent.mkdir()
    write_svs(slide, tissue_image(1024, 1024, 0), mpp=0.4985, levels=(1,))
    config = TileConfig.model_validate({"patch_size": 256, "normalize": {"method": "macenko"}})
    tile([slide.parent], tmp_path / "tiles", config, workers=0)
    for form in ("clam", "trident"):
        report = export_stores(tmp_path / "tiles", tmp_path / form, form)
        assert any("stain-normalized" in note for note in report.notes)
        assert any("--set mpp_tolerance=0.01" in note for note in report.notes)


def test_features_and_patches_imported_from_clam_are_one_slide(tmp_path: Path) -> None:
    slide = tmp_path / "slides/A.svs"
    slide.parent.mkdir()
    write_svs(slide, tissue_image(512, 512, 0), mpp=0.5, levels=(1,))
    tile([slide.parent], tmp_path / "tiles", TileConfig(patch_size=64), workers=0)
    write_features(tmp_path / "f/A.h5", tmp_path / "tiles/A.h5")
    export_stores([tmp_path / "tiles", tmp_path / "f"], tmp_path / "clam", "clam")
    config = ImportConfig(encoder="vit")
    import_files(tmp_path / "clam", tmp_path / "pa", "clam", slides=slide.parent)
    import_files(tmp_path / "clam", tmp_path / "fe", "clam", config)
    report = export_stores([tmp_path / "pa", tmp_path / "fe"], tmp_path / "out", "stamp")
    with FeatureStore.open(tmp_path / "fe/A.h5") as found:
        assert (report.slides, report.patches) == (1, len(found))
