from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pathgen import commit, provenance
from pathgen.errors import BusyError, StorageError
from pathgen.provenance import Provenance


def test_a_file_appears_only_when_the_block_ends_well(tmp_path: Path) -> None:
    final = tmp_path / "a.bin"
    with commit.draft(final) as draft:
        draft.write_bytes(b"1")
        assert not final.exists()
    assert final.read_bytes() == b"1"
    with pytest.raises(KeyboardInterrupt), commit.draft(final) as draft:
        draft.write_bytes(b"2")
        raise KeyboardInterrupt
    assert final.read_bytes() == b"1"
    assert list(tmp_path.iterdir()) == [final]


def test_a_folder_replaces_a_folder(tmp_path: Path) -> None:
    final = tmp_path / "store.zarr"
    for content in ("old", "new"):
        with commit.draft(final) as draft:
            (draft / "c").mkdir(parents=True)
            (draft / "c" / "0").write_text(content)
    assert (final / "c" / "0").read_text() == "new"
    assert list(tmp_path.iterdir()) == [final]


def test_drafts_of_dead_processes_are_swept_and_living_ones_kept(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pathgen import commit\n"
        "with commit.draft(Path(sys.argv[1])) as d:\n"
        "    d.write_bytes(b'x'); print('ready', flush=True); time.sleep(60)\n"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    with worker.stdout:
        assert worker.stdout.readline().strip() == "ready"
    assert commit.sweep(tmp_path) == 0
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert [path.name.startswith(commit.PREFIX) for path in tmp_path.iterdir()] == [True]
    assert commit.sweep(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(StorageError, match=r"PG-O01 .*not a folder"):
        commit.writable_folder(tmp_path / "out")
    with pytest.raises(StorageError, match="PG-O01"):
        commit.writable_folder(tmp_path / "out" / "deeper")


def test_a_full_disk_is_said_so(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    with (
        pytest.raises(StorageError, match=r"PG-O03 no space left"),
        commit.draft(tmp_path / "a"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x" * 10)


def test_one_folder_one_writer(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from pathgen import commit\n"
        "with commit.lock(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    with other.stdout:
        assert other.stdout.readline().strip() == "held"
    with pytest.raises(BusyError, match="PG-O06"), commit.lock(tmp_path):
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    time.sleep(0.05)
    with commit.lock(tmp_path):  # the kernel let go of it
        pass


def test_drafts_of_another_host_are_swept_after_a_day(tmp_path: Path) -> None:
    """A container's host name is gone with it: nobody else would ever remove them."""
    old, new = (tmp_path / f"{commit.PREFIX}elsewhere+12+abc+{name}.h5" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    yesterday = time.time() - commit.FOREIGN_DRAFT_AGE - 60
    os.utime(old, (yesterday, yesterday))
    assert commit.sweep(tmp_path) == 1
    assert not old.exists()
    assert new.exists()


def test_the_folder_of_an_output_is_made(tmp_path: Path) -> None:
    commit.write_json(tmp_path / "results" / "k.json", {"a": 1})
    assert commit.read_json(tmp_path / "results" / "k.json") == {"a": 1}


def test_a_change_of_method_changes_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Provenance(stage="tile", config={"a": 1}, inputs={})
    monkeypatch.setattr(provenance, "REVISIONS", {"tile": 99})
    after = Provenance(stage="tile", config={"a": 1}, inputs={})
    assert after.id != before.id
    assert Provenance(stage="dino", config={"a": 1}, inputs={}).revision == 1
    # What is read back keeps the revision it was made by.
    assert Provenance.model_validate_json(before.model_dump_json()).id == before.id
