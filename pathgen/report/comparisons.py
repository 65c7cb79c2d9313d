"""Results side by side: a run and its baselines, and two runs on the same slides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathgen.report import figures, milfigures
from pathgen.report.blocks import Details, Figure, Heading, Note, Section, Stats, Table, Text
from pathgen.report.collect import Found, Unreadable, read_object
from pathgen.report.metricnames import LOWER, NAMES, kind_of, main_metric, title
from pathgen.report.text import (
    as_float,
    count,
    inside,
    limits_of,
    mappings,
    number,
    sentences,
    signed,
    with_interval,
)

Values = Mapping[str, Any]
#: The metric beside the main one.
SECOND = {"classes": "accuracy", "regression": "mae", "survival": ""}
#: Of another scale than the others, or without a better side.
_NOT_DRAWN = frozenset({"log_loss", "mae", "rmse", "bias"})


def baselines(section: Section, found: Found, folder: Path, values: Values) -> None:
    """What cheap knowledge reaches on the same splits, beside the run."""
    path = folder / "baselines" / "baselines.json"
    if not path.is_file():
        return
    section.add(Heading("Baselines on the same splits"))
    try:
        made = read_object(path, found.root)
    except Unreadable as problem:
        section.add(Note(str(problem)))
        return
    rows = [row for row in mappings(made.get("baselines")) if isinstance(row.get("name"), str)]
    main = main_metric(values)
    if rows and main is not None:
        _side_by_side(section, values, rows, main)
    for skipped in mappings(made.get("skipped")):
        section.add(Text(f"Not made: {skipped.get('name')} ({skipped.get('why')})."))


def _side_by_side(section: Section, values: Values, rows: list[Values], main: str) -> None:
    kind = kind_of(values)
    drawn = [("this run", *_span(values, main))]
    drawn += [(str(row["name"]), *_span(_metrics_of(row, main), main)) for row in rows]
    known = [(name, v, low, high) for name, v, low, high in drawn if v is not None]
    section.add(
        Text(_verdict(rows, kind, main)),
        Figure(
            figures.bars(
                known,
                NAMES[kind][main],
                limits=_limits(known),
                colors=[figures.BLUE, *[figures.GRAY] * (len(known) - 1)],
            ),
            f"{NAMES[kind][main]} of the run and of its baselines",
            "What is reached without reading tissue: by naming the largest class, by the size of "
            "the slide, by its mean color, or by the same heads trained on shuffled labels. A run "
            "that is not above these has not shown that it reads anything else.",
        ),
    )
    shown = [name for name in (main, SECOND[kind]) if name]
    head = ["baseline", "what it is"]
    for name in shown:
        head += [title(kind, name), "run - baseline"]
    body = []
    for row in rows:
        cells = [str(row["name"]), str(row.get("title", ""))]
        for name in shown:
            own = _metrics_of(row, name)
            change = inside(row, "comparison", "metrics", name)
            cells += [
                with_interval(own.get(name), inside(own, "intervals", name)),
                signed(inside(change, "difference"), inside(change, "interval")),
            ]
        body.append(cells)
    section.add(
        Table(
            "Fit on the training slides of each split, judged on its test slides. Differences are "
            "paired: of the same slides, with 95 % intervals over patients.",
            head, body, numeric=frozenset(range(2, len(head))),
        )
    )  # fmt: skip
    for row in rows:
        section.add(*(Note(f"{row['name']}: {note}") for note in sentences(row.get("notes"))))


def _metrics_of(row: Values, name: str) -> Values:
    """The baseline's metrics, with the value of its comparison where they lack one."""
    own = row.get("metrics")
    own = own if isinstance(own, Mapping) else {}
    if as_float(own.get(name)) is not None:
        return own
    return {**own, name: inside(row, "comparison", "metrics", name, "second")}


def _span(values: Values, name: str) -> tuple[float | None, float | None, float | None]:
    return as_float(values.get(name)), *limits_of(inside(values, "intervals", name))


def _limits(rows: list[tuple[str, float, float | None, float | None]]) -> tuple[float, float]:
    """From 0 to 1, or to what there is beyond."""
    ends = [v for _, *span in rows for v in span if v is not None]
    return min(0.0, *ends) * 1.05, max(1.0, *ends)


def _verdict(rows: list[Values], kind: str, main: str) -> str:
    """``In quadratic kappa the run is above majority and size-only. Not shown: stain-only.``"""
    better: dict[str, list[str]] = {"first": [], "second": [], "": []}
    for row in rows:
        verdict = inside(row, "comparison", "metrics", main, "better")
        better[verdict if verdict in better else ""].append(str(row["name"]))
    name = NAMES[kind][main]
    parts = []
    if better["first"]:
        parts.append(f"In {name} the run is better than {_and(better['first'])}.")
    if better["second"]:
        parts.append(f"In {name} {_and(better['second'])} reached more than the run.")
    if better[""]:
        parts.append(
            f"No difference in {name} is shown to {_and(better[''])}: the interval holds 0."
        )
    return " ".join(parts)


def _and(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def comparison_section(found: Found, path: Path, values: Values, number_: int) -> Section:
    """Two results on the same slides."""
    first, second = str(values.get("first", "first")), str(values.get("second", "second"))
    section = Section(f"comparison-{number_}", f"Comparison · {first} and {second}")
    kind = kind_of(values)
    metrics = values.get("metrics")
    rows = [
        (name, metrics[name])
        for name in NAMES[kind]
        if isinstance(metrics, Mapping) and isinstance(metrics.get(name), Mapping)
    ]
    counts = [(n, name) for name in ("n", "patients") if isinstance(n := values.get(name), int)]
    section.add(Stats([(number(n), {"n": "slides of both"}.get(name, name)) for n, name in counts]))
    if not rows:
        section.add(Note(f"{found.name(path)} holds no metrics."))
        return section
    section.facts.append(f"a comparison of {first} and {second}")
    section.add(Text(_who_is_better(kind, rows, first, second)))
    _differences(section, kind, rows, first, second)
    section.add(
        Table(
            "Differences are paired: both were judged on the same slides, and patients are redrawn "
            "for both alike; in brackets the 95 % interval. Better: the one that the interval "
            "leaves no doubt about.",
            ["metric", first, second, f"{first} - {second}", "better"],
            [
                [
                    title(kind, name), number(as_float(row.get("first"))),
                    number(as_float(row.get("second"))),
                    signed(row.get("difference"), row.get("interval")),
                    {"first": first, "second": second}.get(str(row.get("better")), ""),
                ]
                for name, row in rows
            ],
            numeric=frozenset({1, 2, 3}),
        )
    )  # fmt: skip
    _further(section, values, first, second)
    return section


def _differences(
    section: Section, kind: str, rows: list[tuple[str, Values]], first: str, second: str
) -> None:
    drawn = []
    for name, row in rows:
        value, interval = as_float(row.get("difference")), limits_of(row.get("interval"))
        if value is None or name in _NOT_DRAWN:
            continue
        if name in LOWER:  # turned round, so that one side is better throughout
            low, high = interval
            value, interval = -value, (_negative(high), _negative(low))
        drawn.append((NAMES[kind][name], value, *interval))
    if not drawn:
        return
    section.add(
        Figure(
            milfigures.differences(drawn, f"by how much {first} is better than {second}"),
            f"Differences between {first} and {second}",
            f"Right of zero {first} is better, left of it {second}; where lower is better the sign "
            "is turned. Blue where the 95 % interval leaves zero out, gray where it holds it.",
        )
    )


def _negative(value: float | None) -> float | None:
    return None if value is None else -value


def _who_is_better(kind: str, rows: list[tuple[str, Values]], first: str, second: str) -> str:
    """``mil-mean is better in AUC and quadratic kappa. No difference is shown in accuracy.``"""
    sides: dict[str, list[str]] = {"first": [], "second": [], "": []}
    for name, row in rows:
        better = row.get("better")
        sides[better if better in sides else ""].append(NAMES[kind][name])
    parts = [
        f"{who} is better in {_and(sides[side])}."
        for side, who in (("first", first), ("second", second))
        if sides[side]
    ]
    if sides[""]:
        parts.append(f"No difference is shown in {_and(sides[''])}: the intervals hold 0.")
    return " ".join(parts)


def _further(section: Section, values: Values, first: str, second: str) -> None:
    test = values.get("test")
    p = as_float(inside(test, "p"))
    if p is not None:
        section.add(Text(f"{_sentence(inside(test, 'name'))}: p = {p:.4f}."))
    for name, other in (("only_first", first), ("only_second", second)):
        slides = values.get(name)
        if isinstance(slides, list) and slides:
            section.add(
                Details(
                    f"{count(len(slides), 'slide')} of {other} alone, not compared",
                    [Text(", ".join(map(str, slides)))],
                )
            )
    section.add(*(Note(note) for note in sentences(values.get("notes"))))


def _sentence(text: Any) -> str:
    return str(text)[:1].upper() + str(text)[1:]
