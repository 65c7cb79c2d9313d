"""Several processes on one output folder share the work, and any of them may die."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers_tiling import tissue_image, write_svs

from pathgen import commit
from pathgen.errors import BusyError, ConfigError
from pathgen.progress import Silent
from pathgen.tiling import TileConfig, tile
from pathgen.tiling import claims as claiming
from pathgen.tiling.attempt import Job, attempt
from pathgen.tiling.batch import _settings
from pathgen.tiling.claims import FOLDER, Claims, join
from pathgen.tiling.inputs import find_slides
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.task import TileTask
from pathgen.tiling.tiler import tile_slide

SMALL = TileConfig(patch_size=128, thumbnail_px=256)
ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import sys, json
from pathlib import Path
from pathgen.tiling import TileConfig, tile
slides, out, store, workers = sys.argv[1:5]
if len(sys.argv) > 5:  # both wait for a file, to start together
    import time
    print("ready", flush=True)
    while not Path(sys.argv[5]).exists(): time.sleep(0.01)
config = TileConfig(patch_size=128, thumbnail_px=256, store=store)
report = tile(slides, out, config, workers=int(workers))
print(json.dumps(report.to_dict()))
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six good slides and one that fails."""
    root = tmp_path_factory.mktemp("cohort")
    for i in range(6):
        write_svs(root / f"{i}.svs", tissue_image(seed=i))
    (root / "text.svs").write_text("no slide\n" * 99)
    return root


@pytest.fixture(scope="module")
def alone(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What one process makes, by the kind of store: the truth for all others."""
    truth = {}
    for kind in ("h5", "zarr"):
        out = tmp_path_factory.mktemp(kind)
        tile(cohort, out, SMALL.model_copy(update={"store": kind}), workers=0)
        truth[kind] = hashes(out)
    return truth


def hashes(out: Path) -> dict[str, str]:
    """Every file but the log and the lock: claims and drafts that were left would show."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("events.jsonl", ".pathgen-lock")
    }


def events(out: Path) -> Counter[str]:
    lines = (out / "events.jsonl").read_text().splitlines()
    return Counter(json.loads(line)["slide"] for line in lines)


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, words)], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> str:
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return out.splitlines()[-1]


def until(condition: object, limit: float = 30.0) -> None:
    stop = time.monotonic() + limit
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < stop
        time.sleep(0.01)


@pytest.mark.parametrize("kind", ["h5", "zarr"])
def test_two_processes_share_the_slides(
    cohort: Path, alone: dict[str, dict[str, str]], tmp_path: Path, kind: str
) -> None:
    out, go = tmp_path / "out", tmp_path / "go"
    both = [start(cohort, out, kind, 0, go) for _ in range(2)]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    go.touch()
    reports = [json.loads(ended(process)) for process in both]
    assert reports[0] == reports[1]
    assert hashes(out) == alone[kind]
    done = events(out)
    assert set(done) == {path.stem for path in cohort.iterdir()}
    assert set(done.values()) == {1}, "a slide was worked on twice"


@pytest.mark.parametrize(("workers", "kind"), [(0, "zarr"), (1, "h5")])
def test_one_is_killed_and_the_other_ends_its_work(
    cohort: Path, alone: dict[str, dict[str, str]], tmp_path: Path, workers: int,
    kind: str,
) -> None:  # fmt: skip
    out, go = tmp_path / "out", tmp_path / "go"
    victim, survivor = (start(cohort, out, kind, workers, go) for _ in range(2))
    go.touch()
    until(lambda: len(list((out / FOLDER).glob("*.claim"))) == 2)
    until(lambda: len(list(out.glob(f"[0-9].{kind}"))) > 1)
    os.kill(victim.pid, signal.SIGKILL)
    victim.communicate()
    ended(survivor)
    tile(cohort, out, SMALL.model_copy(update={"store": kind}), workers=0)  # sweeps
    assert hashes(out) == alone[kind]


@pytest.mark.parametrize(
    ("how", "kind"), [(signal.SIGTERM, "h5"), (signal.SIGINT, "h5"), (signal.SIGKILL, "zarr")]
)
def test_all_are_stopped_and_one_goes_on(
    cohort: Path, alone: dict[str, dict[str, str]], tmp_path: Path, how: signal.Signals,
    kind: str,
) -> None:  # fmt: skip
    out = tmp_path / "out"
    both = [start(cohort, out, kind, 0) for _ in range(2)]
    until(lambda: len(list(out.glob(f"[0-9].{kind}"))) > 1)
    for process in both:
        os.kill(process.pid, how)
    for process in both:
        process.communicate(timeout=20)
    tile(cohort, out, SMALL.model_copy(update={"store": kind}), workers=0)
    assert hashes(out) == alone[kind]


# In one process: what the others see


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        write_svs(tmp_path / f"slides/{name}.svs", tissue_image(600, 400, seed=ord(name)))
    return tmp_path / "slides"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return commit.writable_folder(tmp_path / "out")


def test_other_settings_or_slides_at_the_same_time_are_refused(slides: Path, out: Path) -> None:
    def joined(config: TileConfig, *given: Path) -> dict[str, object]:
        tasks = [TileTask(slide, out, config) for slide in find_slides(given)[0]]
        return _settings(tasks, config)

    with join(out, joined(SMALL, slides)):
        with pytest.raises(BusyError, match=r"PG-O06.*mpp is 0\.5 there and 1\.0 here"):
            tile(slides, out, SMALL.model_copy(update={"mpp": 1.0}), workers=0)
        with pytest.raises(BusyError, match=r"PG-O06.*slides is '2 \(.*' there and '1 \("):
            tile(slides / "a.svs", out, SMALL, workers=0)
        with pytest.raises(BusyError, match="PG-O06"):
            tile(slides, out, SMALL, workers=0, overwrite=True)
        assert tile(slides, out, SMALL, workers=0).counts["done"] == 2
    assert not (out / FOLDER).exists()
    with join(out, {}, alone=True), pytest.raises(BusyError, match="PG-O06"):
        tile(slides, out, SMALL, workers=0)


def member(claims: Claims, token: str, **facts: object) -> Claims:
    """Another process, as its file tells of it."""
    known = {"place": "elsewhere-0", "pid": 1, "started": "1", "alone": False, "settings": {}}
    path = claims.folder / f"{token}.member"
    commit.write_json(path, {**known, **facts})
    return dataclasses.replace(claims, token=token)


def older(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_claim_holds_as_long_as_its_owner_lives(out: Path) -> None:
    with join(out, {}) as mine:
        far = member(mine, "far")
        assert far.take("x")
        assert (mine.take("x"), mine.held("x")) == (False, True)
        older(mine.folder / "far.member", claiming.STALE - 30)
        assert not mine.take("x")
        older(mine.folder / "far.member", claiming.STALE + 1)
        assert not mine.held("x")
        assert mine.take("x")
        assert mine.take("x"), "it is mine already"
        mine.release("x")
        assert not list(mine.folder.glob("*.claim*"))
        gone = member(mine, "gone", place=commit.here(), pid=os.getpid(), started="another")
        assert gone.take("y")
        assert mine.take("y"), "that number is another process's now"


def test_a_claim_without_a_name_is_void_after_a_while(out: Path) -> None:
    with join(out, {}) as mine:
        path = mine._claim("x")
        path.touch()
        assert not mine.take("x")
        older(path, claiming.NAMELESS + 1)
        assert mine.take("x")


def test_work_goes_on_when_the_folder_of_claims_is_taken_away(slides: Path, out: Path) -> None:
    import shutil

    with join(out, {}) as mine:
        shutil.rmtree(mine.folder)
        assert mine.take("x")
        assert mine.told("x") is None
        assert not mine.held("x")


def test_a_failure_is_told_to_the_others_and_tried_again_later(slides: Path, out: Path) -> None:
    good = (slides / "a.svs").read_bytes()
    (slides / "a.svs").write_bytes(b"")
    task = TileTask(find_slides(slides)[0][0], out, SMALL)
    with join(out, {}) as mine:
        far = member(mine, "far")
        row = attempt(Job(task, far)).row
        assert row is not None
        assert row.reason == "PG-S01"
        (slides / "a.svs").write_bytes(good)
        told = attempt(Job(task, mine))
        assert (told.row, told.event) == (row, None), "as the other one said, without trying"
        # What a run that is over has said does not count.
        older(mine._row("a"), 60)
        (mine.folder / "far.member").unlink()
        assert attempt(Job(task, mine)).row.state == "done"  # type: ignore[union-attr]
        # A store made meanwhile is taken as it is; one with other settings is refused.
        assert attempt(Job(task, mine)).event is None
        coarse = dataclasses.replace(task, config=SMALL.model_copy(update={"mpp": 1.0}))
        with pytest.raises(ConfigError, match="PG-O19"):
            attempt(Job(coarse, mine))
    assert hashes(out).keys() == {"a.h5", "thumbnails/a.jpg"}


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Notes]:
        yield self

    def advance(self, count: int = 1, note: str = "") -> None:
        self.notes.append(note)


@pytest.mark.parametrize("how", ["it fails there", "it is made there", "its process dies"])
def test_the_last_slides_of_others_are_waited_for(slides: Path, out: Path, how: str) -> None:
    task = TileTask(find_slides(slides)[0][0], out, SMALL)
    row = LedgerRow("a", "failed", "PG-S04", "as the other said", "a.svs")
    notes = Notes()
    tasks = [TileTask(slide, out, SMALL) for slide in find_slides(slides)[0]]
    (out / FOLDER).mkdir()
    far = member(Claims(out / FOLDER, "", 0.0), "far", settings=_settings(tasks, SMALL))
    assert far.take("a")

    def goes_on() -> None:
        until(lambda: "waiting for others: 1" in notes.notes)
        if how == "it fails there":
            far.tell("a", row)
        elif how == "it is made there":
            tile_slide(task)
        (far.folder / "far.member").unlink()

    other = threading.Thread(target=goes_on)
    other.start()
    report = tile(slides, out, SMALL, workers=0, progress=notes)
    other.join()
    assert report.rows[0].reason == ("PG-S04" if how == "it fails there" else "ok")
    assert set(events(out)) == ({"a", "b"} if how == "its process dies" else {"b"})
    assert not (out / FOLDER).exists()
