"""The app that the commands hang on."""

from __future__ import annotations

from typing import Annotated

import typer

from pathgen import __version__

app = typer.Typer(
    name="pathgen",
    help="From a folder of whole-slide images to a slide-level answer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
evaluate_app = typer.Typer(help="Judge features or predictions.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"pathgen {__version__}")
        raise typer.Exit
