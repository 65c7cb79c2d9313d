"""Commands on public data sets: which slides there are, and who trains and who tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pathgen.cli.options import AsJson, Quiet, Verbose
from pathgen.cli.root import app
from pathgen.console import Talk, guarded, shown, table
from pathgen.errors import ConfigError, DataError
from pathgen.progress import Progress

if TYPE_CHECKING:
    from pathgen.datasets.reading import Reading

datasets_app = typer.Typer(
    help="Public cohorts as they lie on disk, and the protocols results are compared by.",
    no_args_is_help=True,
)
app.add_typer(datasets_app, name="datasets")

Root = Annotated[
    Path | None, typer.Argument(help="Folder of the data set; without it: how to get the data.")
]
CohortOut = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="CSV for the cohort; a JSON of that name is written too."),
]
Strict = Annotated[
    bool,
    typer.Option("--strict", help="Refuse where counts, files or rows differ from the published."),
]
#: So many entries of a list are shown; the JSON has all.
SHOWN = 3


@datasets_app.command("panda")
@guarded
def datasets_panda(
    root: Root = None,
    out: CohortOut = None,
    labels: Annotated[Path | None, typer.Option(help="Instead of train.csv, same columns.")] = None,
    duplicates: Annotated[
        Path | None, typer.Option(help="CSV of image_id and group_id: near-duplicates.")
    ] = None,
    noisy: Annotated[
        Path | None, typer.Option(help="CSV of image_id: slides with doubtful labels.")
    ] = None,
    clean: Annotated[
        Path | None, typer.Option(help="CSV of image_id: slides left when doubtful ones are out.")
    ] = None,
    suspicious: Annotated[
        Path | None, typer.Option(help="CSV of image_id and reason: pen marks, no tissue ...")
    ] = None,
    site: Annotated[
        Literal["karolinska", "radboud"] | None, typer.Option(help="Only this provider's slides.")
    ] = None,
    strict: Strict = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """PANDA: 10,616 prostate biopsies, ISUP grade 0 to 5, two providers."""
    from pathgen.datasets.panda import Lists, read_panda

    def read(folder: Path, progress: Progress) -> Reading:
        reading = read_panda(
            folder, labels=labels, progress=progress,
            lists=Lists(duplicates, noisy, clean, suspicious),
        )  # fmt: skip
        if site is None:
            return reading
        return reading.select([m.site == site for m in reading.cohort.members])

    _cohort("panda", root, out, read, strict, Talk(quiet=quiet, as_json=as_json))


@datasets_app.command("bright")
@guarded
def datasets_bright(
    root: Root = None,
    out: CohortOut = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(help="CSV of image_name, Task1-target, Task2-target. Repeatable."),
    ] = None,
    strict: Strict = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """BRIGHT challenge: 703 breast slides, three classes and six subtypes."""
    from pathgen.datasets.bright import read_bright

    def read(folder: Path, progress: Progress) -> Reading:
        return read_bright(folder, labels=labels or (), progress=progress)

    _cohort("bright", root, out, read, strict, Talk(quiet=quiet, as_json=as_json))


@datasets_app.command("bracs")
@guarded
def datasets_bracs(
    root: Root = None,
    out: CohortOut = None,
    summary: Annotated[
        Path | None, typer.Option(help="BRACS.xlsx, if it is not in the folder; or it as CSV.")
    ] = None,
    strict: Strict = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """BRACS: 547 breast slides of 189 patients, seven subtypes in three groups."""
    from pathgen.datasets.bracs import read_bracs

    def read(folder: Path, progress: Progress) -> Reading:
        return read_bracs(folder, summary=summary, progress=progress)

    _cohort("bracs", root, out, read, strict, Talk(quiet=quiet, as_json=as_json))


@datasets_app.command("camelyon16")
@guarded
def datasets_camelyon16(
    root: Root = None,
    out: CohortOut = None,
    strict: Strict = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """CAMELYON16: 399 lymph nodes, normal or with metastases, and their outlines."""
    from pathgen.datasets.camelyon16 import read_camelyon16

    def read(folder: Path, progress: Progress) -> Reading:
        return read_camelyon16(folder, progress=progress)

    _cohort("camelyon16", root, out, read, strict, Talk(quiet=quiet, as_json=as_json))


@datasets_app.command("folder")
@guarded
def datasets_folder(
    root: Root = None,
    out: CohortOut = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV of slide, label, and perhaps patient, site, split.")
    ] = None,
    label_column: Annotated[str | None, typer.Option(help="If it is not called label.")] = None,
    patient_column: Annotated[str | None, typer.Option(help="If it is not called patient.")] = None,
    strict: Strict = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Slides of your own: one folder a class, or a CSV of labels."""
    from pathgen.datasets.folder import read_folder

    def read(folder: Path, progress: Progress) -> Reading:
        return read_folder(
            folder, labels=labels, label_column=label_column, patient_column=patient_column,
            progress=progress,
        )  # fmt: skip

    _cohort("folder", root, out, read, strict, Talk(quiet=quiet, as_json=as_json))


@datasets_app.command("protocols")
@guarded
def datasets_protocols(
    as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """The named protocols, one a line."""
    from pathgen.datasets.protocols import PROTOCOLS

    rows = [
        {"protocol": f"{p.name} v{p.version}", "dataset": p.dataset, "what": p.text}
        for p in PROTOCOLS.values()
    ]
    text = table(rows, ("protocol", "dataset", "what"))
    Talk(quiet=quiet, as_json=as_json).result(
        {"protocols": rows},
        text,
        "pathgen datasets splits cohort.csv --protocol NAME -o splits.csv",
    )


@datasets_app.command("splits")
@guarded
def datasets_splits(
    cohort: Annotated[Path, typer.Argument(help="CSV that `pathgen datasets` wrote.")],
    protocol: Annotated[str, typer.Option(help="See `pathgen datasets protocols`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="CSV of slide, split, part.")],
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Who trains, validates and tests by a protocol; patients and duplicates never part."""
    from pathgen.datasets import divide, read_cohort
    from pathgen.datasets.reading import file_digest
    from pathgen.datasets.writing import described, write_splits

    splits = divide(protocol, read_cohort(cohort))
    digest = file_digest(cohort)
    write_splits(out, splits, digest)
    values = described(splits, digest)
    lines = [f"Note: {note}." for note in splits.notes]
    lines += [
        f"Left out: {len(gone):,} slides ({why})." for why, gone in values["left_out"].items()
    ]
    lines.append(table(values["splits"], ("split", "repeat", "train", "valid", "test")))
    lines.append(
        f"Pretraining is {splits.protocol.pretraining}: "
        + ("encoders learn from the training slides of a split alone."
           if splits.protocol.pretraining == "inductive"
           else "encoders may learn from all slides, without labels.")
    )  # fmt: skip
    lines.append(f"{len(splits)} splits of {protocol} are in {shown(out)}.")
    # By its name, not by the file: a protocol also says what is predicted, and in which order.
    following = (
        f"pathgen train-mil features/ --labels {shown(cohort)} --protocol "
        f"{splits.protocol.name} -o mil/"
    )
    Talk(quiet=quiet, as_json=as_json).result({"out": out, **values}, "\n".join(lines), following)


@datasets_app.command("legend")
@guarded
def datasets_legend(
    provider: Annotated[
        Literal["karolinska", "radboud"], typer.Argument(help="Whose masks of PANDA.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="YAML of settings for `tile`.")],
    classes: Annotated[
        Literal["native", "cancer"],
        typer.Option(help="All values of the provider, or benign and cancer for both alike."),
    ] = "native",
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """What the values of PANDA's masks mean, as settings that `tile` reads."""
    from pathgen import commit
    from pathgen.config import to_yaml
    from pathgen.datasets.panda import mask_settings

    settings = {"masks": mask_settings(provider, classes)}
    commit.write_text(out, to_yaml(settings))
    Talk(quiet=quiet, as_json=as_json).result(
        {"out": out, **settings}, f"The legend of {provider} is in {shown(out)}.",
        f"pathgen tile {provider}.csv -o tiles/ --masks ROOT/train_label_masks -c {shown(out)}",
    )  # fmt: skip


def _cohort(
    dataset: str,
    root: Path | None,
    out: Path | None,
    read: Callable[[Path, Progress], Reading],
    strict: bool,
    talk: Talk,
) -> None:
    from pathgen.datasets.guides import GUIDES

    if root is None:
        guide = GUIDES[dataset]
        command = f"pathgen datasets {dataset} ROOT -o cohort.csv"
        talk.result({"guide": vars(guide)}, guide.text(command))
        return
    if out is None:
        raise ConfigError("no place for the cohort", where="--out", hint="give -o cohort.csv")
    reading = read(root, talk.progress)
    if strict:
        _refuse(reading)
    reading.write(out)
    lines = [f"Differs: {text}." for text in reading.differences]
    lines += [
        f"{name.replace('_', ' ').capitalize()}: {len(entries):,} "
        f"({'; '.join(entries[:SHOWN])}{'; ...' if len(entries) > SHOWN else ''})."
        for name, entries in reading.lists.items()
    ]
    lines += [f"Note: {note}." for note in reading.notes]
    lines.append(f"{len(reading.cohort):,} slides are in {shown(out)}.")
    values = {"out": out, **reading.to_dict()}
    talk.result(values, "\n".join(lines), f"pathgen tile {shown(out)} -o tiles/")


def _refuse(reading: Reading) -> None:
    """What --strict does not let pass."""
    wrong = [*reading.differences]
    wrong += [
        f"{len(entries)} {name}, first {entries[0]}"
        for name, entries in reading.lists.items()
        if name != "duplicates"
    ]
    if wrong:
        raise DataError(
            "the data set is not as it was published", code="PG-D20", where=reading.dataset,
            why="; ".join(wrong), hint="complete it, or leave out --strict",
        )  # fmt: skip
