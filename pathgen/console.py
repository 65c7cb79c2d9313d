"""What a person or a script sees of a command: results, the next step, errors, exit codes."""

from __future__ import annotations

import functools
import json
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer

from pathgen import parallel
from pathgen.errors import PathgenError
from pathgen.progress import Progress, for_people

Command = TypeVar("Command", bound=Callable[..., Any])

SOME_FAILED = 3
INTERRUPTED = 130


class Talk:
    """One command's voice: progress to stderr, the result to stdout, as prose or as JSON."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        # Of several processes that train together the first one speaks.
        self.quiet, self.as_json = quiet or not parallel.leads(), as_json and parallel.leads()
        self.progress: Progress = for_people(quiet=self.quiet, as_json=self.as_json)

    def result(self, values: Mapping[str, Any], text: str = "", following: str = "") -> None:
        """Say where the result is and what to run next; with ``--json``, the values instead."""
        if self.as_json:
            print(json.dumps({"event": "result", **values}, default=str), flush=True)
            return
        if self.quiet:
            return
        if text:
            print(text)
        if following:
            print(f"Next: {following}")


def guarded(command: Command) -> Command:
    """Turn what a command raises into one clear message and a documented exit code.

    ``--json`` gives errors as JSON on stdout too; ``-v`` adds the traceback.
    """

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        verbose, as_json = options.get("verbose", False), options.get("as_json", False)
        try:
            return command(*args, **options)
        except PathgenError as error:
            if verbose:
                traceback.print_exc()
            show_error(error, as_json=as_json)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            goes_on = {"resume", "overwrite"} & options.keys() and not (
                options.get("plan") or options.get("dry_run")
            )
            then = f" Resume with: {command_line(resuming=True)}" if goes_on else ""
            print(f"\nStopped.{then}", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:  # a bug: keep the traceback, but say what to do with it
            traceback.print_exc()
            print(
                f"PG-X01 internal error: {error}. This is a bug in pathgen; please report it with "
                f"the lines above. The command was: {command_line()}",
                file=sys.stderr,
            )
            raise SystemExit(1) from None

    return run  # type: ignore[return-value]


def show_error(error: PathgenError, *, as_json: bool = False) -> None:
    """One line on stderr, or one JSON object on stdout."""
    if as_json:
        print(json.dumps({"event": "error", "exit": error.exit_code, **error.to_dict()}))
    else:
        print(error, file=sys.stderr)


def command_line(*, resuming: bool = False) -> str:
    """The command as it was typed; to resume it, without what would start it anew."""
    anew = ("--overwrite", "--no-resume") if resuming else ()
    return shlex.join(["pathgen", *(word for word in sys.argv[1:] if word not in anew)])


def shown(path: str | Path) -> str:
    """A path as one would type it: relative where that is shorter, quoted where needed; of a URL
    what is no secret."""
    if "://" in str(path):
        from pathgen.tiling.readers.remote import slide_path

        return shlex.quote(str(slide_path(path)))
    full = Path(path)
    try:
        short = full.resolve().relative_to(Path.cwd())
    except ValueError:
        short = full
    return shlex.quote(str(short))


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as aligned plain text."""
    cells = [list(columns)] + [[str(row.get(name, "")) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def size(count: float) -> str:
    """Bytes for people: ``1.4 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
