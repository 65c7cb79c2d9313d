"""Several processes on one output folder: who works on which piece of it.

Each process has a *member* file in ``.pathgen-claims``, which it touches now and then, and a
*claim* file for each piece in work, made with O_CREAT | O_EXCL, which one process alone can do,
over NFS too. A claim names its member. Of a piece that ended without an output, as a failed one,
a *row* file tells. The last process to leave removes the folder.

Nothing here is needed for correct results: a store appears by one rename, and two processes that
make the same one make the same bytes. Where claims are wrong, as when NFS shows a file late,
work is done twice. Ages are read on one clock, the file server's: both times are of files.
"""

from __future__ import annotations

import errno
import functools
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from pathgen import commit
from pathgen.errors import BusyError, StorageError

FOLDER = ".pathgen-claims"
#: Seconds between two signs of life of a process,
BEAT = 20.0
#: and without one, after which it is taken for dead. One of this host, as soon as it has ended.
STALE = 600.0
#: A claim that does not say whose it is was cut off while it was made.
NAMELESS = 30.0
#: How a file that another host has removed is missed.
GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE}


@dataclass(frozen=True)
class Claims:
    """One process's part in a shared output folder; its workers get a copy."""

    folder: Path
    token: str
    since: float
    """when this process joined, on the file server's clock"""

    def take(self, piece: str) -> bool:
        """Claim a piece for this process; False when another that lives has it."""
        path = self._claim(piece)
        for _ in range(3):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                holder = self._holder(path)
                if holder == self.token:  # as when a worker of ours died with it
                    return True
                if holder is None:
                    continue
                if self._lives(holder, path):
                    return False
                self._bury(path, holder)
            except FileNotFoundError:  # the last of the others has just left
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise commit.storage_error(error, path) from error
            else:
                with os.fdopen(handle, "w") as file:
                    file.write(self.token)
                return True
        return False

    def release(self, piece: str) -> None:
        path = self._claim(piece)
        if self._holder(path) == self.token:
            path.unlink(missing_ok=True)

    def held(self, piece: str) -> bool:
        """Whether another process that lives has the piece."""
        path = self._claim(piece)
        holder = self._holder(path)
        return holder not in (None, self.token) and self._lives(str(holder), path)

    def note(self, piece: str, values: Mapping[str, Any]) -> None:
        """Let the others know of a piece that ended without an output; JSON-ready values."""
        commit.write_json(self._row(piece), {"token": self.token, "row": dict(values)})

    def noted(self, piece: str) -> dict[str, Any] | None:
        """What `note` said of a piece in this run; notes of earlier runs are void."""
        path = self._row(piece)
        try:
            written = path.stat().st_mtime
        except OSError:
            return None
        values = _facts(path)
        if values is None:
            return None
        if written < self.since and not self._lives(values["token"], path):
            return None
        row: dict[str, Any] = values["row"]
        return row

    def others(self) -> Iterator[dict[str, Any]]:
        """What the member files of other living processes say."""
        for path in sorted(self.folder.glob("*.member")):
            token = path.name.removesuffix(".member")
            if token != self.token and self._lives(token, path):
                facts = _facts(path)
                if facts is not None:
                    yield facts

    def _lives(self, token: str, path: Path) -> bool:
        """Whether the member `token`, named by the file `path`, still works here."""
        if not token:
            return self._age(path) < NAMELESS
        member = self.folder / f"{token}.member"
        facts = _facts(member)
        if facts is None or self._age(member) > STALE:
            return False
        return facts["place"] != commit.here() or commit.alive(facts["pid"], facts["started"])

    def _age(self, path: Path) -> float:
        """Seconds since a file was touched; of one that is gone, very many."""
        try:
            written = path.stat().st_mtime
        except OSError:
            return float("inf")
        own = self.folder / f"{self.token}.member"
        try:
            os.utime(own)
            return own.stat().st_mtime - written
        except OSError:
            return time.time() - written

    def _left(self, path: Path) -> bool:
        """Whether a file is of a process that no longer works here."""
        if path.name.startswith(commit.PREFIX):  # `commit.sweep` knows of these
            return False
        if path.suffix == ".member":
            return not self._lives(path.stem, path)
        if path.suffix == ".row":
            facts = _facts(path)
            return facts is None or not self._lives(facts["token"], path)
        holder = self._holder(path) if ".claim" in path.suffixes else None
        return holder is not None and not self._lives(holder, path)

    def _bury(self, path: Path, dead: str) -> None:
        """Take the claim of a dead process away; of several that try, one does."""
        aside = path.with_name(f"{path.name}.{uuid4().hex[:8]}")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return
        if self._holder(aside) != dead:  # another was faster, and this is its claim
            aside.rename(path)
        else:
            aside.unlink(missing_ok=True)

    @staticmethod
    def _holder(path: Path) -> str | None:
        """Whose claim it is; None when there is none."""
        try:
            return path.read_text()
        except OSError as error:
            if error.errno in GONE:
                return None
            raise

    def _claim(self, piece: str) -> Path:
        return self.folder / f"{_key(piece)}.claim"

    def _row(self, piece: str) -> Path:
        return self.folder / f"{_key(piece)}.row"


C = TypeVar("C", bound=Claims)


@contextmanager
def join(
    out: Path, settings: Mapping[str, Any], *, alone: bool = False, kind: type[C]
) -> Iterator[C]:
    """Take part in the work on `out`; with `alone`, keep others out.

    Args:
        settings: flat; what all processes that work there together must agree on.
        kind: of the claims that are handed out.

    Raises:
        BusyError: PG-O06, another process works there with other settings, or either wants to
            be alone.
    """
    with commit.lock(out, shared=not alone):
        folder = out / FOLDER
        token = f"{commit.here()}+{os.getpid()}+{uuid4().hex[:8]}"
        facts = {
            "place": commit.here(), "pid": os.getpid(), "started": commit.started(os.getpid()),
            "alone": alone, "settings": dict(settings),
        }  # fmt: skip
        member = folder / f"{token}.member"
        claims = kind(folder, token, _appear(member, facts))
        stop = threading.Event()
        beat = threading.Thread(target=_beat, args=(member, facts, stop), daemon=True)
        beat.start()
        try:
            # Made known first, then looked: of two that start at once, at least one sees the other.
            for other in claims.others():
                _agree(out, facts, other)
            yield claims
        finally:
            stop.set()
            beat.join()
            _leave(claims, member)


def _beat(member: Path, facts: Mapping[str, Any], stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        try:
            os.utime(member)
        except FileNotFoundError:
            with suppress(OSError, StorageError):
                commit.write_json(member, facts)
        except OSError:  # the server is away: the others wait STALE seconds for it
            continue


def _agree(out: Path, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    here, there = mine["settings"], theirs["settings"]
    key = next((k for k in [*here, *there] if here.get(k) != there.get(k)), None)
    if mine["alone"] or theirs["alone"]:
        why = "one of the two makes stores anew"
    elif key is not None:
        why = f"the setting {key} is {there.get(key)!r} there and {here.get(key)!r} here"
    else:
        return
    raise BusyError(
        "another pathgen is writing here with other settings", where=out, why=why,
        hint="wait for it, give both the same settings and inputs, or choose another --out",
    )  # fmt: skip


def _appear(member: Path, facts: Mapping[str, Any]) -> float:
    """Write the member file; when that was, on the file server's clock."""
    for _ in range(100):
        try:
            commit.write_json(member, facts)
            return member.stat().st_mtime
        except (FileNotFoundError, FileExistsError):  # the last of the others has just left
            continue
    raise StorageError(
        "output cannot be written", where=member.parent, why="it vanishes again and again",
        hint="does another program clean up there?",
    )  # fmt: skip


def _leave(claims: Claims, member: Path) -> None:
    """The folder goes with the last of all. One that joins meanwhile has a file in it, and then it
    stays, or finds it gone and makes it again."""
    with suppress(OSError):
        for path in claims.folder.glob("*.claim"):
            if claims._holder(path) == claims.token:
                path.unlink(missing_ok=True)
        member.unlink(missing_ok=True)
        if any(claims.others()):
            return
        commit.sweep(claims.folder)
        for path in claims.folder.iterdir():
            if claims._left(path):
                path.unlink(missing_ok=True)
        claims.folder.rmdir()


def _facts(path: Path) -> dict[str, Any] | None:
    """A small JSON file; None where there is none, or none that is whole."""
    try:
        values = commit.read_json(path)
    except OSError as error:
        if error.errno in GONE:
            return None
        raise
    except ValueError:  # cut off by a power failure
        return None
    return values if isinstance(values, dict) else None


@functools.cache
def _key(piece: str) -> str:
    return blake2b(piece.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
