"""A folder of slides becomes a folder of stores: every slide accounted for, whatever happens."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers_tiling import tissue_image, write_svs
from PIL import Image

from pathgen import commit
from pathgen.errors import (
    BusyError,
    ConfigError,
    NoInputError,
    PathgenError,
    SlideError,
    StorageError,
)
from pathgen.stores import decode_patch, open_store
from pathgen.tiling import TileConfig, open_slide, slide_info, tile
from pathgen.tiling.pool import Crashed, run_all
from pathgen.tiling.task import TileTask
from pathgen.tiling.tiler import tile_slide

SMALL = TileConfig(patch_size=128, thumbnail_px=256)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two good slides, an empty one, and four that fail for four reasons."""
    root = tmp_path_factory.mktemp("slides")
    write_svs(root / "a.svs", tissue_image(seed=1))
    write_svs(root / "sub/b.svs", tissue_image(900, 700, seed=2), mpp=0.25)
    write_svs(root / "glass.svs", np.full((600, 800, 3), 240, np.uint8))
    write_svs(root / "tiny.svs", tissue_image(100, 100), levels=(1,))
    write_svs(root / "scaleless.svs", tissue_image(600, 400), mpp=None)
    (root / "text.svs").write_text("no slide\n" * 99)
    (root / "cut.svs").write_bytes((root / "a.svs").read_bytes()[:40_000])
    (root / "notes.txt").write_text("not a slide at all")
    return root


@pytest.fixture(scope="module")
def tiled(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiled") / "out"
    tile(slides, out, SMALL, workers=0)
    return out


def hashes(out: Path) -> dict[str, str]:
    """Every file of an output folder but the log and the lock, with its hash."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("events.jsonl", ".pathgen-lock")
    }


def ledger(out: Path) -> dict[str, dict[str, str]]:
    with (out / "slides.csv").open(newline="") as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


def test_each_slide_ends_in_one_state_with_a_reason(tiled: Path) -> None:
    rows = ledger(tiled)
    assert {name: (row["state"], row["reason"]) for name, row in rows.items()} == {
        "a": ("done", "ok"),
        "sub/b": ("done", "ok"),
        "glass": ("empty", "no_tissue"),
        "tiny": ("empty", "too_small"),
        "scaleless": ("failed", "PG-S07"),
        "text": ("failed", "PG-S02"),
        "cut": ("failed", "PG-S03"),
    }
    assert all(row["message"] for row in rows.values() if row["state"] != "done")


def test_counts_add_up(tiled: Path) -> None:
    report = json.loads((tiled / "slides.json").read_text())
    counts = report["counts"]
    assert counts["slides"] == counts["done"] + counts["empty"] + counts["failed"] == 7
    assert counts["patches"] == sum(row["patches"] for row in report["slides"]) > 20
    assert report["ignored"] == {".txt": 1}
    for row in report["slides"]:
        dropped = sum(count for name, count in row.items() if name.startswith("dropped_"))
        assert row["candidates"] == dropped + row["patches"]
        stored = len(open_store(tiled / row["store"])) if row["store"] else 0
        assert stored == row["patches"]
        assert row["mpp_source"] == ("vendor" if row["store"] else None)
    assert [row["slide"] for row in report["slides"]] == sorted(ledger(tiled))


def test_patches_are_the_slides_pixels(slides: Path, tiled: Path) -> None:
    store = open_store(tiled / "a.h5")
    with open_slide(slides / "a.svs") as slide:
        for row in range(0, len(store), 5):
            position = tuple(store.coords([row])[0].tolist())
            region = slide.read(position, 0, (128, 128)).astype(int)
            assert np.abs(store.images([row])[0].astype(int) - region).mean() < 2
    grid = store.grid()
    assert (np.diff(grid[:, 0] * 1000 + grid[:, 1]) > 0).all()
    assert (store.measure("tissue") >= SMALL.min_tissue).all()
    assert (store.measure("hematoxylin") >= SMALL.min_hematoxylin).all()
    assert store.attrs["patch_size_level0"] == 128
    assert open_store(tiled / "sub/b.h5").attrs["patch_size_level0"] == 256
    assert store.slide.name == "a"
    assert decode_patch(store.encoded([0])[0]).shape == (128, 128, 3)


def test_an_empty_slide_has_a_sealed_store_and_a_picture(tiled: Path) -> None:
    store = open_store(tiled / "glass.h5")
    store.verify(deep=True)
    assert len(store) == 0
    with Image.open(tiled / "thumbnails/glass.jpg") as picture:
        assert picture.size == (256, 192)


def test_a_second_run_changes_nothing(slides: Path, tiled: Path) -> None:
    before = hashes(tiled)
    times = {path: path.stat().st_mtime_ns for path in tiled.rglob("*.h5")}
    report = tile(slides, tiled, SMALL, workers=0)
    assert report.kept == 4
    assert hashes(tiled) == before
    assert {path: path.stat().st_mtime_ns for path in tiled.rglob("*.h5")} == times


def test_workers_change_no_byte(slides: Path, tiled: Path, tmp_path: Path) -> None:
    tile(slides, tmp_path / "out", SMALL, workers=2)
    assert hashes(tmp_path / "out") == hashes(tiled)


def test_other_settings_are_refused_by_name(slides: Path, tiled: Path) -> None:
    before = hashes(tiled)
    with pytest.raises(ConfigError, match=r"PG-O19.*min_tissue was 0\.5 and is now 0\.7"):
        tile(slides, tiled, SMALL.model_copy(update={"min_tissue": 0.7}), workers=0)
    with pytest.raises(ConfigError, match=r"PG-O19.*store was 'h5' and is now 'zarr'"):
        tile(slides, tiled, SMALL.model_copy(update={"store": "zarr"}), workers=0)
    assert hashes(tiled) == before


@pytest.fixture
def copy(tiled: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiled, tmp_path / "copy"))


def test_overwrite_replaces_the_stores(slides: Path, copy: Path) -> None:
    config = SMALL.model_copy(update={"store": "zarr", "mpp": 1.0})
    report = tile(slides, copy, config, workers=0, overwrite=True)
    assert report.counts["done"] == 2
    assert not list(copy.rglob("*.h5"))
    assert {path.name for path in report.stores} == {"a.zarr", "b.zarr", "glass.zarr", "tiny.zarr"}
    assert all(open_store(path).attrs["target_mpp"] == 1.0 for path in report.stores)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_broken_store_is_made_again(slides: Path, tiled: Path, copy: Path, damage: str) -> None:
    data = bytearray((copy / "a.h5").read_bytes())
    if damage == "cut":
        data = data[: len(data) // 2]
    else:
        data[-2000] ^= 255
    (copy / "a.h5").write_bytes(data)
    tile(slides, copy, SMALL, workers=0)
    assert hashes(copy) == hashes(tiled)


def test_a_changed_slide_is_noticed(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "s/a.svs", tissue_image(600, 400))
    tile(path, tmp_path / "out", SMALL, workers=0)
    write_svs(path, tissue_image(600, 400, seed=9))
    with pytest.raises(ConfigError, match="not the one it was made from"):
        tile(path, tmp_path / "out", SMALL, workers=0)


def test_a_plan_writes_nothing_and_predicts_the_candidates(slides: Path, tmp_path: Path) -> None:
    report = tile(slides, tmp_path / "out", SMALL, workers=0, plan=True)
    assert not (tmp_path / "out").exists()
    assert report.planned
    assert report.counts["failed"] == 3
    config = SMALL.model_copy(update={"min_hematoxylin": 0.0})
    real = tile(slides, tmp_path / "out", config, workers=0)
    assert report.counts["patches"] == real.counts["patches"]
    assert 0.3 < report.bytes / real.bytes < 3


def test_a_list_gives_scale_label_and_patient(slides: Path, tmp_path: Path) -> None:
    shutil.copy(slides / "scaleless.svs", tmp_path)
    (tmp_path / "list.csv").write_text(
        "slide,mpp,label,patient\nscaleless.svs,0.5,007,P1\ngone.svs,,1,P2\n"
    )
    out = tmp_path / "out"
    report = tile(tmp_path / "list.csv", out, SMALL, workers=0)
    rows = ledger(out)
    assert rows["gone"]["reason"] == "PG-N02"
    assert rows["gone"]["patient"] == "P2"
    assert (rows["scaleless"]["mpp"], rows["scaleless"]["mpp_source"]) == ("0.5", "csv")
    store = open_store(report.stores[0])
    assert (store.label, store.patient, store.slide.mpp_source) == ("007", "P1", "csv")
    again = (tmp_path / "list.csv").read_text().replace("007", "008")
    (tmp_path / "list.csv").write_text(again)
    with pytest.raises(ConfigError, match=r"label was '007' and is now '008'"):
        tile(tmp_path / "list.csv", out, SMALL, workers=0)


def test_nothing_identifying_is_kept(tmp_path: Path) -> None:
    canary = "CANARY7f3a"
    write_svs(tmp_path / canary / "a.svs", tissue_image(600, 400), extra=f"|Filename = {canary}")
    out = tmp_path / "out"
    for store in ("h5", "zarr"):
        config = SMALL.model_copy(update={"store": store})
        tile(tmp_path / canary, out / store, config, workers=0)
    assert open_store(out / "h5/a.h5").slide.vendor == "aperio"
    for path in out.rglob("*"):
        assert canary not in path.name
        assert not path.is_file() or canary.encode() not in path.read_bytes()


# What goes wrong


def test_missing_and_unwritable_end_the_run_at_once(slides: Path, tmp_path: Path) -> None:
    with pytest.raises(NoInputError) as nothing:
        tile(tmp_path / "nowhere", tmp_path / "out")
    assert nothing.value.exit_code == 4
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="PG-O01") as unwritable:
        tile(slides, tmp_path / "file")
    assert unwritable.value.exit_code == 7


def test_two_runs_on_one_folder(slides: Path, tmp_path: Path) -> None:
    with commit.lock(commit.writable_folder(tmp_path)), pytest.raises(BusyError, match="PG-O06"):
        tile(slides, tmp_path, SMALL, workers=0)


def test_a_slide_that_changes_while_read_is_not_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_svs(tmp_path / "a.svs", tissue_image(600, 400))
    from pathgen.tiling import cutting

    scores = cutting.stain_scores

    def touching(*args: object) -> object:
        os.utime(path, ns=(1, time.time_ns()))
        return scores(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(cutting, "stain_scores", touching)
    report = tile(path, tmp_path / "out", SMALL, workers=0)
    assert [row.reason for row in report.rows] == ["PG-S12"]
    assert not list((tmp_path / "out").glob("*.h5"))


def test_a_slide_that_fails_now_leaves_no_old_store(slides: Path, copy: Path) -> None:
    config = SMALL.model_copy(update={"mpp": 0.3})
    report = tile(slides, copy, config, workers=0, overwrite=True)
    assert {row.slide for row in report.failed if row.reason == "PG-S08"} == {"a", "glass", "tiny"}
    assert [path.name for path in copy.rglob("*.h5")] == ["b.h5"]


def test_a_bug_costs_one_slide(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathgen.tiling import cutting

    def fails(*args: object) -> object:
        raise RuntimeError("surprise")

    monkeypatch.setattr(cutting, "stain_scores", fails)
    report = tile([slides / "a.svs", slides / "glass.svs"], tmp_path / "out", SMALL, workers=0)
    assert [row.state for row in report.rows] == ["failed", "empty"]
    assert "surprise" in report.rows[0].message
    assert "Traceback" in (tmp_path / "out/events.jsonl").read_text()


def test_a_full_disk_ends_the_run(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pathgen.tiling import tiler

    def full(*args: object, **options: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tiler, "draw_thumbnail", full)
    with pytest.raises(PathgenError, match="PG-O03"):
        tile(slides / "a.svs", tmp_path / "out", SMALL, workers=0)
    assert not list((tmp_path / "out").rglob("*.h5"))


def _double(task: int) -> int:
    if task < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return task * 2


def test_a_crashing_task_is_found_and_the_others_end() -> None:
    tasks = [1, -1, 3, 4]
    results = dict(run_all(_double, tasks, workers=2))
    crash = results.pop(1)
    assert isinstance(crash, Crashed)
    assert crash.kind == "killed"
    assert results == {0: 2, 2: 6, 3: 8}


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell starts us with &
from pathgen.tiling import TileConfig, tile
tile(sys.argv[1], sys.argv[2], TileConfig(patch_size=128, thumbnail_px=256), workers=2)
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohort")
    for i in range(5):
        write_svs(root / f"{i}.svs", tissue_image(seed=i))
    return root


@pytest.fixture(scope="module")
def unbroken(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("unbroken")
    tile(cohort, out, SMALL, workers=0)
    return hashes(out)


def stores(out: Path) -> list[Path]:
    """Those under their final name."""
    return [path for path in out.glob("*.h5") if not path.name.startswith(commit.PREFIX)]


def start(cohort: Path, out: Path) -> subprocess.Popen[bytes]:
    """A script without a main guard, as people write them; back when its first store is there."""
    root = Path(__file__).resolve().parents[1]
    script = out.parent / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, cohort, out], stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    limit = time.monotonic() + 60
    while not stores(out):
        assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
        assert time.monotonic() < limit
        time.sleep(0.02)
    return process


def members(group: int) -> list[str]:
    """Processes of a group that are alive."""
    listed = subprocess.run(["ps", "-eo", "pgid=,stat=,pid="], capture_output=True, text=True)
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [pid for pgid, state, pid in rows if int(pgid) == group and state[0] != "Z"]


@pytest.mark.skipif(shutil.which("ps") is None, reason="needs ps")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on_to_the_same_bytes(
    cohort: Path, unbroken: dict[str, str], tmp_path: Path, how: signal.Signals
) -> None:
    out = tmp_path / "out"
    process = start(cohort, out)
    os.kill(process.pid, how)
    errors = process.communicate(timeout=20)[1]
    limit = time.monotonic() + 10
    while members(process.pid):
        assert time.monotonic() < limit, "workers outlive their parent"
        time.sleep(0.05)
    for path in stores(out):
        open_store(path).verify(deep=True)
    if how == signal.SIGINT:
        assert b"KeyboardInterrupt" in errors
        assert not list(out.rglob(f"{commit.PREFIX}*"))
    tile(cohort, out, SMALL, workers=0)
    assert hashes(out) == unbroken


def test_one_slide_alone(slides: Path, tmp_path: Path) -> None:
    from pathgen.tiling.inputs import SlideInput

    task = TileTask(SlideInput(slides / "a.svs", "x/y"), tmp_path, SMALL)
    row = tile_slide(task)
    assert (row.slide, row.store, row.state) == ("x/y", "x/y.h5", "done")
    with pytest.raises(SlideError, match="PG-S02"):
        tile_slide(TileTask(SlideInput(slides / "text.svs", "t"), tmp_path, SMALL))
    assert slide_info(slides / "a.svs")["problems"] == []
