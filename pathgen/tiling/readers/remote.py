"""Slides behind a URL: `https://`, `s3://`, `gs://` and whatever else fsspec knows.

A URL may be a secret: signed ones carry their key in the query. Of a URL only its host and path
are ever shown, and only the last part of its path, the slide's name, is stored.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from pathgen.errors import MissingExtraError, NoInputError, PathgenError, SlideError

Found = TypeVar("Found")

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
#: What is fetched at once, and how many of these blocks are kept per open slide.
BLOCK = 2**20
BLOCKS = 64
#: Seconds before an attempt after one that failed.
WAITS = (0.5, 2.0)
#: A file's facts that change with its content, as the file systems name them.
_VERSION = ("ETag", "etag", "md5Hash", "generation", "mtime", "LastModified", "last_modified",
            "updated", "created")  # fmt: skip
#: A package that a scheme needs besides fsspec.
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs",
             "az": "adlfs"}  # fmt: skip


@dataclass(frozen=True)
class RemotePath:
    """Where a slide lies that is not on a disk of this machine."""

    url: str = field(repr=False)

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """Last part of the path."""
        return PurePosixPath(unquote(self._path)).name

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def place(self) -> str:
        """Host and path, without a user, a password or a query."""
        host = urlsplit(self.url).netloc.rpartition("@")[2]
        return f"{host}/{unquote(self._path).lstrip('/')}"

    @property
    def _path(self) -> str:
        if self.scheme in ("http", "https"):
            return urlsplit(self.url).path
        # A # or ? may be part of a key; what follows a ? is never shown.
        return self.url.partition("://")[2].partition("?")[0].partition("/")[2]

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}"


SlidePath = Path | RemotePath


def slide_path(given: str | os.PathLike[str] | RemotePath) -> SlidePath:
    """A path on disk, or where a URL leads; ``file://`` is a path on disk.

    Raises:
        NoInputError: PG-N01, a URL without a file name.
    """
    if isinstance(given, RemotePath | Path):
        return given
    text = os.fspath(given)
    if not is_url(text):
        return Path(text)
    if text.lower().startswith("file://"):
        return Path(url2pathname(urlsplit(text).path))
    remote = RemotePath(text)
    if not remote.name or text.partition("?")[0].endswith("/"):
        raise NoInputError(
            "a URL must name one slide", where=remote, why="folders behind a URL are not searched",
            hint="give each slide's URL, or a CSV with a column `slide`",
        )  # fmt: skip
    return remote


def is_url(text: str) -> bool:
    return _URL.match(text) is not None


def path_key(path: SlidePath) -> str:
    """Equal for the same place, however it was written."""
    return path.url if isinstance(path, RemotePath) else os.path.abspath(path)


@dataclass(frozen=True)
class RemoteFacts:
    """Bytes of a remote file, and what changes when it does, as far as its place says."""

    size: int
    version: str


def remote_facts(path: RemotePath) -> RemoteFacts:
    """Raises as `open_remote`."""

    def ask() -> RemoteFacts:
        system, place = _system(path)
        system.invalidate_cache()
        info = system.info(place)
        version = next((str(info[key]) for key in _VERSION if info.get(key)), "")
        return RemoteFacts(int(info.get("size") or 0), version)

    return _patiently(path, ask)


def open_remote(path: RemotePath) -> RemoteFile:
    """Open a remote file for reading at any place.

    Raises:
        MissingExtraError: a package is missing for this scheme.
        NoInputError: PG-N01, not there.
        SlideError: PG-N04 no access; PG-N05 it cannot be reached after three attempts.
    """
    file = RemoteFile(path)
    if not file.seekable():
        file.close()
        raise _no_ranges(path)
    return file


class RemoteFile(io.RawIOBase):
    """Bytes of a remote file. What fails is asked for again, then raised as a SlideError: an
    OSError might be taken for a tile that is not there."""

    def __init__(self, path: RemotePath) -> None:
        self.path = path
        self.name = path.name
        self._file = _patiently(path, lambda: _opened(path))
        self.size = int(self._file.size or 0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        at = self._file.tell()

        def attempt() -> bytes:
            if self._file.closed:
                self._file = _opened(self.path)
            self._file.seek(at)
            return bytes(self._file.read(size))

        return _patiently(self.path, attempt, failed=self._drop)

    def _drop(self) -> None:
        self._file.close()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _opened(path: RemotePath) -> Any:
    system, place = _system(path)
    file = system.open(
        place, "rb", block_size=BLOCK, cache_type="blockcache", cache_options={"maxblocks": BLOCKS}
    )
    if not hasattr(file, "size"):  # a file in memory
        file.size = system.size(place)
    return file


def _system(path: RemotePath) -> tuple[Any, str]:
    """The fsspec file system, and the path in it."""
    import fsspec

    try:
        system, place = fsspec.core.url_to_fs(path.url)
    except ImportError as error:
        package = _PACKAGES.get(path.scheme)
        raise MissingExtraError(
            f"{path.scheme}:// needs another package", where=path.name, why=str(error),
            hint=f"run: pip install {package}" if package else None,
        ) from error  # fmt: skip
    except ValueError as error:
        raise NoInputError(
            "URL of an unknown kind", where=path, why=f"no file system for {path.scheme}://",
            hint="https://, s3:// and gs:// are known",
        ) from error  # fmt: skip
    return system, str(place)


def _patiently(
    path: RemotePath, attempt: Callable[[], Found], failed: Callable[[], None] = lambda: None
) -> Found:
    """`attempt`, and again after a pause where the fault may be the network's."""
    for wait in (*WAITS, None):
        try:
            return attempt()
        except PathgenError:
            raise
        except Exception as error:  # each file system's client has exceptions of its own
            problem = _explained(path, error)
        failed()
        if wait is None or problem.code != "PG-N05":
            # Not `from` the cause: the messages of network clients hold the whole URL.
            raise problem from None
        time.sleep(wait)
    raise AssertionError("unreachable")


def _explained(path: RemotePath, error: BaseException) -> PathgenError:
    chain = list(_chain(error))
    statuses = [status for one in chain if (status := _status(one)) is not None]
    status = statuses[0] if statuses else None
    last = chain[-1]
    if status in (404, 410) or (status is None and isinstance(last, FileNotFoundError)):
        return NoInputError("no such remote file", where=path, hint="check the URL")
    if (
        status in (401, 403)
        or isinstance(last, PermissionError)
        or "Credential" in repr(type(last))
    ):
        return SlideError(
            "slide cannot be read", code="PG-N04", where=path.name,
            why=f"access is denied by {path.place.partition('/')[0]}",
            hint="check the credentials in the environment; a signed URL may have expired",
        )  # fmt: skip
    if any("range request" in str(one) for one in chain):
        return _no_ranges(path)
    said = [str(v) for v in (status and f"HTTP {status}", getattr(last, "strerror", None)) if v]
    return SlideError(
        "remote slide cannot be reached", code="PG-N05", where=path.name,
        why=f"{len(WAITS) + 1} attempts failed: {', '.join([type(last).__name__, *said])}",
        hint="check the network, then run the same command again; finished slides are kept",
    )  # fmt: skip


def _no_ranges(path: RemotePath) -> SlideError:
    return SlideError(
        "remote slide cannot be read in parts", code="PG-N05", where=path.name,
        why="its server does not answer range requests", hint="download the slide first",
    )  # fmt: skip


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what caused it, as far as it goes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """HTTP status that an exception of aiohttp, gcsfs or botocore carries."""
    for name in ("status", "status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int):
            return value
    response = getattr(error, "response", None)
    found = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    value = found.get("HTTPStatusCode")
    return value if isinstance(value, int) else None


def listed(paths: Sequence[object]) -> str:
    """Inputs as they may be shown: URLs without their secrets."""
    return ", ".join(str(RemotePath(str(p))) if is_url(str(p)) else str(p) for p in paths)
