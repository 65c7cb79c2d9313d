"""The section of a pretraining run: how each stage went, and what it can draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pathgen.report import figures
from pathgen.report.augmentation import augmentation
from pathgen.report.blocks import (
    Code,
    Details,
    Figure,
    Heading,
    Note,
    Section,
    Table,
    Text,
)
from pathgen.report.collect import (
    STAGES,
    Found,
    Unreadable,
    flatten,
    read_log,
    read_object,
    read_settings,
)
from pathgen.report.text import DASH, as_float, compact, number

NAMES = {
    "dino": "DINO", "autoencoder": "autoencoder", "ldm": "E-LDM", "augment": "synthetic views",
    "gen-dino": "Gen-DINO",
}  # fmt: skip
#: Stages that learn, and so have a loss.
LEARN = ("dino", "autoencoder", "ldm", "gen-dino")
#: Pictures that a stage leaves, and how to read them.
PICTURES = {
    "autoencoder": (
        "reconstructions.png",
        "Real patches over what the autoencoder gives back. Detail lost here cannot come back in "
        "a synthetic view.",
    ),
    "augment": (
        "sheet.png",
        "Upper rows: a real patch, then views drawn from its embedding alone; they should share "
        "its tissue, not its pixels. Lower rows: blends of two real patches; alpha is the share of "
        "the one on the left. Numbers are cosines of embeddings to the real patches of the row.",
    ),
}
#: Settings that say most about a stage, and what to call them.
KEY_SETTINGS = {
    "encoder.name": "encoder", "encoder.image_size": "image size", "head.prototypes": "prototypes",
    "views.global_size": "global crops", "views.local_size": "local crops",
    "views.local_crops": "local crops a patch", "model.kind": "kind",
    "model.image_size": "image size", "model.latent_channels": "latent channels",
    "model.block_out_channels": "channels", "model.condition_dropout": "condition dropout",
    "optim.epochs": "epochs", "optim.steps": "steps", "optim.batch_size": "batch",
    "optim.lr": "learning rate", "teacher_momentum": "teacher momentum", "ema": "average decay",
    "disentangle_weight": "disentangle weight", "generative": "views a patch",
    "interpolated": "blends a patch", "alphas": "alpha", "steps": "sampling steps",
    "guidance": "guidance", "sampler": "sampler", "run.seed": "seed", "seed": "seed",
}  # fmt: skip


def run_section(found: Found, folder: Path, number_: int) -> Section:
    """All stages in a run folder."""
    section = Section(f"run-{number_}", f"Pretraining · {found.name(folder)}")
    stages = {stage: folder / stage for stage in STAGES}
    there = {stage: place for stage, place in stages.items() if place.is_dir()}
    done = sum((place / "done.json").is_file() for place in stages.values())
    section.facts.append(f"{done} of {len(STAGES)} training stages finished")
    _stage_table(section, found, stages)
    _curves(section, found, [(NAMES[s], there[s]) for s in LEARN if s in there])
    for stage, place in there.items():
        _picture(section, found, stage, place)
        _latest(section, found, stage, place)
    if "augment" in there:
        augmentation(section, found, there["augment"])
    _settings(section, found, folder, {NAMES[s]: s.replace("-", "_") for s in there})
    _environment(section, found, folder / "environment.json")
    return section


def stage_section(found: Found, folder: Path, number_: int) -> Section:
    """One stage that stands alone, or a training of another kind."""
    section = Section(f"stage-{number_}", f"Training · {found.name(folder)}")
    name = folder.name
    section.facts.append("1 training stage")
    _stage_table(section, found, {name: folder})
    if name != "augment":
        _curves(section, found, [(NAMES.get(name, name), folder)])
    _picture(section, found, name, folder)
    _latest(section, found, name, folder)
    if name == "augment":
        augmentation(section, found, folder)
    _settings(section, found, folder, {NAMES.get(name, name): ""})
    _environment(section, found, folder / "environment.json")
    return section


def _stage_table(section: Section, found: Found, stages: Mapping[str, Path]) -> None:
    rows, notes = [], []
    for stage, place in stages.items():
        state = "done" if (place / "done.json").is_file() else "running"
        metrics: Mapping[str, Any] = {}
        if not place.is_dir():
            state = "missing"
        elif state == "done":
            try:
                metrics = read_object(place / "metrics.json", found.root)
            except Unreadable as problem:
                notes.append(Note(str(problem)))
        rows.append([NAMES.get(stage, stage), state, *_facts(stage, place, metrics, found)])
    section.add(
        *notes,
        Table(
            "Losses are means over the first and the last tenth of the logged steps; those of "
            "different stages are of different kinds and cannot be compared.",
            ["stage", "state", "steps", "loss at first", "loss at last", "also"], rows,
            numeric=frozenset({2, 3, 4}), state=1,
        ),
    )  # fmt: skip


def _facts(stage: str, place: Path, metrics: Mapping[str, Any], found: Found) -> list[str]:
    steps = metrics.get("steps")
    if steps is None and (place / "log.jsonl").is_file():
        try:
            log = read_log(place / "log.jsonl", found.root)
            steps = log[-1]["step"] + 1 if log else None
        except Unreadable:
            steps = None  # the curves say so
    told = {"steps", "loss_first", "loss_last"}
    also = [
        f"{name.replace('_', ' ')} {number(value)}"
        for name, value in metrics.items()
        if name not in told and as_float(value) is not None
    ]
    losses = [number(as_float(metrics.get(name)), 4) for name in ("loss_first", "loss_last")]
    return [DASH if steps is None else number(steps), *losses, ", ".join(also)]


def _curves(section: Section, found: Found, stages: Iterable[tuple[str, Path]]) -> None:
    notes: list[Note] = []
    curves: dict[str, figures.Curve] = {}
    for name, place in stages:
        try:
            log = read_log(place / "log.jsonl", found.root)
        except Unreadable as problem:
            notes.append(Note(str(problem)))
            continue
        points = [(line["step"], as_float(line.get("loss"))) for line in log]
        if any(value is not None for _, value in points):
            steps, values = zip(*points, strict=True)
            curves[name] = (steps, [float("nan") if v is None else v for v in values])
        else:
            notes.append(Note(f"{found.name(place)}/log.jsonl holds no loss yet."))
    section.add(Heading("Loss by step"), *notes)
    if curves:
        section.add(
            Figure(
                figures.loss_curves(curves, columns=2 if len(curves) in (2, 4) else 3),
                f"Loss curves of {', '.join(curves)}",
                "Pale: the loss as logged; dark: its moving mean. It should fall and level off; a "
                "jump or a gap is worth a look at the log.",
            )
        )


def _picture(section: Section, found: Found, stage: str, place: Path) -> None:
    if stage not in PICTURES:
        return
    name, caption = PICTURES[stage]
    title = {"autoencoder": "Reconstructions", "augment": "Synthetic views"}[stage]
    section.add(Heading(title))
    try:
        section.add(Figure(figures.picture(place / name), title, caption))
    except figures.BadImage as problem:
        section.add(Note(f"{found.name(place)}/{name} {problem}."))


#: Pictures made during a training, by the last part of their file's name.
SEEN = {
    "crops": "What the networks are shown: global and local crops, and blends with alpha.",
    "attention": "Where the teacher's class token looks in its last block, head by head. After "
    "some training the heads should pick out structures, each others.",
    "samples": "Patches and what the averaged E-LDM draws from their embeddings, from the same "
    "noise every time.",
    "reconstructions": "Patches over what the autoencoder gave back at that step.",
}


def _latest(section: Section, found: Found, stage: str, place: Path) -> None:
    """The last picture of each kind that the training left on its way."""
    last: dict[str, tuple[int, Path]] = {}
    for path in sorted((place / "pictures").glob("step-*-*.png")):
        _, number, name = path.stem.split("-", 2)
        if number.isdigit():
            last[name] = (int(number), path)
    for name, (step, path) in last.items():
        title = f"{NAMES.get(stage, stage)}: {name} after step {step:,}"
        section.add(Heading(title))
        try:
            section.add(Figure(figures.picture(path), title, SEEN.get(name, "")))
        except figures.BadImage as problem:
            section.add(Note(f"{found.name(place)}/pictures/{path.name} {problem}."))


def _settings(section: Section, found: Found, folder: Path, groups: Mapping[str, str]) -> None:
    """Key settings a stage, and all of them folded away; `groups`: title -> key in config.yaml."""
    section.add(Heading("Settings"))
    try:
        config = read_settings(folder / "config.yaml", found.root)
    except Unreadable as problem:
        section.add(Note(str(problem)))
        return
    rows = []
    for title, key in groups.items():
        values = config.get(key) if key else config
        if isinstance(values, Mapping):
            rows.append([title, _in_short(flatten(values)) or DASH])
    whole = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    if rows:
        section.add(Table("What was asked, in short.", ["stage", "settings"], rows))
    section.add(Details("All settings", [Code("config.yaml", whole)]))


def _in_short(flat: Mapping[str, Any]) -> str:
    known = {name: flat[key] for key, name in KEY_SETTINGS.items() if flat.get(key) is not None}
    if "steps" in known:
        known.pop("epochs", None)  # steps count when they are given
    return ", ".join(f"{name} {compact(value)}" for name, value in known.items())


def _environment(section: Section, found: Found, path: Path) -> None:
    try:
        values = read_object(path, found.root)
    except Unreadable as problem:
        section.add(Note(str(problem)))
        return
    packages = values.get("packages")
    parts = [f"{name} {values[name]}" for name in ("pathgen", "python") if name in values]
    if isinstance(packages, Mapping):
        parts += [f"{name} {version}" for name, version in packages.items()]
    git = values.get("git")
    if isinstance(git, Mapping) and git.get("commit"):
        changed = " with changes" if git.get("dirty") else ""
        parts.append(f"commit {str(git['commit'])[:12]}{changed}")
    if values.get("platform"):
        parts.append(str(values["platform"]))
    section.add(Details("Versions it ran with", [Text(", ".join(parts))]))
