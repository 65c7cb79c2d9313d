"""The command that makes a trained encoder ready to hand on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathgen.cli.options import AsJson, Out, Overwrite, Quiet, Verbose, need_torch
from pathgen.cli.root import app
from pathgen.console import Talk, guarded, shown


@app.command()
@guarded
def publish(
    run: Annotated[Path, typer.Argument(help="A finished run of `pathgen pretrain`, or a stage.")],
    out: Out,
    license: Annotated[
        str | None, typer.Option(help="Of the weights, for the card. Default: a gap to fill in.")
    ] = None,
    metrics: Annotated[
        list[Path] | None,
        typer.Option(help="JSON file of `pathgen evaluate`, for the card. Repeatable."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The encoder of a run as a folder with a card, for pathgen and timm."""
    need_torch()
    from pathgen.publishing import publish as write

    place = write(run, out, license=license, metrics=metrics or (), overwrite=overwrite)
    full = str(place.resolve())
    loads = {
        "pathgen": f"pathgen.load_encoder({full!r})",
        "timm": f"timm.create_model({f'local-dir:{full}'!r}, pretrained=True)",
    }
    gap = "" if license else f" Fill in the license in {shown(place / 'README.md')}."
    Talk(quiet=quiet, as_json=as_json).result(
        {"out": place, "load": loads},
        f"The encoder and its card are in {shown(place)}.{gap}",
        f"load it with {loads['pathgen']} or {loads['timm']}",
    )
