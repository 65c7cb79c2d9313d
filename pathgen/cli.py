"""The command line: read options, call one function, say where the result is.

Exit codes: 0 done; 1 a bug; 2 wrong option or setting; 3 finished, but some slides failed;
4 nothing to work on; 5 output busy; 6 missing extra; 7 storage; 8 a store or run is unusable;
85 stopped on request with a complete checkpoint; 130 Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pathgen import __version__
from pathgen.console import SOME_FAILED, Talk, guarded, shown, size, table

app = typer.Typer(
    name="pathgen",
    help="From a folder of whole-slide images to a slide-level answer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
evaluate_app = typer.Typer(help="Judge features or predictions.", no_args_is_help=True)
app.add_typer(evaluate_app, name="evaluate")

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the result.")]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file of settings; options win over it.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, e.g. tissue.mpp=4. Repeatable."),
]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes; 0 works in this one. Default: all cores.")
]
Seed = Annotated[int | None, typer.Option(help="Seed of every random choice.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Resume = Annotated[
    bool,
    typer.Option("--resume/--no-resume", help="Go on where an earlier run stopped (default)."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Make it anew, replacing the result.")]
Plan = Annotated[bool, typer.Option("--plan", help="Say what would be done and what it costs.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per event on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Tracebacks with errors.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(f"pathgen {__version__}")
        raise typer.Exit


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


@app.command()
@guarded
def pretrain(
    stores: Annotated[
        list[Path], typer.Argument(help="Patch stores, folders of them, or image folders.")
    ],
    out: Out,
    recipe: Annotated[str, typer.Option(help="A recipe's name, or a YAML file.")] = "tiny",
    stages: Annotated[
        str, typer.Option(help="Some of dino,autoencoder,ldm,augment,gen-dino.")
    ] = "dino,autoencoder,ldm,augment,gen-dino",
    settings: Set = None,
    seed: Seed = None,
    device: Device = "auto",
    workers: Workers = None,
    resume: Resume = True,
    overwrite: Overwrite = False,
    plan: Plan = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train an encoder without labels: DINO, E-LDM, synthetic views, Gen-DINO."""
    _need_torch()
    from pathgen import pretraining as flow

    talk = Talk(quiet=quiet, as_json=as_json)
    chosen = [stage.strip() for stage in stages.split(",") if stage.strip()]
    if plan:
        from pathgen.data.sources import open_sources
        from pathgen.plan import plan_pretrain

        resolved = flow.resolve(recipe, settings or (), seed=seed, device=device, workers=workers)
        flow.check_stages(chosen)
        images = sum(len(source) for source in open_sources(stores))
        rows = [stage.to_dict() for stage in plan_pretrain(resolved, images, chosen)]
        shown_rows = [
            {**row, "parameters": f"{row['parameters'] / 1e6:.2f} M",
             "flops": f"{row['flops']:.2e}", "memory": size(row["memory_bytes"])}
            for row in rows
        ]  # fmt: skip
        columns = ("stage", "steps", "batch_size", "parameters", "flops", "memory")
        text = f"{images:,} patches, recipe {resolved.name}\n{table(shown_rows, columns)}"
        talk.result({"images": images, "stages": rows}, text, "the same command without --plan")
        return
    result = flow.pretrain(
        stores, out, recipe, stages=chosen, overrides=settings or (), seed=seed, device=device,
        workers=workers, overwrite=overwrite or not resume, progress=talk.progress,
    )  # fmt: skip
    talk.result(
        {"out": out, "stages": dict(result.stages)},
        f"{len(result.stages)} of {len(flow.STAGES)} stages are finished in {shown(out)}.",
        f"pathgen extract-features {shown(stores[0])} --encoder {shown(out)} -o features/",
    )


@app.command("extract-features")
@guarded
def extract_features(
    stores: Annotated[
        list[Path], typer.Argument(help="Patch stores, folders of them, or image folders.")
    ],
    encoder: Annotated[str, typer.Option(help="A run, a stage or model folder, or timm:NAME.")],
    out: Out,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    workers: Workers = None,
    device: Device = "auto",
    resume: Resume = True,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """One feature vector per patch, one feature store per slide."""
    _need_torch()
    from pathgen import extract
    from pathgen.config import build as build_config
    from pathgen.data.sources import open_sources

    talk = Talk(quiet=quiet, as_json=as_json)
    given = {"batch_size": batch_size, "workers": workers, "device": device}
    config = build_config(
        extract.ExtractConfig, {key: value for key, value in given.items() if value is not None}
    )
    sources = open_sources(stores)
    model = extract.load_encoder(encoder, device=device)
    paths = extract.extract_features(
        model, sources, out, config, overwrite=overwrite or not resume, progress=talk.progress
    )
    vectors = sum(len(source) for source in sources)
    talk.result(
        {"out": out, "stores": len(paths), "features": vectors, "dim": model.dim},
        f"{vectors:,} features of {model.dim} numbers in {len(paths)} stores in {shown(out)}.",
        f"pathgen train-mil {shown(out)} --labels labels.csv -o mil/",
    )


@app.command("train-mil")
@guarded
def train_mil(
    features: Annotated[list[Path], typer.Argument(help="Feature stores, or folders of them.")],
    labels: Annotated[Path, typer.Option(help="CSV with slide, label and perhaps patient.")],
    out: Out,
    label_column: Annotated[str | None, typer.Option(help="If it is not called label.")] = None,
    patient_column: Annotated[
        str | None, typer.Option(help="If it is not called patient. Patients never part.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Cross-validation folds. Default: 5.")
    ] = None,
    config: Config = None,
    settings: Set = None,
    seed: Seed = None,
    device: Device = "auto",
    resume: Resume = True,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """A slide classifier (gated ABMIL) on features, cross-validated by patient."""
    _need_torch()
    from pathgen.config import load_config
    from pathgen.evaluate.mil import train_mil as cross_validate
    from pathgen.train.mil import MILTrainConfig

    talk = Talk(quiet=quiet, as_json=as_json)
    result = cross_validate(
        features, labels, out, load_config(MILTrainConfig, config, [*(settings or ()),
                                                                    f"device={device}"]),
        folds=folds, seed=seed, label_column=label_column, patient_column=patient_column,
        overwrite=overwrite or not resume, progress=talk.progress,
    )  # fmt: skip
    talk.result(
        {"out": out, "metrics": result.metrics},
        f"{result.summary()} Predictions in {shown(out / 'predictions.csv')}.",
        f"pathgen report {shown(out)}",
    )


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


@evaluate_app.command("mil")
@guarded
def evaluate_mil(
    predictions: Annotated[Path, typer.Argument(help="A predictions.csv, or the folder with it.")],
    targets: Annotated[
        Path | None, typer.Option(help="CSV with slide and label; default: the label column.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="If it is not called label.")] = None,
    patient_column: Annotated[
        str | None, typer.Option(help="If the targets' one is not called patient.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="JSON file for the result.")
    ] = None,
    seed: Seed = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Slide-level metrics of a predictions file, with intervals."""
    from pathgen import commit
    from pathgen.evaluate.judgement import summary
    from pathgen.evaluate.predictions import evaluate_predictions

    values = evaluate_predictions(
        predictions, targets=targets, label_column=label_column, patient_column=patient_column,
        seed=seed or 0,
    )  # fmt: skip
    if out:
        commit.write_json(out, values)
    Talk(quiet=quiet, as_json=as_json).result(values, summary(values))


@app.command()
@guarded
def report(
    folder: Annotated[Path, typer.Argument(help="Any folder that pathgen wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: report.html in the folder.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """One self-contained HTML page of what a folder holds."""
    from pathgen.report import write_report

    talk = Talk(quiet=quiet, as_json=as_json)
    page = write_report(folder, out, progress=talk.progress)
    talk.result({"report": page}, f"{shown(page)} is ready.", "open it in a browser")


@app.command("demo-slides")
@guarded
def demo_slides(
    out: Out,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many slides.")] = 12,
    config: Config = None,
    settings: Set = None,
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
        overwrite=overwrite, workers=_processes(workers), progress=talk.progress,
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
    _need_torch()
    from pathgen.demo import run_demo

    talk = Talk(quiet=quiet, as_json=as_json)
    page = run_demo(
        out, seed=seed or 0, device=device, workers=_processes(workers), progress=talk.progress
    )
    talk.result({"report": page}, f"{shown(page)} is ready.", "open it in a browser")


def _processes(workers: int | None) -> int:
    import os

    return (os.cpu_count() or 1) if workers is None else workers


def _need_torch() -> None:
    from pathgen.extras import need

    need("torch", "train")


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. ``--patch_size`` is read as ``--patch-size``: both spellings are in use."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    app([_dashes(argument) for argument in given])


def _dashes(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    name, sign, value = argument.partition("=")
    return name.replace("_", "-") + sign + value
