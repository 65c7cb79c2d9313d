"""Processes may come and go on one folder at any moment: none loses its files by another."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from pathgen import commit
from pathgen.errors import StorageError
from pathgen.tiling.claims import FOLDER, Claims, join
from pathgen.tiling.ledger import LedgerRow

ROW = LedgerRow("a", "failed", "PG-S04", "as it was", "a.svs")
SCRIPT = """
import sys
from pathlib import Path
from pathgen.tiling.claims import join
for i in range(int(sys.argv[2])):
    with join(Path(sys.argv[1]), {}) as mine:
        assert mine.take(f"slide {i}"), i
        assert (mine.folder / f"{mine.token}.member").exists(), "the member file is gone"
        mine.release(f"slide {i}")
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return commit.writable_folder(tmp_path / "out")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk, so that more happens at once."""
    monkeypatch.setattr("pathgen.commit._fsync", lambda path: None)


@pytest.mark.usefixtures("fast")
def test_threads_join_and_leave_in_a_tight_loop(out: Path) -> None:
    failed: list[BaseException] = []

    def works(name: int) -> None:
        try:
            for i in range(150):
                with join(out, {}) as mine:
                    member = mine.folder / f"{mine.token}.member"
                    slide = f"{name} {i}"
                    assert mine.take(slide)
                    mine.tell(slide, ROW)
                    assert member.exists(), "the member file is gone"
                    assert mine.held(slide) is False
                    assert mine.told(slide) == ROW
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=works, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]
    assert not (out / FOLDER).exists()


def test_processes_join_and_leave_in_a_tight_loop(out: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT.replace("slide", f"slide {name}"), str(out), "60"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])},
        )
        for name in range(3)
    ]
    for process in processes:
        errors = process.communicate(timeout=60)[1]
        assert process.returncode == 0, errors
    assert not (out / FOLDER).exists()


def test_one_that_joins_while_the_last_leaves_keeps_its_files(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look at the others and the removal of the folder."""
    looked = Claims.others
    newcomers: list[AbstractContextManager[Claims]] = []

    def looks(claims: Claims) -> object:
        found = list(looked(claims))
        if not newcomers and not (claims.folder / f"{claims.token}.member").exists():
            newcomers.append(join(out, {}))
            other = newcomers[0].__enter__()
            other.tell("a", ROW)
            assert other.take("a")
        return iter(found)

    monkeypatch.setattr(Claims, "others", looks)
    with join(out, {}):
        pass
    kinds = sorted(path.suffix for path in (out / FOLDER).iterdir())
    assert kinds == [".claim", ".member", ".row"]
    newcomers[0].__exit__(None, None, None)
    assert not (out / FOLDER).exists()


def test_what_the_dead_have_left_goes_with_the_last(out: Path) -> None:
    with join(out, {}) as mine:
        dead = Claims(mine.folder, "dead", time.time())
        gone = subprocess.Popen([sys.executable, "-c", ""])
        gone.wait()
        facts = {"place": commit.here(), "pid": gone.pid, "started": "0", "alone": False,
                 "settings": {}}  # fmt: skip
        commit.write_json(mine.folder / "dead.member", facts)
        dead.tell("a", ROW)
        assert dead.take("a")
        (mine.folder / f"{commit.PREFIX}{commit.here()}+{gone.pid}+0+x").touch()
    assert not (out / FOLDER).exists()


def test_files_of_the_living_stay(out: Path) -> None:
    with join(out, {}) as first:
        first.tell("a", ROW)
        assert first.take("a")
        with join(out, {}) as second:
            second.tell("b", ROW)
        assert first.told("a") == ROW
        assert first.told("b") == ROW, "for those that still work"
        assert not second.take("a")
    assert not (out / FOLDER).exists()


def test_a_folder_that_vanishes_while_one_joins_is_made_again(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, failures = commit.write_json, [FileNotFoundError(2, "gone"), FileExistsError(17, "")]

    def writes(path: Path, value: object) -> None:
        if failures:
            raise failures.pop()
        written(path, value)

    monkeypatch.setattr("pathgen.commit.write_json", writes)
    with join(out, {}) as mine:
        assert list(mine.folder.glob("*.member"))

    def vanishes(path: Path, value: object) -> None:
        raise FileNotFoundError(2, "gone")

    monkeypatch.setattr("pathgen.commit.write_json", vanishes)
    with pytest.raises(StorageError, match="vanishes"), join(out, {}):
        pass


def test_a_file_in_the_making_stays(out: Path) -> None:
    with join(out, {}) as mine:
        draft = commit.draft_path(mine.folder / "newcomer.member")
        draft.write_text("half of it")
    assert list((out / FOLDER).iterdir()) == [draft]
