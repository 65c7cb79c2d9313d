"""Commands that judge slide-level predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pathgen.cli.options import AsJson, Quiet, Seed, Verbose, need_torch
from pathgen.cli.root import evaluate_app
from pathgen.console import Talk, guarded, shown, table
from pathgen.progress import counted

Targets = Annotated[
    Path | None, typer.Option(help="CSV with slide and label; default: the label column.")
]
LabelColumn = Annotated[str | None, typer.Option(help="If the targets' one is not called label.")]
PatientColumn = Annotated[
    str | None, typer.Option(help="If the targets' one is not called patient.")
]
KindOption = Annotated[
    Literal["classes", "regression", "survival"] | None,
    typer.Option(help="What is predicted. Default: what the columns say."),
]
Ordered = Annotated[
    bool | None,
    typer.Option(
        "--ordered/--unordered",
        help="Whether classes have an order, for kappa. Default: two classes, or numbers.",
        show_default=False,
    ),
]
JsonOut = Annotated[Path | None, typer.Option("--out", "-o", help="JSON file for the result.")]
#: What a baseline's line shows, by the first that its kind has.
SHOWN = ("qwk", "auc", "accuracy", "spearman", "mae", "c_index")


@evaluate_app.command("mil")
@guarded
def evaluate_mil(
    predictions: Annotated[Path, typer.Argument(help="A predictions.csv, or the folder with it.")],
    targets: Targets = None,
    label_column: LabelColumn = None,
    patient_column: PatientColumn = None,
    site_column: Annotated[
        str | None, typer.Option(help="If the targets' one is not called site.")
    ] = None,
    kind: KindOption = None,
    ordered: Ordered = None,
    out: JsonOut = None,
    seed: Seed = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Slide-level metrics of a predictions file, with intervals."""
    from pathgen import commit
    from pathgen.evaluate.judgement import summary
    from pathgen.evaluate.predictions import evaluate_predictions

    talk = Talk(quiet=quiet, as_json=as_json)
    values = evaluate_predictions(
        predictions, targets=targets, label_column=label_column, patient_column=patient_column,
        site_column=site_column, kind=kind, ordinal=ordered, seed=seed or 0,
        progress=talk.progress,
    )  # fmt: skip
    if out:
        commit.write_json(out, values)
    place = [f"Metrics in {shown(out)}."] if out else []
    text = "\n".join([summary(values), *(f"- {note}" for note in values["notes"]), *place])
    following = f"pathgen report {shown(out.parent)}" if out else ""
    talk.result(values, text, following)


@evaluate_app.command("compare")
@guarded
def evaluate_compare(
    first: Annotated[Path, typer.Argument(help="A predictions.csv, or a run folder.")],
    second: Annotated[Path, typer.Argument(help="Another one, of the same slides.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(help="As accuracy, auc, qwk. Repeatable. Default: every metric."),
    ] = None,
    targets: Targets = None,
    label_column: LabelColumn = None,
    patient_column: PatientColumn = None,
    kind: KindOption = None,
    ordered: Ordered = None,
    out: JsonOut = None,
    seed: Seed = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Is FIRST better than SECOND on the slides that both predicted, or could it be chance?"""
    from pathgen import commit
    from pathgen.evaluate.compare import compare

    talk = Talk(quiet=quiet, as_json=as_json)
    values = compare(
        first, second, metrics=metric, targets=targets, label_column=label_column,
        patient_column=patient_column, kind=kind, ordinal=ordered, seed=seed or 0,
        progress=talk.progress,
    )  # fmt: skip
    if out:
        commit.write_json(out, values)
    following = f"pathgen report {shown(out.parent)}" if out else ""
    place = f"\nThe comparison is in {shown(out)}." if out else ""
    talk.result(values, _comparison(values) + place, following)


@evaluate_app.command("baselines")
@guarded
def evaluate_baselines(
    run: Annotated[Path, typer.Argument(help="The folder of a finished train-mil.")],
    patches: Annotated[
        list[Path] | None, typer.Option(help="Patch stores: for stain-only and size-only.")
    ] = None,
    features: Annotated[
        list[Path] | None,
        typer.Option(help="The run's feature stores: for label-shuffle, size-only."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV of labels, where the run does not hold them all.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="majority, size-only, stain-only or label-shuffle. Repeatable."),
    ] = None,
    seed: Seed = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """What shuffled labels, stain or slide size alone reach on the splits of a train-mil run."""
    from pathgen.evaluate.baselines import evaluate_baselines as measure

    if features:
        need_torch()
    talk = Talk(quiet=quiet, as_json=as_json)
    values = measure(
        run, patches=patches, features=features, labels=labels, only=only, seed=seed or 0,
        device=device, progress=talk.progress,
    )  # fmt: skip
    lines = [_baseline(row) for row in values["baselines"]]
    lines += [f"{row['name']} was not made: {row['why']}." for row in values["skipped"]]
    n = len(values["baselines"])
    lines.append(
        f"{counted(n, 'baseline')} {'is' if n == 1 else 'are'} in {shown(run / 'baselines')}."
    )
    talk.result(values, "\n".join(lines), f"pathgen report {shown(run)}")


@evaluate_app.command("submission")
@guarded
def evaluate_submission(
    run: Annotated[Path, typer.Argument(help="A predictions.csv, or a run folder.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV for the submission.")],
    task: Annotated[
        Literal["bright3", "bright6"], typer.Option(help="Task 1 (3 classes) or 2 (6 classes).")
    ],
    images: Annotated[
        Path | None,
        typer.Option(help="CSV that names the images to submit, in order. Default: all predicted."),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(help="The run's classes in the challenge's order, with commas."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write predictions as the BRIGHT challenge takes them."""
    from pathgen.evaluate.predictions import predictions_file
    from pathgen.evaluate.submission import write_submission

    named = None if classes is None else [name.strip() for name in classes.split(",")]
    values = write_submission(predictions_file(run), out, task, images=images, classes=named)
    notes = "".join(f"\n- {note}" for note in values["notes"])
    text = f"{values['images']} images of {task} are in {shown(out)}.{notes}"
    following = f"pathgen evaluate mil {shown(out)} --targets TARGETS.csv"
    Talk(quiet=quiet, as_json=as_json).result(values, text, following)


def _comparison(values: Mapping[str, Any]) -> str:
    """A line a metric, then the verdict."""
    names = [values["first"], values["second"]]
    rows = [
        {
            "metric": name,
            names[0]: f"{row['first']:.3f}",
            names[1]: f"{row['second']:.3f}",
            "difference": _difference(row),
            "better": values[row["better"]] if row["better"] else "-",
        }
        for name, row in values["metrics"].items()
    ]
    lines = [table(rows, ["metric", *names, "difference", "better"])] if rows else []
    lines += [f"{name} is undefined: {why}." for name, why in values["undefined"].items()]
    if test := values["test"]:
        lines.append(f"{test['name'][0].upper()}{test['name'][1:]}: p = {test['p']:.3g}.")
    on = f"{values['n']:,} slides of {values['patients']:,} patients"
    lines.append(f"{values['verdict']} ({on}, 95 % intervals by {values['unit']})".strip())
    return "\n".join([*lines, *(f"- {note}" for note in values["notes"])])


def _baseline(row: Mapping[str, Any]) -> str:
    """``stain-only: qwk 0.41; mil is 0.45 [0.31, 0.58] higher``."""
    metrics = row["comparison"]["metrics"]
    name = next((name for name in SHOWN if name in metrics), None)
    if name is None:
        return f"{row['name']}: no metric is defined for both."
    found = metrics[name]
    return (
        f"{row['name']}: {name} {found['second']:.3f}; {row['comparison']['first']} "
        f"{found['first']:.3f}, difference {_difference(found)}{_holds(found['interval'])}."
    )


def _difference(row: Mapping[str, Any]) -> str:
    interval: Sequence[float] | None = row["interval"]
    width = f" [{interval[0]:+.3f}, {interval[1]:+.3f}]" if interval else ""
    return f"{row['difference']:+.3f}{width}"


def _holds(interval: Sequence[float] | None) -> str:
    held = interval is not None and interval[0] <= 0 <= interval[1]
    return ", which holds 0: not shown to be better" if held else ""
