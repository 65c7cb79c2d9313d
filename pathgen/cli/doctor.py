"""The command that looks slides over before they are tiled."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pathgen.cli import tileoptions as with_
from pathgen.cli.options import AsJson, Config, Quiet, Set, Verbose
from pathgen.cli.root import app
from pathgen.cli.slides import UM, tell_columns, tile_config
from pathgen.console import SOME_FAILED, Talk, guarded, shown, size, table
from pathgen.progress import counted

if TYPE_CHECKING:
    from pathgen.doctor.checkup import Checkup

#: Slides that are listed on a terminal.
LISTED = 40


@app.command()
@guarded
def doctor(
    slides: Annotated[list[str], typer.Argument(help="Folders, slides, globs, URLs, or a CSV.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for doctor.csv and doctor.html. Default: none."),
    ] = None,
    mpp: with_.Mpp = None,
    mag: with_.Mag = None,
    patch_size: with_.PatchSize = None,
    slide_mpp: with_.SlideMpp = None,
    reader: with_.Reader = None,
    preset: with_.Preset = None,
    workers: with_.Workers = None,
    slide_timeout: with_.SlideTimeout = None,
    config: Config = None,
    settings: Set = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Look slides over before tiling: readable, mpp, duplicates, predicted patches and time."""
    from pathgen.doctor import diagnose, write_diagnosis

    talk = Talk(quiet=quiet, as_json=as_json)
    given = {
        "mpp": mpp, "mag": mag, "patch_size": patch_size, "slide_mpp": slide_mpp, "reader": reader
    }  # fmt: skip
    if not quiet:
        tell_columns(slides)
    diagnosis = diagnose(
        slides, tile_config(given, preset, config, settings), workers=workers,
        limit=None if slide_timeout is None else slide_timeout * 60, progress=talk.progress,
    )  # fmt: skip
    counts = diagnosis.counts
    text = (
        f"{counted(counts['slides'], 'slide')}: {counts['ok']} ok, {counts['look']} to look at, "
        f"{counts['failed']} failed; {counted(counts['patches'], 'patch', 'patches')} with tissue."
    )
    if diagnosis.forecast is not None:
        text += f" About {size(diagnosis.forecast.bytes)}. {diagnosis.forecast.sentence()}"
    asked = {
        "--mpp": mpp, "--mag": mag, "--patch-size": patch_size, "--slide-mpp": slide_mpp,
        "--reader": reader, "--preset": preset, "-c": None if config is None else shown(config),
    }  # fmt: skip
    following = ""
    unscaled = slide_mpp is None and any(map(_needs_mpp, diagnosis.slides))
    if counts["ok"] or counts["look"] or unscaled:
        if unscaled:
            asked["--slide-mpp"] = UM
        words = [f" {name} {value}" for name, value in asked.items() if value is not None]
        words += [f" --set {shlex.quote(setting)}" for setting in settings or ()]
        following = f"pathgen tile {' '.join(map(shown, slides))} -o tiles/{''.join(words)}"
    where = {}
    if out is not None:
        title = Path(slides[0]).resolve().name if len(slides) == 1 else "slides"
        rows, page = write_diagnosis(diagnosis, out, title)
        where = {"csv": rows, "page": page}
        text += f"\nThe page is {shown(page)}, the table {shown(rows)}."
    told = [row for row in diagnosis.to_dict()["slides"] if row["state"] != "ok"]
    for row in told:
        row["mpp"] = "" if row["mpp"] is None else f"{row['mpp']:.4g}"
    if told and not as_json and not quiet:
        print(table(told[:LISTED], ("slide", "state", "reason", "mpp", "patches")))
        for row in told[:LISTED]:
            print(f"  {row['slide']}: {row['message']}", file=sys.stderr)
        if len(told) > LISTED:
            print(f"  and {len(told) - LISTED} more; give -o for all of them", file=sys.stderr)
    talk.result({**diagnosis.to_dict(), **where}, text, following)
    if counts["failed"]:
        raise typer.Exit(SOME_FAILED)


def _needs_mpp(slide: Checkup) -> bool:
    """Whether --slide-mpp would help it; PG-S08 is also that of a slide coarser than asked."""
    absurd = slide.reason == "PG-S08" and "pixel size cannot be right" in slide.message.lower()
    return slide.reason == "PG-S07" or absurd
