"""Commands for the pathologist: where a classifier looked, and more like this patch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pathgen.cli.options import AsJson, Device, Out, Overwrite, Quiet, Verbose, need_torch, setting
from pathgen.cli.root import app
from pathgen.console import SOME_FAILED, Talk, guarded, shown, table
from pathgen.progress import counted

if TYPE_CHECKING:
    from pathgen.heatmap.model import SlideModel


@app.command(epilog="Example: pathgen heatmap runs/mil slides/ --features features/ -o maps/")
@guarded
def heatmap(
    model: Annotated[
        Path, typer.Argument(help="A train-mil run, one fold of it, or a head's model folder.")
    ],
    slides: Annotated[
        list[str],
        typer.Argument(help="Slides, patch stores or feature stores; or folders of them."),
    ],
    out: Out,
    features: Annotated[
        list[Path] | None, typer.Option(help="Where the slides' feature stores are. Repeatable.")
    ] = None,
    patches: Annotated[
        list[Path] | None, typer.Option(help="Where their patch stores are. Repeatable.")
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--slides", help="Where the slide files of stores are. Repeatable."),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="The features' encoder, for slides without features.")
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(help="Share that patches cut now overlap by, 0 to 0.9: a finer map."),
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="um per pixel of patches cut now. Default: as in training.")
    ] = None,
    patch_size: Annotated[
        int | None, typer.Option(help="Their pixels a side. Default: as in training.")
    ] = None,
    show: Annotated[
        Literal["percentile", "min-max"] | None,
        typer.Option("--attention", help="How attention is colored. Default: percentile."),
    ] = None,
    top: Annotated[
        int | None, typer.Option(min=0, help="Patches on each contact sheet. Default: 16.")
    ] = None,
    deepzoom: Annotated[
        bool | None, typer.Option("--deepzoom", help="Deep Zoom tiles too.")
    ] = None,
    ome: Annotated[
        Literal["overlay", "values", "none"] | None,
        typer.Option(help="heatmap.ome.tiff: colored slide, numbers, or none."),
    ] = None,
    bounds_shift: Annotated[
        bool | None,
        typer.Option(
            "--bounds-shift/--no-bounds-shift",
            help="GeoJSON counts from the corner of the scanned part, as QuPath (default).",
        ),
    ] = None,
    settings: Annotated[list[str] | None, setting("opacity=0.5")] = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Where a slide classifier looked: pictures, QuPath tiles, OME-TIFF, the patches themselves."""
    need_torch()
    from pathgen.config import build, merge, parse_overrides
    from pathgen.heatmap import HeatmapConfig, draw_heatmaps, find_subjects

    talk = Talk(quiet=quiet, as_json=as_json)
    given = {
        "overlap": overlap, "attention": show, "top": top, "deepzoom": deepzoom, "ome": ome,
        "bounds_shift": bounds_shift,
    }  # fmt: skip
    known = {name: value for name, value in given.items() if value is not None}
    config = build(HeatmapConfig, merge(parse_overrides(settings or ()), known))
    asked = _model(model, encoder, device, config, mpp, patch_size)
    asked.work, asked.overwrite = out / "features", overwrite
    subjects = find_subjects(slides, features=features, patches=patches, slides=images)
    report = draw_heatmaps(asked, subjects, out, overwrite=overwrite, progress=talk.progress)
    counts = report.counts
    for row in report.failed:
        print(f"  {row.slide}: {row.message}", file=sys.stderr)
    done = [row for row in report.rows if row.state == "done"]
    said = f" {done[0].slide}: {done[0].predicted} ({done[0].heads})." if len(done) == 1 else ""
    text = (
        f"{counted(counts['slides'], 'slide')}: {counts['done']} done, {counts['empty']} empty, "
        f"{counts['failed']} failed; in {shown(out)}.{said}"
    )
    following = f"open {shown(out / done[0].folder / 'attention.png')}" if done else ""
    talk.result({**counts, "out": out, "rows": report.to_dicts()}, text, following)
    if counts["failed"]:
        raise typer.Exit(SOME_FAILED)


def _model(
    run: Path,
    encoder: str | None,
    device: str,
    config: Any,
    mpp: float | None,
    patch_size: int | None,
) -> SlideModel:
    """The heads, and how slides are cut where something was said about it."""
    from pathgen.heatmap.heads import load_heads
    from pathgen.heatmap.model import SlideModel
    from pathgen.heatmap.tilings import cut_as

    heads = load_heads(run)
    tiling = cut_as(heads, mpp, patch_size) if mpp is not None or patch_size is not None else None
    return SlideModel(heads, encoder=encoder, tiling=tiling, device=device, config=config)


@app.command(
    epilog="Example: pathgen similar tiles/B12.h5#1203 --within features/ -k 12 -o similar.png"
)
@guarded
def similar(
    patch: Annotated[
        str, typer.Argument(metavar="STORE#ROW", help="A patch: its store and its row there.")
    ],
    within: Annotated[
        list[Path], typer.Option(help="Feature stores to look through, or folders. Repeatable.")
    ],
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many.")] = 12,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Image file for the montage.")
    ] = None,
    tiles: Annotated[
        list[Path] | None,
        typer.Option(help="Patch stores, for the montage. Default: the folder of STORE."),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--slides", help="Slides, for patches that no store has. Repeatable."),
    ] = None,
    among: Annotated[
        Literal["all", "other-slides", "other-patients"],
        typer.Option(help="Which patches count."),
    ] = "all",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """The patches whose features are nearest to one patch's, by cosine."""
    from pathgen.heatmap import similar as nearest

    talk = Talk(quiet=quiet, as_json=as_json)
    found = nearest(
        patch, within, k, tiles=tiles, slides=images, among=among, progress=talk.progress
    )
    rows = found.table()
    lines = table([{**row, "cosine": f"{row['cosine']:.4f}"} for row in rows], tuple(rows[0]))
    if out is not None:
        found.save(out)
        lines += f"\n\n{counted(len(rows), 'patch', 'patches')} in {shown(out)}."
    best = f"pathgen similar {shown(patch)} --within {shown(within[0])} -o similar.png"
    talk.result(
        {"query": patch, "searched": found.searched, "neighbors": rows, "out": out}, lines,
        f"open {shown(out)}" if out is not None else best,
    )  # fmt: skip
