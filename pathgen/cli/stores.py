"""Commands on finished patch stores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pathgen.cli.options import AsJson, Out, Overwrite, Plan, Quiet, Verbose
from pathgen.cli.root import app
from pathgen.console import Talk, guarded, shown, table
from pathgen.errors import ConfigError


@app.command()
@guarded
def refilter(
    stores: Annotated[list[Path], typer.Argument(help="Patch stores, or folders of them.")],
    out: Out,
    min_tissue: Annotated[float | None, typer.Option(help="Least share of tissue, 0..1.")] = None,
    min_hematoxylin: Annotated[
        float | None, typer.Option(help="Least share of pixels with hematoxylin, 0..1.")
    ] = None,
    min_focus: Annotated[
        float | None, typer.Option(help="Least sharpness; about 0.15 drops blurred patches.")
    ] = None,
    max_pen: Annotated[
        float | None, typer.Option(help="Largest share of pixels with colors of felt pen, 0..1.")
    ] = None,
    max_black: Annotated[
        float | None, typer.Option(help="Largest share of black pixels, 0..1.")
    ] = None,
    max_white: Annotated[
        float | None, typer.Option(help="Largest share of pixels as bright as glass, 0..1.")
    ] = None,
    max_fold: Annotated[
        float | None, typer.Option(help="Largest share that looks folded, 0..1.")
    ] = None,
    least: Annotated[
        list[str] | None,
        typer.Option("--min", metavar="NAME=V", help="Least value of any score. Repeatable."),
    ] = None,
    most: Annotated[
        list[str] | None,
        typer.Option("--max", metavar="NAME=V", help="Largest value of any score. Repeatable."),
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", metavar="NAME[=SHARE]",
            help="Patches with at least SHARE (0.5) of this class. Repeatable: of one of them.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    plan: Plan = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:  # fmt: skip
    """Choose among tiled patches more strictly: new stores in seconds, without the slides."""
    from pathgen.config import build
    from pathgen.tiling import refilter as choose
    from pathgen.tiling.selection import Selection

    talk = Talk(quiet=quiet, as_json=as_json)
    given = {
        "min_tissue": min_tissue, "min_hematoxylin": min_hematoxylin, "min_focus": min_focus,
        "max_pen": max_pen, "max_black": max_black, "max_white": max_white, "max_fold": max_fold,
    }  # fmt: skip
    limits = {name: value for name, value in given.items() if value is not None}
    limits |= {f"min_{name}": value for name, value in _pairs("--min", least)}
    limits |= {f"max_{name}": value for name, value in _pairs("--max", most)}
    selection = build(
        Selection, {"limits": limits, "classes": dict(_pairs("--class", classes, 0.5))}
    )
    report = choose(
        stores, out, selection, overwrite=overwrite, plan=plan, progress=talk.progress
    )  # fmt: skip
    had, keeps = sum(report.before.values()), report.slides.counts["patches"]
    share = f" ({keeps / had:.1%})" if had else ""
    if plan:
        lines = [table(report.table, ("slide", "state", "had", "keeps")), ""]
        lines += [f"{name:<17} {one.line()}" for name, one in report.scores.items()]
        lines += ["", f"{keeps:,} of {had:,} patches would be kept{share}."]
        following = "the same command without --plan"
        if not (limits or selection.classes):
            given_stores = " ".join(map(shown, stores))
            following = f"pathgen refilter {given_stores} -o {shown(out)} --min-focus 0.15"
        talk.result(report.to_dict(), "\n".join(lines), following)
        return
    text = f"{keeps:,} of {had:,} patches{share} in {shown(out)}."
    following = f"pathgen pretrain {shown(out)} -o runs/first --recipe tiny" if keeps else ""
    talk.result({**report.slides.counts, "had": had, "out": out}, text, following)


def _pairs(
    option: str, words: Sequence[str] | None, default: float | None = None
) -> list[tuple[str, float]]:
    """``["focus=0.2"]`` as names and numbers."""
    pairs = []
    for word in words or ():
        name, sign, text = word.rpartition("=") if "=" in word else (word, "", "")
        try:
            value = float(text) if sign else default
        except ValueError:
            value = None
        if not name or value is None:
            raise ConfigError(
                f"{option} takes NAME=NUMBER",
                where=word,
                hint=f"e.g. {option} {name or 'focus'}=0.2",
            )
        pairs.append((name, value))
    return pairs
