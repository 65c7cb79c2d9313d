"""Commands that judge and show results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathgen.cli.options import (
    AsJson,
    Quiet,
    Seed,
    Verbose,
)
from pathgen.cli.root import app, evaluate_app
from pathgen.console import Talk, guarded, shown


@evaluate_app.command("knn")
@guarded
def evaluate_knn(
    features: Annotated[list[Path], typer.Argument(help="Feature stores to learn from.")],
    test: Annotated[
        list[Path] | None,
        typer.Option(help="Feature stores to be judged on. Default: leave slides out."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV with slide, x, y, label and perhaps patient; default: the folders' names."
        ),
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="Neighbors.")] = 20,
    title: Annotated[str | None, typer.Option(help="Name of the row in a report.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file for the result.")
    ] = None,
    seed: Seed = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Weighted k-nearest-neighbor accuracy of features, as DINO measures it."""
    from pathgen import commit
    from pathgen.evaluate.knn import evaluate_knn as measure

    values = measure(features, test, labels=labels, k=k, seed=seed or 0, title=title)
    if out:
        commit.write_json(out, values)
    text = (
        f"k-NN accuracy {values['accuracy']:.3f} (k={values['k']}, {values['n_train']:,} to learn "
        f"from, {values['n_test']:,} judged; largest class {values['chance']:.3f})."
    )
    following = f"pathgen report {shown(out.parent)}" if out else ""
    Talk(quiet=quiet, as_json=as_json).result(values, text, following)


@evaluate_app.command("linear")
@guarded
def evaluate_linear(
    train: Annotated[Path, typer.Argument(help="Features to learn from: a store or a folder.")],
    test: Annotated[Path, typer.Argument(help="Features to be judged on.")],
    labels: Annotated[
        Path | None,
        typer.Option(help="CSV with slide, x, y, label; default: the folders' names."),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Name of the row in a report.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file for the result.")
    ] = None,
    seed: Seed = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Accuracy of a linear probe on frozen features; its penalty is chosen on TRAIN alone."""
    from pathgen import commit
    from pathgen.evaluate.linear import evaluate_linear as measure

    values = measure(train, test, labels=labels, seed=seed or 0, title=title)
    if out:
        commit.write_json(out, values)
    text = (
        f"Linear accuracy {values['accuracy']:.3f} (C={values['c']:g}, {values['n_train']:,} to "
        f"learn from, {values['n_test']:,} judged; largest class {values['chance']:.3f})."
    )
    Talk(quiet=quiet, as_json=as_json).result(values, text)


@evaluate_app.command("fid")
@guarded
def evaluate_fid(
    real: Annotated[Path, typer.Argument(help="Features of real patches: a store or a folder.")],
    synthetic: Annotated[
        Path, typer.Argument(help="Features of synthetic images, by the same encoder.")
    ],
    sample: Annotated[
        int | None, typer.Option(min=1, help="At most so many of each. Default: all.")
    ] = None,
    k: Annotated[int, typer.Option(min=1, help="Neighbors, for precision and recall.")] = 3,
    title: Annotated[str | None, typer.Option(help="Name of the row in a report.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file for the result.")
    ] = None,
    seed: Seed = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """FID, KID, precision and recall of synthetic images, on features of any encoder."""
    from pathgen import commit
    from pathgen.evaluate.generation import evaluate_generation as measure

    values = measure(real, synthetic, sample=sample, k=k, seed=seed or 0, title=title)
    if out:
        commit.write_json(out, values)
    text = (
        f"FID {values['fid']:.4g}, KID {values['kid']:.4g} ± {values['kid_sd']:.2g}, precision "
        f"{values['precision']:.3f}, recall {values['recall']:.3f} ({values['n_real']:,} real, "
        f"{values['n_synthetic']:,} synthetic, {values['dim']} dimensions)."
    )
    if values["warning"]:
        text += f"\n{values['warning']}"
    Talk(quiet=quiet, as_json=as_json).result(values, text)


@app.command()
@guarded
def report(
    folder: Annotated[Path, typer.Argument(help="Any folder that pathgen wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: report.html in the folder.")
    ] = None,
    tiles: Annotated[
        Path | None,
        typer.Option(help="Folder of `tile`, for thumbnails, where the folder holds none."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """One self-contained HTML page of what a folder holds."""
    from pathgen.report import write_report

    talk = Talk(quiet=quiet, as_json=as_json)
    page = write_report(folder, out, tiles=tiles, progress=talk.progress)
    talk.result({"report": page}, f"{shown(page)} is ready.", "open it in a browser")
