"""Commands that train, and that use what was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from pathgen.cli.options import (
    AsJson,
    Config,
    Device,
    LoaderWorkers,
    Out,
    Overwrite,
    Plan,
    Quiet,
    Resume,
    Seed,
    Verbose,
    need_torch,
    setting,
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
        str,
        typer.Option(
            help="Some of dino, autoencoder, ldm, augment, gen-dino, with commas. Default: all.",
            show_default=False,
        ),
    ] = "dino,autoencoder,ldm,augment,gen-dino",
    settings: Annotated[list[str] | None, setting("dino.optim.epochs=50")] = None,
    seed: Seed = None,
    device: Device = "auto",
    workers: LoaderWorkers = None,
    from_encoder: Annotated[
        str | None,
        typer.Option(help="A finished encoder in place of the dino stage, as for a second round."),
    ] = None,
    from_autoencoder: Annotated[
        Path | None, typer.Option(help="A run whose autoencoder is used instead of a new one.")
    ] = None,
    from_augment: Annotated[
        Path | None,
        typer.Option(help="A run whose synthetic images are used: only Gen-DINO is trained."),
    ] = None,
    resume: Resume = True,
    overwrite: Overwrite = False,
    plan: Plan = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Two real steps of every stage; nothing is kept.")
    ] = False,
    tflops: Annotated[
        float | None,
        typer.Option(min=0, help="With --plan or --dry-run: what large products reach, for hours."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train an encoder without labels: DINO, E-LDM, synthetic views, Gen-DINO."""
    need_torch()
    from pathgen import pretraining as flow

    talk = Talk(quiet=quiet, as_json=as_json)
    chosen = [stage.strip() for stage in stages.split(",") if stage.strip()]
    choices: dict[str, Any] = {
        "overrides": settings or (), "seed": seed, "device": device, "workers": workers,
        "from_encoder": from_encoder, "from_autoencoder": from_autoencoder,
        "from_augment": from_augment,
    }  # fmt: skip
    if plan or dry_run:
        _tell_cost(talk, stores, recipe, chosen, choices, rehearsed=dry_run, tflops=tflops)
        return
    result = flow.pretrain(
        stores, out, recipe, stages=chosen, overwrite=overwrite or not resume,
        progress=talk.progress, **choices,
    )  # fmt: skip
    own = [stage for stage in flow.STAGES if stage not in result.config.given]
    left = [stage for stage in own if stage not in result.stages]
    following = f"the same command with --stages {','.join(left)}"
    if {"dino", "gen-dino"} & result.stages.keys():
        following = (
            f"pathgen extract-features {shown(stores[0])} --encoder {shown(out)} -o features/"
        )
    talk.result(
        {"out": out, "stages": dict(result.stages)},
        f"{len(own) - len(left)} of {len(own)} stages are finished in {shown(out)}.",
        following,
    )


def _tell_cost(
    talk: Talk,
    stores: list[Path],
    recipe: str,
    stages: list[str],
    choices: dict[str, Any],
    *,
    rehearsed: bool,
    tflops: float | None,
) -> None:
    """The plan of a pretraining, and what two steps of each stage took when they were tried."""
    from pathgen import pretraining as flow
    from pathgen.data.sources import open_sources
    from pathgen.plan import SHARE, plan_pretrain

    flow.check_stages(stages)
    resolved = flow.resolve(recipe, **choices)
    images = sum(len(source) for source in open_sources(stores))
    # In the order in which they are done, and rehearsed, however they were asked for.
    wanted = [s for s in flow.STAGES if s in stages and s not in resolved.given]
    plans = plan_pretrain(resolved, images, wanted)
    rows = [plan.to_dict() for plan in plans]
    notes = [f"{images:,} patches, recipe {resolved.name}"]
    if tflops:
        hours = [plan.hours(tflops) for plan in plans]
        rows = [{**row, "hours": hour} for row, hour in zip(rows, hours, strict=True)]
        notes.append(f"hours: FLOPs at {SHARE:.0%} of {tflops:g} TFLOP/s, {sum(hours):.1f} in all")
    if rehearsed:
        from pathgen.rehearsal import BATCH, rehearse

        tried = rehearse(stores, recipe, stages=stages, progress=talk.progress, **choices)
        rows = [{**row, **done.to_dict()} for row, done in zip(rows, tried, strict=True)]
        notes.append(f"s_per_step: here, {BATCH} images a step; nothing was kept")
    columns: dict[str, Callable[[Any], str]] = {
        "stage": str,
        "parameters": lambda n: f"{n / 1e6:.2f} M",
        "steps": "{:,}".format,
        "batch_size": str,
        "flops": "{:.2e}".format,
        "memory_bytes": size,
        "hours": "{:.1f}".format,
        "seconds_per_step_here": "{:.2f}".format,
    }
    names = {"memory_bytes": "memory", "seconds_per_step_here": "s_per_step"}
    cells = [
        {names.get(key, key): show(row[key]) for key, show in columns.items() if key in row}
        for row in rows
    ]
    text = "\n".join([*notes, table(cells, list(cells[0]) if cells else ["stage"])])
    then = "the same command without " + ("--dry-run" if rehearsed else "--plan")
    talk.result({"images": images, "stages": rows}, text, then)


@app.command("train-mil")
@guarded
def train_mil(
    features: Annotated[list[Path], typer.Argument(help="Feature stores, or folders of them.")],
    labels: Annotated[
        Path, typer.Option(help="CSV with slide, label and perhaps patient, site and group.")
    ],
    out: Out,
    head: Annotated[
        str | None,
        typer.Option(
            help="abmil (default), abmil-plain, mean, max, instance-max, clam-sb, clam-mb, "
            "transmil, dsmil, dtfd or transformer."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="classes (default), ordinal, regression or survival."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="All classes in their order, with commas. Default: those of the labels."),
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Cross-validation folds. Default: 5.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="All of it so often, with other seeds. Default: 1.")
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(help="CSV of slide, split, part in place of folds.")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="A named protocol; see `pathgen datasets protocols`.")
    ] = None,
    shuffle_labels: Annotated[
        int | None,
        typer.Option(min=0, help="A seed: train on labels dealt out anew, to see what is chance."),
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="If it is not called label.")] = None,
    patient_column: Annotated[
        str | None, typer.Option(help="If it is not called patient. Patients never part.")
    ] = None,
    site_column: Annotated[str | None, typer.Option(help="If it is not called site.")] = None,
    group_column: Annotated[
        str | None, typer.Option(help="If it is not called group. Slides of a group never part.")
    ] = None,
    time_column: Annotated[
        str | None, typer.Option(help="Of survival, if it is not called time.")
    ] = None,
    event_column: Annotated[
        str | None, typer.Option(help="Of survival, if it is not called event.")
    ] = None,
    encoder_run: Annotated[
        Path | None,
        typer.Option(help="The pretraining run of the features, to say which slides it saw."),
    ] = None,
    config: Config = None,
    settings: Annotated[list[str] | None, setting("monitor=qwk")] = None,
    seed: Seed = None,
    device: Device = "auto",
    resume: Resume = True,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """A slide head (ABMIL and others) on features, cross-validated by patient."""
    need_torch()
    from pathgen.config import load_config
    from pathgen.evaluate.mil import train_mil as cross_validate
    from pathgen.train.mil import MILTrainConfig

    talk = Talk(quiet=quiet, as_json=as_json)
    # "auto" is also what nobody asked for: a device in the config then stays.
    given = {"target": target, "device": None if device == "auto" else device}
    own = [f"{name}={value}" for name, value in given.items() if value is not None]
    asked = load_config(MILTrainConfig, config, [*(settings or ()), *own])
    result = cross_validate(
        features, labels, out, asked, head=head, folds=folds, repeats=repeats, seed=seed,
        classes=None if classes is None else [name.strip() for name in classes.split(",")],
        splits=splits, protocol=protocol, shuffle_labels=shuffle_labels,
        label_column=label_column, patient_column=patient_column, site_column=site_column,
        group_column=group_column, time_column=time_column, event_column=event_column,
        encoder_run=encoder_run, overwrite=overwrite or not resume, progress=talk.progress,
    )  # fmt: skip
    talk.result(
        {"out": out, "metrics": result.metrics},
        f"{result.summary()} Predictions in {shown(out / 'predictions.csv')}.",
        f"pathgen report {shown(out)}",
    )
