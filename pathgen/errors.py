"""Every error that pathgen raises on purpose, and the exit code each one ends a command with.

PathgenError
├── ConfigError         2   a setting or an option is wrong
├── SlideError          3   one slide cannot be used; the others go on
├── NoInputError        4   nothing to work on
├── BusyError           5   another pathgen is writing there
├── MissingExtraError   6   an optional dependency is not installed
├── StorageError        7   the disk is full, read-only, or the folder is not writable
├── StoreError          8   a store is missing, unfinished, damaged or of another format
├── RunError            8   a run folder or checkpoint does not fit what is asked
├── ClusterError        9   the machines that were to do the work cannot be used
├── DataError           2   labels or splits do not fit the data
└── Stopped            85   asked to stop; a checkpoint is written, the same command goes on
"""

from __future__ import annotations

import re
from typing import Any, ClassVar


class PathgenError(Exception):
    """One thing that went wrong: code, what, where, why, and what to do about it.

    Args:
        what: what went wrong, in a few words.
        code: stable code such as ``"PG-S03"``; listed in docs/errors.md.
        where: the slide, file or setting concerned.
        why: the likely cause, or what was found.
        hint: what the user can do now.
    """

    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "PG-X00"

    def __init__(
        self,
        what: str,
        *,
        code: str | None = None,
        where: object | None = None,
        why: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.code = code or self.default_code
        self.where = None if where is None else str(where)
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        place = f": {self.where!r}" if self.where is not None else ""
        parts = [f"{self.code} {self.what}{place}."]
        parts += [sentence(text) for text in (self.why, self.hint) if text]
        return " ".join(parts)

    def to_dict(self) -> dict[str, str | None]:
        """Plain values for ledgers and ``--json``."""
        return {
            "code": self.code,
            "what": self.what,
            "where": self.where,
            "why": self.why,
            "hint": self.hint,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors travel from worker processes; the keyword arguments must survive the trip.
        return _rebuild, (type(self), self.what, self.code, self.where, self.why, self.hint)


def sentence(text: str) -> str:
    """With a capital and a full stop; a name or a setting at the start stays as it is written."""
    if re.match(r"[a-z']+ ", text):
        text = text[0].upper() + text[1:]
    return text if text.endswith((".", "?", "!")) else text + "."


def _rebuild(
    kind: type[PathgenError],
    what: str,
    code: str,
    where: str | None,
    why: str | None,
    hint: str | None,
) -> PathgenError:
    return kind(what, code=code, where=where, why=why, hint=hint)


class ConfigError(PathgenError, ValueError):
    """A setting has an unknown name, a wrong type or an impossible value."""

    exit_code = 2
    default_code = "PG-C01"


class SlideError(PathgenError):
    """A slide cannot be opened, or lacks what was asked of it."""

    exit_code = 3
    default_code = "PG-S00"


class NoInputError(PathgenError):
    """Nothing was found to work on."""

    exit_code = 4
    default_code = "PG-N01"


class BusyError(PathgenError):
    """Another process holds the output."""

    exit_code = 5
    default_code = "PG-O06"


class MissingExtraError(PathgenError, ImportError):
    """An optional dependency is not installed; `hint` is the pip command."""

    exit_code = 6
    default_code = "PG-E01"


class StorageError(PathgenError):
    """The output cannot be written: full, read-only, not a folder."""

    exit_code = 7
    default_code = "PG-O01"


class StoreError(PathgenError):
    """A store is missing, unfinished, damaged, or of another kind or format version."""

    exit_code = 8
    default_code = "PG-O11"


class RunError(PathgenError):
    """A run folder or a checkpoint does not fit what is being run."""

    exit_code = 8
    default_code = "PG-T04"


class DataError(PathgenError, ValueError):
    """Labels, splits or features do not fit together."""

    exit_code = 2
    default_code = "PG-N06"


class ClusterError(PathgenError):
    """A Dask scheduler, its workers or SLURM cannot be used."""

    exit_code = 9
    default_code = "PG-E03"


class Stopped(PathgenError):
    """Training stopped on request, after a complete checkpoint; the same command resumes it."""

    exit_code = 85
    default_code = "PG-T07"
