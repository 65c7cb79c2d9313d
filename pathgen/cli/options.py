"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the result.")]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file of settings; options win over it.")
]


def setting(example: str) -> Any:
    """`--set`, with a setting that the command has."""
    text = f"Any setting, e.g. {example}. Repeatable."
    return typer.Option("--set", metavar="KEY=VALUE", help=text)


Set = Annotated[list[str] | None, setting("tissue.mpp=4")]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes; 0 works in this one. Default: all cores.")
]
LoaderWorkers = Annotated[
    int | None,
    typer.Option(
        "--workers", min=0, help="Processes that load patches; 0: this one. Default: as set, or 0."
    ),
]
ReaderName = Literal["auto", "openslide", "native", "tiffslide", "dicom", "omezarr", "flat"]
Reader = Annotated[
    ReaderName | None,
    typer.Option(help="What reads the slides. Default auto: the fastest that is right."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of every random choice.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Resume = Annotated[
    bool,
    typer.Option("--resume/--no-resume", help="Go on where an earlier run stopped (default)."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make it anew, replacing the result.")]
Plan = Annotated[bool, typer.Option("--plan", help="Say what would be done and what it costs.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per event on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Tracebacks with errors.")]


def processes(workers: int | None) -> int:
    """The cores, where no number of workers was given."""
    return (os.cpu_count() or 1) if workers is None else workers


def need_torch() -> None:
    from pathgen.extras import need

    need("torch", "train")
