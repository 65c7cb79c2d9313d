"""The command line: read options, call one function, say where the result is.

Exit codes: 0 done; 1 a bug; 2 wrong option or setting; 3 finished, but some slides failed;
4 nothing to work on; 5 output busy; 6 missing extra; 7 storage; 8 a store or run is unusable;
85 stopped on request with a complete checkpoint; 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pathgen.cli import (  # noqa: F401 - each adds its commands
    datasets,
    demos,
    doctor,
    encoders,
    exchange,
    features,
    heatmaps,
    judging,
    natural,
    publishing,
    slidelevel,
    slides,
    stores,
    training,
)
from pathgen.cli.root import app

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. ``--patch_size`` is read as ``--patch-size``: both spellings are in use."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    app([_dashes(argument) for argument in given])


def _dashes(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, sign, value = argument.partition("=")
    return name.replace("_", "-") + sign + value
