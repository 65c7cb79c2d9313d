"""What lies in the output folder: kept when it is good, replaced when it is ours, else left."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from helpers_tiling import tissue_image, write_svs

from pathgen.errors import ConfigError
from pathgen.provenance import Provenance
from pathgen.stores import FeatureStore, open_store
from pathgen.stores.seal import attrs_crc32, dumps
from pathgen.tiling import TileConfig, tile

SMALL = TileConfig(patch_size=128, thumbnail_px=256)
ZARR = SMALL.model_copy(update={"store": "zarr"})
COARSE = SMALL.model_copy(update={"mpp": 1.0})


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write_svs(tmp_path / f"slides/{name}.svs", tissue_image(600, 400, seed=ord(name)))
    return tmp_path / "slides"


@pytest.fixture
def out(slides: Path, tmp_path: Path) -> Path:
    tile(slides, tmp_path / "out", SMALL, workers=0)
    return tmp_path / "out"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listing(slides: Path) -> Path:
    """A CSV of both slides, which lists them wherever they are."""
    path = slides.parent / "list.csv"
    path.write_text("slide\nslides/a.svs\nslides/b.svs\n")
    return path


def test_a_list_of_slides_is_not_replaced_by_the_ledger(slides: Path) -> None:
    own = listing(slides).rename(slides.parent / "slides.csv")
    before = own.read_bytes()
    with pytest.raises(ConfigError, match=r"PG-O19.*list of slides"):
        tile(own, slides.parent, SMALL, workers=0)
    assert own.read_bytes() == before


# A slide that cannot be read


@pytest.mark.parametrize("overwrite", [False, True])
def test_lost_slides_leave_their_stores(slides: Path, overwrite: bool) -> None:
    out = slides.parent / "listed"
    tile(listing(slides), out, SMALL, workers=0)
    before = {path: digest(path) for path in out.rglob("*.h5")}
    shutil.move(slides, slides.with_name("unmounted"))
    report = tile(listing(slides), out, SMALL, workers=0, overwrite=overwrite)
    assert [(row.state, row.reason, row.store) for row in report.rows] == [
        ("failed", "PG-N02", None)
    ] * 2
    assert all("store of an earlier run was kept" in row.message for row in report.rows)
    assert {path: digest(path) for path in out.rglob("*.h5")} == before
    assert (len(before), report.kept, report.stores) == (2, 0, ())
    shutil.move(slides.with_name("unmounted"), slides)
    assert tile(listing(slides), out, SMALL, workers=0).kept == 2


def test_a_slide_damaged_later_leaves_its_store(slides: Path, out: Path) -> None:
    before = digest(out / "a.h5")
    (slides / "a.svs").write_bytes(b"")
    report = tile(slides, out, SMALL, workers=0)
    assert [row.reason for row in report.rows] == ["PG-S01", "ok"]
    assert digest(out / "a.h5") == before


def test_other_settings_are_refused_for_a_lost_slide_too(slides: Path) -> None:
    out = slides.parent / "listed"
    tile(listing(slides), out, SMALL, workers=0)
    shutil.move(slides, slides.with_name("unmounted"))
    with pytest.raises(ConfigError, match=r"PG-O19.*mpp was 0\.5 and is now 1\.0"):
        tile(listing(slides), out, COARSE, workers=0)


def test_a_disk_error_on_resume_costs_one_slide(
    slides: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    def fails(self: Path, *args: object, **options: object) -> object:
        if self.name == "a.svs":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(self, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr("pathgen.tiling.readers.check.check_slide", lambda path: "TIFF")
    monkeypatch.setattr("pathgen.tiling.tiler.check_slide", lambda path: "TIFF", raising=False)
    monkeypatch.setattr(Path, "open", fails)
    report = tile(slides, out, SMALL, workers=0)
    assert [row.reason for row in report.rows] == ["PG-N04", "ok"]
    assert (out / "a.h5").exists()


# What is not ours


def features(path: Path) -> None:
    made = Provenance(stage="extract", config={}, inputs={"source": "0" * 16})
    with FeatureStore.create(
        path, dim=4, encoder={"name": "x", "id": "0" * 16, "dim": 4}, provenance=made,
        source={"id": "0" * 16, "name": "a"},
    ) as writer:  # fmt: skip
        writer.append(
            features=np.zeros((2, 4), np.float32), coords=np.zeros((2, 2), np.int64),
            label=np.zeros(2, np.int32),
        )  # fmt: skip


def put(path: Path, what: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if what == "features":
        features(path)
    elif what == "text":
        path.write_text("my notes")
    elif what == "cut":  # unreadable, and in no ledger
        with h5py.File(path, "w") as file:
            file["mine"] = np.arange(9999)
        path.write_bytes(path.read_bytes()[:9000])
    else:
        with h5py.File(path, "w") as file:
            file["mine"] = [1, 2, 3]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["text", "hdf5", "features", "cut"])
def test_what_is_not_ours_is_never_replaced(slides: Path, what: str, overwrite: bool) -> None:
    out = slides.parent / "out"
    put(out / "a.h5", what)
    before = digest(out / "a.h5")
    with pytest.raises(ConfigError, match=r"PG-O19.*a\.h5"):
        tile(slides, out, SMALL, workers=0, overwrite=overwrite)
    assert digest(out / "a.h5") == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_folder_beside_the_store_stays(slides: Path, overwrite: bool) -> None:
    out = slides.parent / "out"
    zarr.create_group(out / "a.zarr", attributes={"mine": 1})
    (out / "b.zarr").mkdir()
    (out / "b.zarr/notes.txt").write_text("mine")
    report = tile(slides, out, SMALL, workers=0, overwrite=overwrite)
    assert report.counts["done"] == 2
    assert zarr.open_group(out / "a.zarr", mode="r").attrs["mine"] == 1
    assert (out / "b.zarr/notes.txt").exists()


def newer(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format_version"] = np.bytes_(dumps("9.0"))


def test_a_store_of_a_newer_format_is_replaced_only_on_request(slides: Path, out: Path) -> None:
    newer(out / "a.h5")
    before = digest(out / "a.h5")
    with pytest.raises(ConfigError, match=r"PG-O19.*a\.h5.*newer pathgen.*--overwrite"):
        tile(slides, out, SMALL, workers=0)
    assert digest(out / "a.h5") == before
    tile(slides, out, SMALL, workers=0, overwrite=True)
    assert len(open_store(out / "a.h5")) > 0


def test_an_unfinished_store_is_made_again(slides: Path, out: Path) -> None:
    with h5py.File(out / "a.h5", "r+") as file:
        del file.attrs["seal"]
    assert tile(slides, out, SMALL, workers=0).kept == 1
    assert len(open_store(out / "a.h5")) > 0


def test_overwrite_removes_our_store_of_the_other_format(slides: Path, out: Path) -> None:
    tile(slides, out, ZARR, workers=0, overwrite=True)
    assert not list(out.glob("*.h5"))
    assert tile(slides, out, ZARR, workers=0).kept == 2


def test_a_store_not_made_by_tile_is_refused(slides: Path, out: Path) -> None:
    with h5py.File(out / "a.h5", "r+") as file:
        seal = json.loads(bytes(file.attrs["seal"]))
        del file.attrs["ledger"]
        attrs = {name: json.loads(bytes(value)) for name, value in file.attrs.items()}
        seal["attrs_crc32"] = attrs_crc32(attrs)
        file.attrs["seal"] = np.bytes_(dumps(seal))
    with pytest.raises(ConfigError, match="not made by"):
        tile(slides, out, SMALL, workers=0)


# What the new ledger would not list


def test_a_list_that_names_slides_otherwise_is_explained(slides: Path, out: Path) -> None:
    listed = listing(slides)
    with pytest.raises(ConfigError, match=r"PG-O19.*slides/a\.h5.*and the list after it"):
        tile(listed, out, SMALL, workers=0)
    assert tile([slides, listed], out, SMALL, workers=0).kept == 2


@pytest.mark.parametrize("overwrite", [False, True])
def test_stores_of_other_slides_are_refused(slides: Path, out: Path, overwrite: bool) -> None:
    with pytest.raises(ConfigError, match=r"PG-O19.*b\.h5.*Give all slides") as caught:
        tile(slides / "a.svs", out, SMALL, workers=0, overwrite=overwrite)
    assert "a.h5" not in str(caught.value)
    (out / "b.h5").unlink()
    assert tile(slides / "a.svs", out, SMALL, workers=0).kept == 1


def test_only_the_first_three_are_named(slides: Path, tmp_path: Path) -> None:
    for i in range(5):
        shutil.copy(slides / "a.svs", slides / f"c{i}.svs")
    out = tmp_path / "out"
    tile(slides, out, ZARR, workers=0)
    with pytest.raises(ConfigError, match=r"b\.zarr, c0\.zarr, c1\.zarr and 3 more"):
        tile(slides / "a.svs", out, ZARR, workers=0)


def test_features_and_foreign_files_are_no_leftovers(slides: Path, out: Path) -> None:
    put(out / "features/z.h5", "features")
    put(out / "mine.h5", "hdf5")
    assert tile(slides, out, SMALL, workers=0).kept == 2


# Names


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_a_file_name_that_is_not_utf8_has_a_row(slides: Path, tmp_path: Path) -> None:
    odd = os.fsencode(slides) + b"/caf\xe9.svs"
    try:
        shutil.copy(slides / "a.svs", odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    bad = os.fsencode(slides) + b"/bad\xe9.svs"
    with open(bad, "wb"):
        pass
    out = tmp_path / "out"
    report = tile(slides, out, SMALL, workers=0)
    assert [(row.slide, row.file, row.state) for row in report.rows[2:]] == [
        ("bad%E9", "bad\ufffd.svs", "failed"), ("caf%E9", "caf\ufffd.svs", "done"),
    ]  # fmt: skip
    assert "caf\ufffd.svs" in (out / "slides.csv").read_text(encoding="utf-8")
    assert tile(slides, out, SMALL, workers=0).rows == report.rows
