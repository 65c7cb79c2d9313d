"""Commands that train, and that use what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathgen.cli.options import (
    AsJson,
    Config,
    Device,
    Out,
    Overwrite,
    Plan,
    Quiet,
    Resume,
    Seed,
    Set,
    Verbose,
    Workers,
    need_torch,
)
from pathgen.cli.root import app
from pathgen.console import Talk, guarded, shown, size, table


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
    need_torch()
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
    need_torch()
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
    need_torch()
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
