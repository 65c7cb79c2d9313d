"""Commands that need no data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathgen.cli.options import (
    AsJson,
    Config,
    Device,
    Out,
    Overwrite,
    Quiet,
    Seed,
    Verbose,
    Workers,
    need_torch,
    processes,
    setting,
)
from pathgen.cli.root import app
from pathgen.console import Talk, guarded, shown


@app.command("demo-slides")
@guarded
def demo_slides(
    out: Out,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many slides.")] = 12,
    config: Config = None,
    settings: Annotated[list[str] | None, setting("pen=0.5")] = None,
    seed: Seed = 0,
    workers: Workers = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Draw H&E-like slides with known truth."""
    from pathgen.config import load_config
    from pathgen.synthetic import CohortConfig, make_slides

    talk = Talk(quiet=quiet, as_json=as_json)
    make_slides(
        out, count, seed or 0, load_config(CohortConfig, config, settings or ()),
        overwrite=overwrite, workers=processes(workers), progress=talk.progress,
    )  # fmt: skip
    talk.result(
        {"out": out, "slides": count},
        f"{count} slides, labels.csv and truth/ in {shown(out)}.",
        f"pathgen tile {shown(out)} -o tiles/",
    )


@app.command()
@guarded
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for everything.")] = Path("demo"),
    seed: Seed = 0,
    device: Device = "auto",
    workers: Workers = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The whole path on synthetic slides, ending in one HTML report. No data needed."""
    need_torch()
    from pathgen.demo import run_demo

    talk = Talk(quiet=quiet, as_json=as_json)
    page = run_demo(
        out, seed=seed or 0, device=device, workers=processes(workers), progress=talk.progress
    )
    talk.result({"report": page}, f"{shown(page)} is ready.", "open it in a browser")
