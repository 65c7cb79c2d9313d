"""Imported regions of several sizes and scales: named, averaged to one size, and in a ledger."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers_exchange import write_features, write_patches
from helpers_tiling import tissue_image, write_svs
from PIL import Image
from typer.testing import CliRunner

from pathgen.cli import app
from pathgen.errors import ConfigError, DataError, NoInputError
from pathgen.exchange import ImportConfig, import_files, verify
from pathgen.report import write_report
from pathgen.stores.patches import RESAMPLED, PatchStore
from pathgen.tiling.refiltering import refilter
from pathgen.tiling.selection import Selection

pytest.importorskip("torch")
from torch.utils.data import DataLoader

from pathgen.data.patches import PatchDataset

run = CliRunner()
CORNERS = np.array([[0, 0], [300, 17], [512, 300]])


def coordinates(folder: Path, name: str, **attrs: float) -> None:
    (folder / "patches").mkdir(exist_ok=True, parents=True)
    with h5py.File(folder / f"patches/{name}.h5", "w") as file:
        file["coords"] = CORNERS
        file["coords"].attrs.update(attrs)


@pytest.fixture(scope="module")
def clam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Level-0 patches of 256 pixels on two scales, and one of 257."""
    root = tmp_path_factory.mktemp("clam")
    (root / "slides").mkdir()
    for name, mpp, size in (("A", 0.499, 256), ("B", 0.25, 256), ("C", 0.498, 257)):
        write_svs(root / f"slides/{name}.svs", tissue_image(1024, 768, 0), mpp=mpp, levels=(1, 2),
                  compression="none")  # fmt: skip
        coordinates(root / "clam", name, patch_size=size, patch_level=0)
    return root


def test_sizes_and_scales_are_named(clam: Path, tmp_path: Path) -> None:
    report = import_files(clam / "clam", tmp_path / "in", "clam", slides=clam / "slides")
    note = next(note for note in report.notes if "different sizes" in note)
    for part in ("256 px at 0.499 um (A)", "256 px at 0.25 um (B)", "257 px at 0.498 um (C)"):
        assert part in note
    assert report.to_dict()["sizes"]["C"] == {"patch_size": 257, "mpp": 0.498}
    one = import_files(clam / "clam/patches/A.h5", tmp_path / "one", "clam", slides=clam / "slides")
    assert not one.notes


def test_regions_of_one_size_keep_their_field_of_view(clam: Path, tmp_path: Path) -> None:
    """Against Pillow: the whole region averaged, and not a part of it."""
    config = ImportConfig(patch_size=128)
    import_files(clam / "clam", tmp_path / "in", "clam", config, slides=clam / "slides")
    import openslide

    for name, side in (("A", 256), ("B", 256), ("C", 257)):
        with (
            PatchStore.open(tmp_path / f"in/{name}.h5") as found,
            openslide.OpenSlide(clam / f"slides/{name}.svs") as slide,
        ):
            mpp = found.slide.mpp_x
            assert mpp is not None
            assert found.patch_size_level0 == side
            assert found.attrs["target_mpp"] == pytest.approx(mpp * side / 128)
            assert found.attrs["resampled_from"]["patch_size"] == side
            assert np.array_equal(found.coords(), CORNERS)
            for (x, y), image in zip(CORNERS.tolist(), found.images(), strict=True):
                region = slide.read_region((x, y), 0, (side, side)).convert("RGB")
                wanted = np.asarray(region.resize((128, 128), Image.Resampling.BOX))
                assert np.abs(image.astype(int) - wanted).mean() < 4
            if name == "C":
                assert (found.table.read("made") == RESAMPLED).all()
    items = PatchDataset(tmp_path / "in").__getitems__([0, 4, 8])
    assert {tuple(image.shape) for image, _ in items} == {(3, 128, 128)}


def test_a_trident_region_of_257_pixels_is_read_whole(clam: Path, tmp_path: Path) -> None:
    """TRIDENT scales it to 256; a cut of 256 would lack its last row and column."""
    coordinates(tmp_path / "t", "A_patches", patch_size=256, patch_size_level0=257,
                level0_magnification=20, target_magnification=19.92)  # fmt: skip
    import_files(tmp_path / "t", tmp_path / "in", "trident", slides=clam / "slides")
    with PatchStore.open(tmp_path / "in/A.h5") as found:
        assert (found.spec.size, found.patch_size_level0) == (256, 257)
        assert (found.table.read("made") == RESAMPLED).all()


def test_a_scale_alone_gives_the_nearest_size(clam: Path, tmp_path: Path) -> None:
    config = ImportConfig(mpp=1.0)
    report = import_files(clam / "clam", tmp_path / "in", "clam", config, slides=clam / "slides")
    assert {name: size for name, (size, _) in report.sizes.items()} == {"A": 128, "B": 64, "C": 128}
    assert report.sizes["A"][1] == pytest.approx(256 * 0.499 / 128)
    assert not any("enlarged" in note for note in report.notes)
    large = ImportConfig(patch_size=512)
    report = import_files(clam / "clam", tmp_path / "large", "clam", large, slides=clam / "slides")
    assert any("enlarged" in note and "A, B, C" in note for note in report.notes)


def test_size_and_scale_refuse_another_field_of_view(clam: Path, tmp_path: Path) -> None:
    config = ImportConfig(patch_size=128, mpp=1.0)
    report = import_files(clam / "clam", tmp_path / "in", "clam", config, slides=clam / "slides")
    assert set(report.failed) == {"B"}
    assert "PG-F03" in report.failed["B"]
    assert "64 um wide" in report.failed["B"]
    with pytest.raises(ConfigError, match="no pixels"):
        import_files(clam / "clam", tmp_path / "fe", "clam", config)


def test_stores_of_several_sizes_are_no_batch(tmp_path: Path) -> None:
    write_patches(tmp_path / "S1.h5", "S1", size=32)
    write_patches(tmp_path / "S2.h5", "S2", size=33)
    mixed = PatchDataset([tmp_path / "S1.h5", tmp_path / "S2.h5"])
    with pytest.raises(DataError, match="S1: 32 px, S2: 33 px") as caught:
        mixed.__getitems__([0, 1])
    assert caught.value.code == "PG-D12"
    with pytest.raises(DataError, match="PG-D12"):
        next(iter(DataLoader(mixed, batch_size=4, collate_fn=list)))
    assert len(mixed.images([0, 20])) == 2  # no batch is made of these
    cropped = PatchDataset(tmp_path, transform=lambda image, ref: image[:, :32, :32])
    assert {tuple(image.shape) for image in cropped.__getitems__([0, 20])} == {(3, 32, 32)}


def test_the_ledger_has_every_slide(clam: Path, tmp_path: Path) -> None:
    """As after `tile`: its counts add up, and report, verify and refilter take the folder."""
    place = tmp_path / "clam"
    for name in ("A", "gone", "empty"):
        coordinates(place, name, patch_size=256, patch_level=0)
    write_svs(tmp_path / "slides/A.svs", tissue_image(1024, 768, 0), mpp=0.5, levels=(1,))
    write_svs(tmp_path / "slides/empty.svs", tissue_image(512, 512, 0), mpp=0.5, levels=(1,))
    with h5py.File(place / "patches/empty.h5", "w") as file:
        file["coords"] = np.empty((0, 2), np.int64)
        file["coords"].attrs.update({"patch_size": 256, "patch_level": 0})
    report = import_files(place, tmp_path / "in", "clam", slides=tmp_path / "slides")
    assert set(report.failed) == {"gone"}
    ledger = json.loads((tmp_path / "in/slides.json").read_text())
    with (tmp_path / "in/slides.csv").open(newline="") as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "A": "done", "empty": "empty", "gone": "failed"
    }  # fmt: skip
    assert rows["gone"]["reason"] == "PG-N02"
    assert ledger["counts"]["slides"] == 3
    assert ledger["counts"]["patches"] == ledger["counts"]["candidates"] == len(CORNERS)
    assert verify(tmp_path / "in").good
    assert "3 slides" in write_report(tmp_path / "in").read_text()
    chosen = refilter(tmp_path / "in", tmp_path / "less", Selection(limits={"min_focus": 0.0}))
    assert chosen.slides.counts["patches"] == len(CORNERS)
    again = import_files(place, tmp_path / "in", "clam", slides=tmp_path / "slides")
    assert set(again.failed) == {"gone"}
    assert json.loads((tmp_path / "in/slides.json").read_text()) == ledger


def test_a_second_import_keeps_the_rows_of_the_first(clam: Path, tmp_path: Path) -> None:
    for name in "AB":
        import_files(
            clam / f"clam/patches/{name}.h5", tmp_path / "in", "clam", slides=clam / "slides"
        )
    rows = json.loads((tmp_path / "in/slides.json").read_text())["slides"]
    assert [row["slide"] for row in rows] == ["A", "B"]
    assert verify(tmp_path / "in").good


def test_a_ledger_of_someone_else_stays(clam: Path, tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text("mine\n")
    with pytest.raises(ConfigError) as caught:
        import_files(clam / "clam", tmp_path, "clam", slides=clam / "slides")
    assert caught.value.code == "PG-O19"
    assert (tmp_path / "slides.csv").read_text() == "mine\n"
    assert not list(tmp_path.glob("*.h5"))


def test_report_says_what_it_reports_on(tmp_path: Path) -> None:
    from pathgen.exchange import export_stores

    patches = write_patches(tmp_path / "tiles/S1.h5")
    write_features(tmp_path / "fe/S1.h5", patches)
    assert ">vit<" in write_report(tmp_path / "fe").read_text()
    export_stores(patches, tmp_path / "out", "clam")
    (tmp_path / "doctor").mkdir()
    (tmp_path / "doctor/doctor.html").write_text("")
    for place, why in (
        ("out", "pathgen verify"), ("doctor", "doctor.html"), ("tiles", "without their ledger"),
    ):  # fmt: skip
        with pytest.raises(NoInputError, match=why) as caught:
            write_report(tmp_path / place)
        assert "import --slides" in (caught.value.hint or "")


def test_the_command_takes_size_and_scale(clam: Path, tmp_path: Path) -> None:
    done = run.invoke(app, ["import", str(clam / "clam"), "--from", "clam", "--slides",
                            str(clam / "slides"), "--patch-size", "128", "-o",
                            str(tmp_path / "in")])  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "128 px at 0.998 um (A, C)" in done.output
    wrong = run.invoke(app, ["import", str(clam), "--from", "clam", "--slides", str(clam),
                             "--mpp", "0", "-o", str(tmp_path / "x")])  # fmt: skip
    assert wrong.exit_code == 2
