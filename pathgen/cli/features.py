"""The command that makes features."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pathgen.cli import tileoptions as with_
from pathgen.cli.options import (
    AsJson,
    Config,
    Device,
    Out,
    Overwrite,
    Plan,
    Quiet,
    Resume,
    Verbose,
    need_torch,
    setting,
)
from pathgen.cli.root import app
from pathgen.cli.slides import machines_of, tell_columns, tile_config
from pathgen.console import SOME_FAILED, Talk, guarded, shown, table
from pathgen.errors import ConfigError
from pathgen.progress import counted

if TYPE_CHECKING:
    from pathgen.extract import ExtractReport
    from pathgen.tiling import TileConfig


@app.command(
    "extract-features",
    epilog="Example: pathgen extract-features slides/ --mpp 0.5 --encoder uni2-h -o features/",
)
@guarded
def extract_features(
    patches: Annotated[
        list[str],
        typer.Argument(
            help="Patch stores, folders of them, image folders; or slides, as `pathgen tile` "
            "takes them."
        ),
    ],
    encoder: Annotated[
        list[str],
        typer.Option(
            help="A name (see pathgen encoders), a run, a stage or model folder, or timm:NAME. "
            "Repeatable: one pass over the pixels for all."
        ),
    ],
    out: Out,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of published weights, for machines offline.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16"] | None, typer.Option(help="As stored. Default float32.")
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"] | None,
        typer.Option(help="As computed. Default auto: bf16 on a GPU that has it, else fp32."),
    ] = None,
    normalize: Annotated[
        Literal["none", "macenko", "reinhard"] | None,
        typer.Option(help="Stain normalization, one fit a slide. Default none."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Patches encoded together. Default 256.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that read patches ahead of the encoder; 0: a thread. Default: 0; "
            "for slides 1.",
        ),
    ] = None,
    device: Device = "auto",
    mpp: with_.Mpp = None,
    mag: with_.Mag = None,
    patch_size: with_.PatchSize = None,
    overlap: with_.Overlap = None,
    slide_mpp: with_.SlideMpp = None,
    reader: with_.Reader = None,
    preset: with_.Preset = None,
    masks: with_.Masks = None,
    min_tissue: with_.MinTissue = None,
    min_hematoxylin: with_.MinHematoxylin = None,
    min_focus: with_.MinFocus = None,
    max_pen: with_.MaxPen = None,
    config: Config = None,
    settings: Annotated[list[str] | None, setting("tissue.mpp=4")] = None,
    dask: with_.Dask = None,
    slurm: with_.Slurm = None,
    resume: Resume = True,
    overwrite: Overwrite = False,
    plan: Plan = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """One feature vector per patch, one feature store per slide and encoder.

    From slides nothing is stored but the vectors: the patches are those that `pathgen tile` would
    keep with the same options, --config and --set.
    """
    need_torch()
    from pathgen import extract
    from pathgen.config import build
    from pathgen.extract.inputs import are_slides

    talk = Talk(quiet=quiet, as_json=as_json)
    tiling = {
        "mpp": mpp, "mag": mag, "patch_size": patch_size, "overlap": overlap,
        "slide_mpp": slide_mpp, "reader": reader, "min_tissue": min_tissue,
        "min_hematoxylin": min_hematoxylin, "min_focus": min_focus, "max_pen": max_pen,
    }  # fmt: skip
    asked = [name for name, value in tiling.items() if value is not None]
    given = [("preset", preset), ("masks", masks), ("config", config), ("set", settings)]
    asked += [name for name, value in given if value]
    tile: TileConfig | None = None
    if are_slides(patches):
        tile = tile_config(tiling, preset, config, settings)
        if not quiet:
            tell_columns(patches)
    elif asked:
        raise ConfigError(
            "these patches are tiled already", where=f"--{asked[0].replace('_', '-')}",
            why="how slides are tiled is asked for, and patches are given",
            hint="give slides (a glob or CSV names them), or leave it out",
        )  # fmt: skip
    chosen = {
        "batch_size": batch_size, "device": device, "dtype": dtype, "precision": precision,
        "workers": (1 if tile else None) if workers is None else workers,
        "normalize": None if normalize is None else {"method": normalize},
    }  # fmt: skip
    settled = build(extract.ExtractConfig, {k: v for k, v in chosen.items() if v is not None})
    if plan:
        _tell_plan(talk, patches, encoder, out, settled, tile, masks, weights)
        return
    report = extract.extract(
        encoder[0] if len(encoder) == 1 else encoder, patches, out, settled, tile=tile,
        masks=masks, weights=weights, machines=machines_of(dask, slurm, None),
        overwrite=overwrite or not resume, progress=talk.progress,
    )  # fmt: skip
    _tell(talk, report, out)


def _tell(talk: Talk, report: ExtractReport, out: Path) -> None:
    for line in dict.fromkeys(f"  {row.slide}: {row.message}" for row in report.failed):
        print(line, file=sys.stderr)
    if report.errors and all(one.counts["sources"] == 1 for one in report.encoders):
        raise report.errors[0]
    lines = []
    for one in report.encoders:
        counts = one.counts
        text = f"{counts['features']:,} features of {one.dim} numbers in "
        text += f"{counted(len(one.stores), 'store')} in {shown(one.path)}"
        if counts["failed"]:
            text += f"; {counted(counts['failed'], 'source')} failed"
        lines.append(f"{text}.")
    values: dict[str, Any] = {"out": out, **report.to_dict()}
    if len(report.encoders) == 1:
        one = report.encoders[0]
        values |= {"stores": len(one.stores), "features": one.counts["features"], "dim": one.dim}
    talk.result(values, "\n".join(lines), _following(report))
    if report.failed:
        raise typer.Exit(SOME_FAILED)


def _following(report: ExtractReport) -> str:
    """What is next: a slide classifier, or k-NN where patches have labels of their own."""
    from pathgen.stores.features import FeatureStore

    first = report.encoders[0]
    if not first.counts["features"]:
        return ""
    if len(first.stores) <= FEW:
        stores = [FeatureStore.open(path) for path in first.stores]
        labeled = all(store.classes for store in stores)
        for store in stores:
            store.close()
        if labeled:
            return f"pathgen evaluate knn {shown(first.path)} --test OTHER"
    return f"pathgen train-mil {shown(first.path)} --labels labels.csv -o mil/"


#: Image folders are few; more stores than this are slides.
FEW = 20


def _tell_plan(
    talk: Talk,
    patches: Sequence[str],
    encoders: Sequence[str],
    out: Path,
    config: Any,
    tile: TileConfig | None,
    masks: Path | None,
    weights: Path | None,
) -> None:
    from pathgen.extract.planning import plan_extraction

    found = plan_extraction(
        encoders, patches, out, config, tile=tile, masks=masks, weights=weights,
        progress=talk.progress,
    )  # fmt: skip
    rows: list[Mapping[str, Any]] = [one.to_dict() for one in found]
    text = table(rows, list(rows[0]))
    left = sum(one.left for one in found)
    following = "the same command without --plan" if left else ""
    talk.result({"encoders": rows}, text, following)
