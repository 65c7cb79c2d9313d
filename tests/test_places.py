"""Files that pathgen has not made stay as they are; paths in files lead nowhere else."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers_exchange import write_features, write_patches
from helpers_tiling import tissue_image, write_svs

from pathgen import commit
from pathgen.cli import main
from pathgen.config import to_yaml
from pathgen.doctor import Diagnosis, write_diagnosis
from pathgen.errors import ConfigError, StorageError, StoreError
from pathgen.exchange import export_stores, verify
from pathgen.places import inside
from pathgen.report import write_report
from pathgen.stores import PatchStore
from pathgen.tiling import TileConfig, tile
from pathgen.tiling.refiltering import refilter
from pathgen.tiling.selection import Selection
from pathgen.tiling.tiled import tiled

SMALL = TileConfig(patch_size=128, thumbnail_px=256)
CHOICE = Selection(limits={"min_tissue": 0.9})


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    write_svs(folder / "a.svs", tissue_image(600, 400))
    return folder


@pytest.fixture
def tiles(slides: Path, tmp_path: Path) -> Path:
    tile(slides, tmp_path / "in/tiles", SMALL, workers=0)
    return tmp_path / "in/tiles"


def listing(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b"folder"
        for path in sorted(folder.rglob("*"))
    }


# Paths in files


@pytest.mark.parametrize(
    "name", ["../evil", "/evil", "a/../../evil", "", " ", ".", "a\0b", 7, None, ["a"]]
)
def test_a_path_that_leads_out_is_none(tmp_path: Path, name: Any) -> None:
    with pytest.raises(StoreError, match="PG-O20"):
        inside(tmp_path, name, tmp_path / "x.json")


@pytest.mark.parametrize("name", ["a.h5", "b/a.h5", "..a/b..h5", "./a.h5"])
def test_other_paths_are_below_their_folder(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name, tmp_path / "x.json").resolve().is_relative_to(tmp_path.resolve())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("store", "../evil.h5"), ("store", "{tmp}/in/tiles/a.h5"), ("store", "config.yaml"),
        ("thumbnail", "../evil.jpg"), ("thumbnail", "thumbnails/../../../evil.jpg"),
        ("thumbnail", "config.yaml"), ("store", 7), ("thumbnail", "a.jpg"),
    ],
)  # fmt: skip
def test_refilter_writes_nowhere_but_below_out(
    tiles: Path, tmp_path: Path, key: str, value: Any
) -> None:
    ledger = json.loads((tiles / "slides.json").read_text())
    named = value.format(tmp=tmp_path) if isinstance(value, str) else value
    ledger["slides"][0][key] = named
    (tiles / "slides.json").write_text(json.dumps(ledger))
    for name in ("evil.h5", "evil.jpg"):  # the source is there, so that it could be copied
        place = tiles.parent / name
        place.write_bytes((tiles / "a.h5").read_bytes())
    before = listing(tmp_path)
    with pytest.raises(StoreError, match=r"PG-O20.*slides\.json"):
        refilter(tiles, tmp_path / "deep/out", CHOICE)
    assert listing(tmp_path) == before


def test_a_thumbnail_that_is_a_link_out_is_not_copied(tiles: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    thumbnail = tiles / "thumbnails/a.jpg"
    thumbnail.unlink()
    thumbnail.symlink_to(secret)
    with pytest.raises(StoreError, match="PG-O20"):
        refilter(tiles, tmp_path / "out", CHOICE)


def test_a_store_does_not_say_where_it_lies(tmp_path: Path) -> None:
    told = {"store": "../evil.h5", "thumbnail": "../evil.jpg", "slide": "b", "candidates": 20}
    path = write_patches(tmp_path / "in/S1.h5", "S1")
    with PatchStore.open(path) as store:
        writer = store.selected(tmp_path / "told/S1.h5", store.provenance)
        with writer:
            writer.set_attr("ledger", told)
    (found,) = tiled(tmp_path / "told")
    row = found.row
    assert (row.slide, row.store, row.thumbnail, row.candidates) == ("S1", "S1.h5", None, 20)


def test_verify_reads_nothing_outside(tiles: Path, tmp_path: Path) -> None:
    ledger = json.loads((tiles / "slides.json").read_text())
    ledger["slides"][0]["store"] = "../a.h5"
    (tiles.parent / "a.h5").write_bytes((tiles / "a.h5").read_bytes())
    (tiles / "slides.json").write_text(json.dumps(ledger))
    said = [finding.what for finding in verify(tiles).findings if finding.state == "error"]
    assert any("leads out of its folder" in text for text in said)
    export_stores(tiles / "a.h5", tmp_path / "out", "folder")
    manifest = tmp_path / "out/pathgen-export.json"
    value = json.loads(manifest.read_text())
    value["files"]["../in/a.h5"] = 0
    manifest.write_text(json.dumps(value))
    (problem,) = (f for f in verify(tmp_path / "out").findings if f.state == "error")
    assert "PG-O20" in problem.what


# Files with the names of outputs


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "mpp: 0.5\n"), ("config.yaml", "lr: 0.1  # of my training\n"),
        ("config.yaml", "{"), ("slides.csv", "slide,label\na.svs,1\n"), ("slides.json", "[]"),
        ("slides.json", '{"mine": 1}'), ("events.jsonl", '{"event": "click"}\n'),
        ("thumbnails/a.jpg", "my picture"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["tile", "overwrite", "refilter"])
def test_files_of_others_are_not_replaced(
    slides: Path, tiles: Path, tmp_path: Path, name: str, text: str, command: str
) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text(text)
    before = listing(out)
    with pytest.raises(ConfigError, match=rf"PG-O19.*{name}"):
        if command == "refilter":
            refilter(tiles, out, CHOICE)
        else:
            tile(slides, out, SMALL, workers=0, overwrite=command == "overwrite")
    assert listing(out) == before


@pytest.mark.parametrize("left", ["config", "thumbnail", "events", "store", "table", "all"])
def test_a_run_that_was_stopped_goes_on(
    slides: Path, tiles: Path, tmp_path: Path, left: str
) -> None:
    """As `tile` writes: settings, thumbnail, store, log, slides.csv, slides.json."""
    out = tmp_path / "out"
    kept = ["config.yaml", "thumbnails/a.jpg", "a.h5", "events.jsonl", "slides.csv", "slides.json"]
    order = ["config", "thumbnail", "store", "events", "table", "all"]
    for name in kept[: order.index(left) + 1]:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes((tiles / name).read_bytes())
    for config in (SMALL, SMALL.model_copy(update={"write_tissue": True})):
        assert tile(slides, out, config, workers=0).counts["done"] == 1


@pytest.mark.parametrize("left", ["config.yaml", "thumbnails/a.jpg", "a.h5", "slides.csv"])
def test_a_choice_that_was_stopped_goes_on(tiles: Path, tmp_path: Path, left: str) -> None:
    refilter(tiles, tmp_path / "whole", CHOICE)
    order = ["config.yaml", "thumbnails/a.jpg", "a.h5", "slides.csv"]
    for name in order[: order.index(left) + 1]:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    refilter(tiles, tmp_path / "out", CHOICE)
    assert listing(tmp_path / "out") == listing(tmp_path / "whole")


def test_the_settings_given_are_not_replaced(
    slides: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("config.yaml")
    words = ["tile", str(slides), "-c", "config.yaml", "-o", ".", "--workers", "0"]
    for text, more in (("patch_size: 128\n", []), (to_yaml(SMALL), ["--set", "mpp=1"])):
        own.write_text(text)
        with pytest.raises(SystemExit) as ended:
            main([*words, *more])
        assert ended.value.code == 2
        assert "PG-O19" in capsys.readouterr().err
        assert listing(tmp_path) == {"config.yaml": text.encode()}
    with pytest.raises(SystemExit) as ended:  # what would be written is there
        main(words)
    assert not ended.value.code
    assert own.read_text() == to_yaml(SMALL)
    own.write_text(to_yaml(SMALL) + "# tried\n")  # beside its ledger it is ours
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert not ended.value.code


@pytest.mark.parametrize("name", ["doctor.csv", "doctor.html"])
def test_a_diagnosis_replaces_only_a_diagnosis(tmp_path: Path, name: str) -> None:
    for _ in range(2):
        write_diagnosis(Diagnosis(()), tmp_path)
    (tmp_path / name).write_text("<title>mine</title>")
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match=rf"PG-O19.*{name}"):
        write_diagnosis(Diagnosis(()), tmp_path)
    assert listing(tmp_path) == before


def test_a_report_replaces_only_a_report(tiles: Path, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    for _ in range(2):
        write_report(tiles, page)
    page.write_text("<title>my site</title>")
    with pytest.raises(ConfigError, match=r"PG-O19.*index\.html"):
        write_report(tiles, page)
    assert page.read_text() == "<title>my site</title>"


# Exports


@pytest.mark.parametrize("added", ["20x_32px_0px_overlap/features_uni/S1.h5", "notes.txt", "link"])
def test_an_export_with_files_of_others_is_not_replaced(tmp_path: Path, added: str) -> None:
    patches = write_patches(tmp_path / "S1.h5", "S1")
    export_stores(patches, tmp_path / "out", "trident")
    place = tmp_path / "out" / added
    place.parent.mkdir(parents=True, exist_ok=True)
    if added == "link":
        place.symlink_to(tmp_path)
    else:
        place.write_text("hours of work")
    before = listing(tmp_path / "out")
    with pytest.raises(StorageError, match=rf"PG-F01.*{added}"):
        export_stores(patches, tmp_path / "out", "trident", overwrite=True)
    assert listing(tmp_path / "out") == before
    place.unlink()
    (tmp_path / "out/.DS_Store").touch()
    export_stores(patches, tmp_path / "out", "trident", overwrite=True)


def test_what_is_added_during_an_export_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathgen.exchange import folder as writer

    patches = write_patches(tmp_path / "S1.h5", "S1")
    write_features(tmp_path / "f/S1.h5", patches)
    export_stores(patches, tmp_path / "out", "folder")
    write = writer.write

    def slowly(*words: Any) -> None:
        write(*words)
        (tmp_path / "out/mine.txt").write_text("mine")

    monkeypatch.setattr(writer, "write", slowly)
    with pytest.raises(StorageError, match="PG-F01"):
        export_stores(patches, tmp_path / "out", "folder", overwrite=True)
    assert (tmp_path / "out/mine.txt").read_text() == "mine"
    assert not list(tmp_path.glob(f"{commit.PREFIX}*"))


def test_every_file_and_folder_is_synced_before_the_name_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    at_once: set[int] = set()
    final = tmp_path / "final"

    def sync(path: Path) -> None:
        assert path == tmp_path or not final.exists()
        synced.append(path)
        at_once.add(threading.get_ident())

    monkeypatch.setattr(commit, "_fsync", sync)
    with commit.draft(final) as draft:
        for number in range(60):
            (draft / f"{number % 3}").mkdir(parents=True, exist_ok=True)
            (draft / f"{number % 3}/{number}").touch()
        made = {draft, *draft.rglob("*")}
    assert set(synced) == {*made, tmp_path}
    assert len(synced) == len(made) + 1
    assert len(at_once) > 1


def test_a_disk_that_fails_while_syncing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        if path.name == "40":
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(commit, "_fsync", fail)
    with pytest.raises(StorageError, match="PG-O03"), commit.draft(tmp_path / "final") as draft:
        draft.mkdir()
        for number in range(60):
            (draft / str(number)).touch()
    assert not list(tmp_path.iterdir())
