"""Whole or not at all: every output is written beside its place, synced, then renamed.

What this relies on: a rename within one folder is atomic, and an fsync'ed file survives a
power cut. A killed process leaves only names that start with ``.pathgen-tmp-``; nothing reads
those, and `sweep` removes them when their owner is gone.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from pathgen.errors import BusyError, StorageError

PREFIX = ".pathgen-tmp-"
FOREIGN_DRAFT_AGE = 24 * 3600.0  # seconds
#: Files that are synced at once.
SYNCS = 16


@functools.cache
def here() -> str:
    """Where this process's number means something: the host and, in a container, which one.

    Containers of one host may share its name, and each counts its processes from 1.
    """
    host = socket.gethostname()
    try:
        space = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux
        space = ""
    short = re.sub(r"[^A-Za-z0-9-]", "_", host)[:20]
    return f"{short}-{blake2b((host + space).encode(), digest_size=4).hexdigest()}"


def draft_path(final: Path) -> Path:
    """A name beside `final` that says who is writing: host, pid, and a random part."""
    return final.with_name(f"{PREFIX}{here()}+{os.getpid()}+{uuid4().hex[:8]}+{final.name}")


def publish(draft: Path, final: Path) -> None:
    """Sync `draft` (a file or a folder) and give it its final name, replacing what is there."""
    try:
        if draft.is_dir():
            inside = list(draft.rglob("*"))
            _fsync_all([path for path in inside if path.is_file()])
            _fsync_all([*(path for path in inside if path.is_dir()), draft])
            _swap(draft, final)
        else:
            _fsync(draft)
            os.replace(draft, final)
            _fsync(final.parent)
    except OSError as error:
        raise storage_error(error, final) from error


def _swap(draft: Path, final: Path) -> None:
    """A folder cannot be renamed onto a full one: what is there is moved aside first.

    Others may do the same at the same time; then the last one stays.
    """
    aside = []
    while True:
        if final.is_dir() and not final.is_symlink():
            old = draft_path(final)
            with suppress(FileNotFoundError):
                final.rename(old)
                aside.append(old)
        try:
            os.replace(draft, final)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    _fsync(final.parent)
    for old in aside:
        shutil.rmtree(old)


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
        temporary.write_text(text, encoding="utf-8", newline="\n")


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
    removed = 0
    for path in _drafts(folder):
        parts = path.name.removeprefix(PREFIX).split("+")
        if len(parts) < 4 or not parts[1].isdigit():
            continue
        if alive(int(parts[1])) if parts[0] == here() else _age(path) < FOREIGN_DRAFT_AGE:
            continue
        discard(path)
        removed += 1
    return removed


def _drafts(folder: Path) -> Iterator[Path]:
    """Drafts below `folder`; what is inside of one, or of a finished .zarr, is not looked at."""
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if name.startswith(PREFIX):
                yield Path(place, name)
        folders[:] = [n for n in folders if not (n.startswith(PREFIX) or n.endswith(".zarr"))]


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


def _fsync_all(paths: Sequence[Path]) -> None:
    """Each of them, many at a time: the disk then commits them together, several times faster."""
    if len(paths) <= SYNCS:
        for path in paths:
            _fsync(path)
        return
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(SYNCS) as pool:
        for _ in pool.map(_fsync, paths):
            pass


def alive(pid: int, started: str | None = None) -> bool:
    """Whether the process runs; with `started`, whether it is still the same one."""
    if os.name == "nt":  # there, signal 0 is Ctrl-C
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    stat = _stat(pid)
    if stat is None:
        return True
    if stat[0] == "Z":  # killed, and not yet waited for by its parent
        return False
    return started is None or stat[19] == started


def started(pid: int) -> str | None:
    """When a process began, in the kernel's count: two of one number differ in it."""
    stat = _stat(pid)
    return None if stat is None else stat[19]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None where there are none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


@contextmanager
def lock(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold `folder` against other pathgen processes; BusyError when one has it.

    With `shared`, only against those that want it for themselves. The kernel frees the lock when
    its process dies, so there are no stale locks. Where the file system or platform has no such
    locks nothing is held: outputs stay whole, as each is renamed into place, and at worst work is
    done twice.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        handle = (folder / ".pathgen-lock").open("a+")  # over NFS a shared lock needs reading
    except OSError as error:
        raise storage_error(error, folder) from error
    with handle:
        try:
            kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise BusyError(
                    "another pathgen is writing here", where=folder,
                    hint="wait for it, or choose another --out",
                ) from error  # fmt: skip
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
        yield


@contextmanager
def locked(handle: IO[bytes]) -> Iterator[None]:
    """Hold an open file for a moment; where there are no locks, nothing is held."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)  # freed when `handle` is closed
    except (ImportError, OSError):
        pass
    yield
