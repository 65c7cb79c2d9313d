"""Commands on slides and patches."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pathgen.cli.options import (
    AsJson,
    Config,
    Out,
    Overwrite,
    Plan,
    Quiet,
    Resume,
    Set,
    Verbose,
    Workers,
)
from pathgen.cli.root import app
from pathgen.console import SOME_FAILED, Talk, guarded, shown, size, table


@app.command()
@guarded
def info(slide: Path, as_json: AsJson = False, verbose: Verbose = False) -> None:
    """What a slide is: vendor, size, levels, mpp and where it came from, bounds."""
    from pathgen.tiling import slide_info

    facts = slide_info(slide)
    text = "\n".join(f"{key:<12} {_plain(value)}" for key, value in facts.items())
    Talk(quiet=False, as_json=as_json).result(facts, text, f"pathgen tile {shown(slide)} -o tiles/")


@app.command()
@guarded
def tile(
    slides: Annotated[list[str], typer.Argument(help="Folders, slides, globs, or a CSV.")],
    out: Out,
    mpp: Annotated[
        float | None, typer.Option(help="Target microns per pixel. Default 0.5.")
    ] = None,
    patch_size: Annotated[int | None, typer.Option(help="Pixels a side. Default 256.")] = None,
    overlap: Annotated[int | None, typer.Option(help="Pixels shared by neighbors.")] = None,
    min_tissue: Annotated[float | None, typer.Option(help="Least share of tissue, 0..1.")] = None,
    min_hematoxylin: Annotated[
        float | None, typer.Option(help="Least share of pixels with hematoxylin, 0..1.")
    ] = None,
    slide_mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of slides that do not say it plausibly.")
    ] = None,
    store: Annotated[Literal["h5", "zarr"] | None, typer.Option(help="Default h5.")] = None,
    config: Config = None,
    settings: Set = None,
    workers: Workers = None,
    resume: Resume = True,
    overwrite: Overwrite = False,
    plan: Plan = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Cut slides into stain-filtered patches at an exact scale, one store a slide."""
    from pathgen.config import build as build_config
    from pathgen.config import merge, parse_overrides, read_yaml
    from pathgen.tiling import TileConfig
    from pathgen.tiling import tile as tile_slides

    talk = Talk(quiet=quiet, as_json=as_json)
    given = {
        "mpp": mpp, "patch_size": patch_size, "overlap": overlap, "min_tissue": min_tissue,
        "min_hematoxylin": min_hematoxylin, "slide_mpp": slide_mpp, "store": store,
    }  # fmt: skip
    values = merge(read_yaml(config) if config else {}, parse_overrides(settings or ()))
    values = merge(values, {key: value for key, value in given.items() if value is not None})
    report = tile_slides(
        slides, out, build_config(TileConfig, values, where=str(config or "")), workers=workers,
        overwrite=overwrite or not resume, plan=plan, progress=talk.progress,
    )  # fmt: skip
    counts = report.counts
    if plan:
        talk.result(report.to_dict(), table(report.to_dict()["slides"], report.plan_columns))
    verb = "would be tiled" if plan else f"in {shown(out)}"
    text = (
        f"{counts['slides']} slides: {counts['done']} done, {counts['empty']} empty, "
        f"{counts['failed']} failed; {counts['patches']:,} patches {verb}."
    )
    for row in report.failed:
        print(f"  {row.slide}: {row.message}", file=sys.stderr)
    following = f"pathgen pretrain {shown(out)} -o runs/first --recipe tiny"
    if plan:
        text += f" About {size(report.bytes)}."
        following = "the same command without --plan"
        if not as_json:
            talk.result({}, text, following)
    else:
        talk.result({**counts, "out": out}, text, following if counts["patches"] else "")
    if counts["failed"]:
        raise typer.Exit(SOME_FAILED)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value) or "none"
    if isinstance(value, dict) and {"width", "height", "downsample"} <= value.keys():
        return "{width} x {height} (1:{downsample:g})".format(**value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "unknown" if value is None else str(value)
