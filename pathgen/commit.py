"""Whole or not at all: every output is written beside its place, synced, then renamed.

What this relies on: a rename within one folder is atomic, and an fsync'ed file survives a
power cut. A killed process leaves only names that start with ``.pathgen-tmp-``; nothing reads
those, and `sweep` removes them when their owner is gone.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from pathgen.errors import BusyError, StorageError

PREFIX = ".pathgen-tmp-"
FOREIGN_DRAFT_AGE = 24 * 3600.0  # seconds


def draft_path(final: Path) -> Path:
    """A name beside `final` that says who is writing: host, pid, and a random part."""
    host = socket.gethostname().replace(".", "_").replace("+", "_")
    return final.with_name(f"{PREFIX}{host}+{os.getpid()}+{uuid4().hex[:8]}+{final.name}")


def publish(draft: Path, final: Path) -> None:
    """Sync `draft` (a file or a folder) and give it its final name, replacing what is there."""
    try:
        for path in sorted(draft.rglob("*")) if draft.is_dir() else [draft]:
            if path.is_file():
                _fsync(path)
        if draft.is_dir():
            for folder in [p for p in draft.rglob("*") if p.is_dir()] + [draft]:
                _fsync(folder)
        if final.is_dir() and not final.is_symlink():
            old = draft_path(final)
            final.rename(old)  # a folder cannot be renamed onto a full one
            draft.rename(final)
            _fsync(final.parent)
            shutil.rmtree(old)
        else:
            os.replace(draft, final)
            _fsync(final.parent)
    except OSError as error:
        raise storage_error(error, final) from error


@contextmanager
def draft(final: Path) -> Iterator[Path]:
    """A path to write to; it becomes `final` when the block ends well, and is removed otherwise.

    The folder of `final` is made when it is not there.
    """
    path = draft_path(final)
    try:
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            yield path
        except OSError as error:
            if error.errno in _STORAGE_ERRNOS:
                raise storage_error(error, final) from error
            raise
        publish(path, final)
    finally:  # KeyboardInterrupt included
        discard(path)


def discard(path: Path) -> None:
    """Remove a file or folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):
            path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    with draft(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, with sorted keys so that equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def sweep(folder: Path) -> int:
    """Remove drafts below `folder` that nobody writes any more; how many.

    Those of this host, when their process is gone; those of another (a container's name is gone
    with it), when they were not touched for a day.
    """
    host = socket.gethostname().replace(".", "_").replace("+", "_")
    removed = 0
    for path in folder.rglob(f"{PREFIX}*"):
        parts = path.name.removeprefix(PREFIX).split("+")
        if len(parts) < 4 or not parts[1].isdigit():
            continue
        if _alive(int(parts[1])) if parts[0] == host else _age(path) < FOREIGN_DRAFT_AGE:
            continue
        discard(path)
        removed += 1
    return removed


def _age(path: Path) -> float:
    """Seconds since the newest change in a file or folder; 0 when it has just gone."""
    try:
        inside = path.rglob("*") if path.is_dir() else ()
        newest: float = max(p.stat().st_mtime for p in (path, *inside))
    except OSError:
        return 0.0
    return time.time() - newest


def writable_folder(path: Path) -> Path:
    """Create `path` and prove that a file can be made in it, or raise StorageError (PG-O01)."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = draft_path(path / "probe")
        probe.write_bytes(b"")
        probe.unlink()
    except (FileExistsError, NotADirectoryError) as error:
        raise StorageError(
            "output is not a folder", where=path, why="a file has that name",
            hint="choose another --out",
        ) from error  # fmt: skip
    except OSError as error:
        raise storage_error(error, path) from error
    return path


_STORAGE_ERRNOS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO
}  # fmt: skip


def storage_error(error: OSError, path: Path) -> StorageError:
    """An OSError from writing, as the message a user can act on."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageError(
            "no space left for the output", code="PG-O03", where=path, why=str(error.strerror),
            hint="free some space and run the same command again; finished slides are kept",
        )  # fmt: skip
    return StorageError(
        "output cannot be written", where=path, why=str(error.strerror or error),
        hint="check permissions or choose another --out",
    )  # fmt: skip


def _fsync(path: Path) -> None:
    if os.name == "nt":  # folders cannot be opened there, and files only for writing synced
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot
            raise
    finally:
        os.close(handle)


def _alive(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # no /proc here
        return True
    return state != "Z"  # killed, and not yet waited for by its parent


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold `folder` against other pathgen processes; BusyError when one has it.

    The kernel frees the lock when its process dies, so there are no stale locks. Where the file
    system or platform has no such locks nothing is held: outputs stay whole, as each is renamed
    into place, and at worst work is done twice.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        handle = (folder / ".pathgen-lock").open("a")
    except OSError as error:
        raise storage_error(error, folder) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise BusyError(
                    "another pathgen is writing here", where=folder,
                    hint="wait for it, or choose another --out",
                ) from error  # fmt: skip
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
        yield
