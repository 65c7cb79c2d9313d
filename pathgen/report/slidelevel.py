"""The section of a slide-level result: a cross-validation, or metrics that are a single file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathgen.report.answers import answers
from pathgen.report.blocks import Code, Details, Note, Section, Stats, Table, Text
from pathgen.report.collect import Found, Unreadable, read_object
from pathgen.report.comparisons import baselines
from pathgen.report.foldtables import fold_curves, sites, trials
from pathgen.report.metricnames import NAMES, SHOWN, TRIVIAL, kind_of, title
from pathgen.report.text import as_float, inside, interval_of, number, sentences, with_interval
from pathgen.report.worst import worst

Values = Mapping[str, Any]

TRANSDUCTIVE = (
    "If the encoder was pretrained on these slides, this cross-validation is transductive: no "
    "classifier saw a label of the slides it is judged on, but the encoder saw their images."
)
TITLES = {
    "classes": "Slide classifier (MIL)", "regression": "Slide-level regression (MIL)",
    "survival": "Survival by slide (MIL)",
}  # fmt: skip
#: How notes begin that the paragraph on the encoder says already.
_OF_ENCODER = ("inductive:", "transductive:", "whether the encoder was pretrained")
#: A note that only says how many patients there are is no warning.
_PATIENTS = re.compile(r"[\d,]+ patients? \(.*\)$")


def mil_section(found: Found, folder: Path, number_: int) -> Section:
    """A cross-validated slide classifier, regression or survival model."""
    section = Section(f"mil-{number_}", f"{TITLES['classes']} · {found.name(folder)}")
    values: Values = {}
    try:
        values = read_object(folder / "metrics.json", found.root)
    except Unreadable as problem:
        section.add(Note(str(problem)))
    else:
        section.title = f"{TITLES[kind_of(values)]} · {found.name(folder)}"
        section.add(Text(_made(found, folder, values)))
        _metrics(section, values)
        section.add(Text(encoder_saw(values)))
        baselines(section, found, folder, values)
        _parts(section, values)
    worst(section, found, folder / "predictions.csv", values)
    fold_curves(section, found, folder)
    _settings(section, folder)
    return section


def predictions_section(found: Found, path: Path, values: Values, number_: int) -> Section:
    """Slide-level metrics that are a single file."""
    section = Section(f"slide-level-{number_}", f"Slide-level result · {found.name(path)}")
    _metrics(section, values)
    _parts(section, values)
    return section


def encoder_saw(values: Values) -> str:
    """Whether the result is inductive or transductive, as far as the run knows."""
    tested, seen = (inside(values, "encoder_saw", key) for key in ("tested", "seen"))
    if not isinstance(tested, int):
        return TRANSDUCTIVE
    if not isinstance(seen, int):
        return (
            "Whether the encoder saw the tested slides in its own training is not known. "
            f"{TRANSDUCTIVE} train-mil --encoder-run tells, where the pretraining run is at hand."
        )
    if not seen:
        return (
            f"Inductive: the encoder was pretrained on none of the {tested:,} tested slides, and "
            "no classifier saw a label of the slides it is judged on."
        )
    return (
        f"Transductive: the encoder was pretrained, without labels, on {seen:,} of the {tested:,} "
        "tested slides. No classifier saw a label of the slides it is judged on."
    )


def _made(found: Found, folder: Path, values: Values) -> str:
    """What was trained on what, in a sentence."""
    kind, target, head = kind_of(values), values.get("target"), values.get("head")
    what = {
        "classes": "classes", "regression": "a number", "survival": "a time to an event",
    }[kind]  # fmt: skip
    label = f" (column {values['label']!r})" if isinstance(values.get("label"), str) else ""
    text = f"Predicts {what}{label}"
    if target == "ordinal":
        text += " with an order"
    if isinstance(head, str):
        text += f" by the head {head}"
    try:
        inputs = read_object(folder / "provenance.json", found.root).get("inputs")
    except Unreadable:
        inputs = None  # the run's own check says so
    named = [
        f"{role} {inputs[role]}"
        for role in ("encoder", "protocol", "splits")
        if isinstance(inputs, Mapping) and isinstance(inputs.get(role), str)
    ]
    patients = [note for note in sentences(values.get("notes")) if _PATIENTS.match(note)]
    return "; ".join([text, *([", ".join(named)] if named else []), *patients]) + "."


def _metrics(section: Section, values: Values) -> None:
    pooled = values["pooled"] if isinstance(values.get("pooled"), Mapping) else values
    kind = kind_of(pooled)
    intervals = pooled.get("intervals") or pooled.get("interval")
    intervals = intervals if isinstance(intervals, Mapping) else {}
    undefined = pooled.get("undefined") if isinstance(pooled.get("undefined"), Mapping) else {}
    _headline(section, pooled, intervals)
    trivial, trivial_title = TRIVIAL[kind]
    baseline = inside(pooled, "baselines", trivial)
    body = []
    for name in (name for name in NAMES[kind] if name in pooled):
        value = with_interval(pooled[name], intervals.get(name))
        why = str(undefined.get(name, "")) if undefined and pooled[name] is None else ""
        body.append(
            [title(kind, name), f"{value} {why}".strip(), number(as_float(inside(baseline, name)))]
        )
    section.add(
        Table(
            _caption(kind, values, baseline), ["metric", "value", trivial_title], body,
            numeric=frozenset({1, 2}),
        )
    )  # fmt: skip
    for note in sentences(values.get("notes")):
        if not note.startswith(_OF_ENCODER) and not _PATIENTS.match(note):
            section.add(Note(note))


def _headline(section: Section, pooled: Values, intervals: Values) -> None:
    kind = kind_of(pooled)
    names = [name for name in SHOWN[kind] if as_float(pooled.get(name)) is not None]
    what = "a slide classifier" if kind == "classes" else f"a {kind} of slides"
    first = next((n for n in ("balanced_accuracy", "auc", *names) if n in names), None)
    if first:
        section.facts.append(f"{what} ({NAMES[kind][first]} {pooled[first]:.3f})")
    counts = [
        (number(pooled[name]), name)
        for name in ("patients", "repeats", "events")
        if isinstance(pooled.get(name), int) and (name != "repeats" or pooled[name] > 1)
    ]
    slides = [(number(pooled["n"]), "slides")] if isinstance(pooled.get("n"), int) else []
    section.add(Stats([*slides, *counts, *(
        (number(as_float(pooled[name])), NAMES[kind][name] + _between(intervals.get(name)))
        for name in names
    )]))  # fmt: skip


def _between(interval: Any) -> str:
    limits = interval_of(interval)
    return f", {limits[0]:.2f} to {limits[1]:.2f}" if limits else ""


def _caption(kind: str, values: Values, baseline: Any) -> str:
    repeats_ = values.get("repeats")
    many = isinstance(repeats_, int) and repeats_ > 1
    each = "Each slide once a repeat" if many else "Each slide once"
    # Of a single file of predictions nobody knows what its classifier was trained on.
    ours = bool(values.get("folds")) or isinstance(values.get("head"), str)
    by = ", predicted by the fold that had not seen its patient" if ours else ""
    text = f"{each}{by}; in brackets the 95 % interval over patients. "
    if many:
        text += f"Values are means over {repeats_} repeats of the whole cross-validation. "
    said = inside(baseline, "predicts")
    predicts = f" ({number(said) if isinstance(said, float) else said})" if said is not None else ""
    return (
        text
        + {
            "classes": f"On the right, what always naming the largest class{predicts} would reach.",
            "regression": f"On the right, what always naming the mean{predicts} would reach.",
            "survival": "On the right, what equal risks for all would reach.",
        }[kind]
    )


def _parts(section: Section, values: Values) -> None:
    """What the metrics are made of, and how they differ between sites, folds and repeats."""
    pooled = values["pooled"] if isinstance(values.get("pooled"), Mapping) else values
    answers(section, pooled)
    sites(section, pooled)
    trials(section, values)


def _settings(section: Section, folder: Path) -> None:
    """The run's config, folded away."""
    try:
        text = (folder / "config.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return  # a run without one is older, or its own commands say that it is damaged
    section.add(Details("Settings", [Code("config.yaml", text.strip())]))
