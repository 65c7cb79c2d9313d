"""Commands that exchange files with other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pathgen.cli.options import AsJson, Out, Overwrite, Quiet, Verbose
from pathgen.cli.root import app
from pathgen.config import build
from pathgen.console import SOME_FAILED, Talk, guarded, shown, table
from pathgen.progress import counted

Format = Literal[
    "clam", "clam-pixels", "trident", "torchmil", "stamp", "slideflow", "webdataset", "folder",
    "qupath", "anndata",
]  # fmt: skip
#: Exit code when verification finds an error.
UNUSABLE = 8


@app.command("export")
@guarded
def export_command(
    stores: Annotated[
        list[Path], typer.Argument(help="Patch stores, feature stores, or folders of them.")
    ],
    out: Out,
    form: Annotated[Format, typer.Option("--as", help="Whose files to write.")],
    labels: Annotated[
        Path | None, typer.Option(help="CSV with slide, label and perhaps patient.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Whose features, where the format has a place for one.")
    ] = None,
    slide_suffix: Annotated[
        str | None, typer.Option(help="Ending of the slide files, if the stores do not say it.")
    ] = None,
    shard_size: Annotated[
        int, typer.Option(min=1, help="Patches in a tar, for webdataset.")
    ] = 10_000,
    one_file: Annotated[
        bool, typer.Option("--one-file", help="All slides in one file, for anndata.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write patches and features as the files of another tool."""
    from pathgen.exchange import ExportConfig, export_stores

    talk = Talk(quiet=quiet, as_json=as_json)
    config = ExportConfig(
        encoder=encoder, slide_suffix=slide_suffix, shard_size=shard_size, one_file=one_file
    )
    report = export_stores(
        stores, out, form, config, labels=labels, overwrite=overwrite, progress=talk.progress
    )
    lines = [f"Note: {note}." for note in report.notes]
    lines += [f"Left out: {slide} ({why})." for slide, why in report.skipped.items()]
    lines += [
        f"{counted(report.slides - len(report.skipped), 'slide')}, "
        f"{counted(report.patches, 'patch', 'patches')} in {counted(report.files, 'file')} "
        f"of {form} in {shown(out)}."
    ]
    following = [f"pathgen verify {shown(out)}", *(f"Then: {one}" for one in report.following)]
    talk.result(report.to_dict(), "\n".join(lines), "\n".join(following))


@app.command("import")
@guarded
def import_command(
    files: Annotated[
        list[Path], typer.Argument(help="Folders or files of CLAM, TRIDENT or torchmil.")
    ],
    out: Out,
    form: Annotated[
        Literal["clam", "trident", "torchmil"], typer.Option("--from", help="Who made them.")
    ],
    slides: Annotated[
        Path | None,
        typer.Option(help="Folder of the slides: coordinates become patch stores with pixels."),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="Name of the features' encoder.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV with slide, label and perhaps patient.")
    ] = None,
    slide_mpp: Annotated[
        float | None, typer.Option(help="Microns per pixel of slides that do not say it.")
    ] = None,
    patch_size: Annotated[
        int | None,
        typer.Option(help="Average every region to patches of so many pixels; needs --slides."),
    ] = None,
    mpp: Annotated[
        float | None,
        typer.Option(help="Average every region to this scale, um per pixel; needs --slides."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Take over coordinates and features of another tool as stores."""
    from pathgen.exchange import ImportConfig, import_files

    talk = Talk(quiet=quiet, as_json=as_json)
    values = {"encoder": encoder, "slide_mpp": slide_mpp, "patch_size": patch_size, "mpp": mpp}
    config = build(ImportConfig, values)
    report = import_files(
        files, out, form, config, slides=slides, labels=labels, overwrite=overwrite,
        progress=talk.progress,
    )  # fmt: skip
    lines = [f"Note: {note}." for note in report.notes]
    lines += [f"Failed: {slide}: {why}" for slide, why in report.failed.items()]
    lines += [
        f"{counted(len(report.stores), 'store')} with {counted(report.rows, 'row')} in {shown(out)}"
        + (f"; {counted(len(report.failed), 'slide')} failed." if report.failed else ".")
    ]
    following = f"pathgen pretrain {shown(out)} -o runs/first --recipe tiny"
    if report.kind == "features":
        following = f"pathgen train-mil {shown(out)} --labels labels.csv -o mil/"
    talk.result(report.to_dict(), "\n".join(lines), following if report.stores else "")
    if report.failed:
        raise typer.Exit(SOME_FAILED)


@app.command("verify")
@guarded
def verify_command(
    places: Annotated[list[Path], typer.Argument(help="Stores, folders of stores, or exports.")],
    form: Annotated[
        Format | None, typer.Option("--as", help="Read the folder as this tool does.")
    ] = None,
    slides: Annotated[
        Path | None, typer.Option(help="Folder of the slides, to hold coordinates against them.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Check stores and exports: seal, checksums, counts, and who would misread them."""
    from pathgen.exchange import verify

    talk = Talk(quiet=quiet, as_json=as_json)
    report = verify(places, form, slides=slides, progress=talk.progress)
    rows = [{**f.to_dict(), "path": shown(f.path)} for f in report.findings]
    counts = report.counts
    text = f"{_lines(rows)}\n{counts['ok']} good, {counts['warning']} with a warning, "
    text += f"{counts['error']} wrong."
    talk.result(report.to_dict(), text)
    if not report.good:
        raise typer.Exit(UNUSABLE)


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Each finding in a line, why below it; those in order first, so that the rest is in sight."""
    order = {"ok": 0, "warning": 1, "error": 2}
    ranked = sorted(rows, key=lambda row: order[row["state"]])
    lines = table(ranked, ("state", "path", "reader", "what")).splitlines()
    shown_lines = lines[:1]
    for line, row in zip(lines[1:], ranked, strict=True):
        shown_lines.append(line)
        if row["why"]:
            shown_lines.append(f"         {row['why']}")
    return "\n".join(shown_lines)
