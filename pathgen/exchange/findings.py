"""What verification found, one line a file."""

from __future__ import annotations

import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pathgen.errors import PathgenError

State = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One file as one reader sees it."""

    path: Path
    reader: str
    """who reads it: pathgen, CLAM, TRIDENT ..."""
    state: State
    what: str
    why: str = ""

    @classmethod
    def good(cls, path: Path, reader: str, what: str) -> Self:
        return cls(path, reader, "ok", what)

    @classmethod
    def warning(cls, path: Path, reader: str, what: str, why: str = "") -> Self:
        """It can be read, but not by everyone, or not as one might expect."""
        return cls(path, reader, "warning", what, why)

    @classmethod
    def error(cls, path: Path, reader: str, what: str, why: str = "") -> Self:
        """It cannot be read, or would be misread."""
        return cls(path, reader, "error", what, why)

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path), "reader": self.reader, "state": self.state, "what": self.what,
            "why": self.why,
        }  # fmt: skip


#: What reading a damaged or foreign file raises.
_DAMAGE = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, RuntimeError,
    OverflowError, pickle.UnpicklingError, tarfile.TarError, zipfile.BadZipFile,
)  # fmt: skip


def over(
    paths: Iterable[Path], reader: str, check: Callable[[Path], Iterable[Finding]]
) -> Iterator[Finding]:
    """What `check` says of each file; one that cannot be read at all is an error of its own."""
    for path in paths:
        try:
            yield from check(path)
        except PathgenError as error:
            yield Finding.error(path, reader, error.what, error.why or "")
        except _DAMAGE as error:
            text = str(error).strip().splitlines()
            why = text[0][:200] if text else type(error).__name__
            yield Finding.error(path, reader, "cannot be read", why)
