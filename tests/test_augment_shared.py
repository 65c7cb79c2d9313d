"""Several processes draw one plan: each store by one of them, measured once, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers_augment import CONFIG, Parts, make_parts

from pathgen import commit
from pathgen.augment import draw, works
from pathgen.claims import FOLDER, Claims, join
from pathgen.errors import BusyError, Stopped
from pathgen.progress import Silent
from pathgen.stores import find_stores

pytestmark = pytest.mark.usefixtures("one_thread")
SHARED = CONFIG.model_copy(update={"shard": 3})
STORES = ["a-00000.h5", "a-00001.h5", "a-00002.h5", "a-00003.h5", "b-00000.h5", "b-00001.h5"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.getbasetemp())


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(thread, what it made), and no long waiting."""
    made: list[tuple[str, str]] = []
    do, measure = works.Work.do, draw.measure

    def noted(work: works.Work, *rest: Any) -> None:
        made.append((threading.current_thread().name, work.name))
        do(work, *rest)

    def measured(*rest: Any) -> dict[str, Any]:
        made.append((threading.current_thread().name, "metrics"))
        return measure(*rest)

    monkeypatch.setattr(works.Work, "do", noted)
    monkeypatch.setattr(draw, "measure", measured)
    monkeypatch.setattr(draw, "LOOK_AGAIN", (0.01, 0.02))
    return made


def test_two_share_the_stores_and_both_return_when_all_is_there(
    parts: Parts, tmp_path: Path, log: list[tuple[str, str]]
) -> None:
    alone = parts.augment(tmp_path / "alone", SHARED)
    log.clear()
    both_draw = threading.Barrier(2)
    found: dict[str, Any] = {}

    class Together(Silent):
        """Nobody finishes a first store before the other has begun one."""

        def task(self, title: str, total: int, done: int = 0) -> Any:
            return _Meeting(both_draw)

    def run() -> None:
        name = threading.current_thread().name
        try:
            found[name] = parts.augment(tmp_path / "both", SHARED, progress=Together())
            found[f"{name} done"] = (tmp_path / "both" / "done.json").exists()
        except BaseException as error:
            found[name] = error

    threads = [threading.Thread(target=run, name=name) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["one"] == found["two"] == [tmp_path / "both" / name for name in STORES], found
    assert found["one done"]
    assert found["two done"]
    assert sorted(name for _, name in log) == [*STORES, "metrics"]  # each once
    assert {thread for thread, _ in log} == {"one", "two"}
    for path in alone:  # and the same as of one process
        assert path.read_bytes() == (tmp_path / "both" / path.name).read_bytes()
    assert not (tmp_path / "both" / FOLDER).exists()


class _Meeting:
    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier, self.met = barrier, False

    def __enter__(self) -> _Meeting:
        return self

    def __exit__(self, *_: object) -> None: ...

    def advance(self, count: int = 1, note: str = "") -> None:
        if count and not self.met:
            self.met = True
            self.barrier.wait(60)


def test_what_a_dead_process_had_claimed_is_drawn_by_another(
    parts: Parts, tmp_path: Path, log: list[tuple[str, str]]
) -> None:
    folder = tmp_path / FOLDER
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    facts = {"place": commit.here(), "pid": gone.pid, "started": "0", "alone": False,
             "settings": {}}  # fmt: skip
    commit.write_json(folder / "dead.member", facts)
    for piece in ("b-00001.h5", "measure"):
        assert Claims(folder, "dead", time.time()).take(piece)
    parts.augment(tmp_path, SHARED)
    assert [name for _, name in log] == [*STORES, "metrics"]


def test_others_with_other_settings_or_who_start_anew_are_kept_out(
    parts: Parts, tmp_path: Path
) -> None:
    with join(tmp_path, {"images": "of another plan"}, kind=Claims):
        with pytest.raises(BusyError, match="other settings"):
            parts.augment(tmp_path, SHARED)
        with pytest.raises(BusyError):
            parts.augment(tmp_path, SHARED, overwrite=True)
    assert not (tmp_path / "done.json").exists()


@pytest.mark.parametrize(("shard", "after", "left"), [(3, 7, STORES[:3]), (5, 7, STORES[:1])])
def test_a_signal_ends_it_between_batches_and_finished_stores_stay(
    parts: Parts, tmp_path: Path, shard: int, after: int, left: list[str]
) -> None:
    config = CONFIG.model_copy(update={"shard": shard})
    count = -(-10 // shard) - (-6 // shard)

    class Terminated(Silent):
        def task(self, title: str, total: int, done: int = 0) -> Any:
            return _Signal(after)

    with pytest.raises(Stopped) as stopped:
        parts.augment(tmp_path, config, progress=Terminated())
    assert stopped.value.exit_code == 85
    assert [path.name for path in find_stores(tmp_path)] == left
    assert not (tmp_path / FOLDER).exists()
    assert not list(tmp_path.glob(f"{commit.PREFIX}*"))
    assert [path.exists() for path in parts.augment(tmp_path, config)] == [True] * count


class _Signal(_Meeting):
    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, count: int = 1, note: str = "") -> None:
        self.left -= count
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGTERM)
            self.left = 10_000
