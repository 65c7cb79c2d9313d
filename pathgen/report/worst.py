"""The slides a result is most wrong about: the first to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pathgen.evaluate.predictionfile import bare
from pathgen.report import figures
from pathgen.report.blocks import Card, Gallery, Heading, Image, Note, Section, Table, Text
from pathgen.report.collect import Found, Unreadable, read_rows
from pathgen.report.metricnames import kind_of
from pathgen.report.text import as_float, count, number
from pathgen.report.thumbnails import Thumbnails

Values = Mapping[str, Any]
Row = Mapping[str, str]
SHOWN = 12
COLUMNS = {
    "classes": {"slide", "label", "predicted"},
    "regression": {"slide", "target", "predicted"},
    "survival": {"slide", "time", "event", "risk"},
}


class Wrong(NamedTuple):
    """A slide, what a card says of it, and its cells in a table."""

    slide: str
    text: str
    cells: Sequence[str]


def worst(section: Section, found: Found, path: Path, values: Values) -> None:
    """The worst errors as a table and, where tiles are known, as thumbnails."""
    kind = kind_of(values)
    try:
        rows = [
            {name: bare(cell) for name, cell in row.items()} for row in read_rows(path, found.root)
        ]
    except Unreadable as problem:
        section.add(Note(str(problem)))
        return
    lacking = sorted(COLUMNS[kind] - rows[0].keys()) if rows else sorted(COLUMNS[kind])
    if lacking:
        wanted = {"classes": "slide, label and predicted"}.get(
            kind, ", ".join(sorted(COLUMNS[kind]))
        )
        section.add(Note(f"{found.name(path)} lacks the columns {wanted}."))
        return
    {"classes": _classes, "regression": _regression, "survival": _survival}[kind](
        section, found, rows, values
    )


def _classes(section: Section, found: Found, rows: Sequence[Row], values: Values) -> None:
    section.add(Heading("Surest errors"))
    slides: dict[str, list[Row]] = {}
    for row in rows:
        slides.setdefault(row["slide"], []).append(row)
    wrong = {
        slide: own
        for slide, answers in slides.items()
        if (own := [row for row in answers if row["label"] != row["predicted"]])
    }
    if not wrong:
        section.add(Text(f"None of {count(len(slides), 'slide')} is wrong."))
        return
    order = _order(values)
    ranked = sorted(wrong.items(), key=lambda one: _badness(one[1], order), reverse=True)
    repeats = max(map(len, slides.values()))
    found_wrong = [_class_error(slide, own, repeats) for slide, own in ranked[:SHOWN]]
    far = "farthest off and, of those, " if order else ""
    once = f" in at least one of {repeats} repeats" if repeats > 1 else ""
    head = ["slide", "truth", "predicted", "p of the predicted", "p of the truth"]
    _show(
        section, found, found_wrong, [*head, "wrong in"] if repeats > 1 else head,
        f"{len(wrong)} of {count(len(slides), 'slide')} are wrong{once}; the ones the classifier "
        f"was {far}surest about stand first, and are the first to look at.",
        frozenset({3, 4}),
    )  # fmt: skip


def _order(values: Values) -> Mapping[str, int]:
    """Place of each class where classes have an order; empty where they have none."""
    classes = values.get("classes")
    if as_float(values.get("qwk")) is None or not isinstance(classes, list) or len(classes) < 3:
        return {}
    return {str(name): place for place, name in enumerate(classes)}


def _badness(rows: Sequence[Row], order: Mapping[str, int]) -> tuple[float, float]:
    far = [abs(order.get(r["label"], 0) - order.get(r["predicted"], 0)) for r in rows]
    sure = [_probability(row, row["predicted"]) for row in rows]
    return sum(far) / len(far), sum(sure) / len(sure)


def _class_error(slide: str, rows: Sequence[Row], repeats: int) -> Wrong:
    said = Counter(row["predicted"] for row in rows).most_common(1)[0][0]
    truth = rows[0]["label"]
    own, right = (_mean([_probability(row, name) for row in rows]) for name in (said, truth))
    text = f"truth {truth}, predicted {said} (p {number(own, 2)})"
    text += f"; {rows[0]['site']}" if rows[0].get("site") else ""
    cells = [slide, truth, said, number(own), number(right)]
    if repeats > 1:
        cells.append(f"{len(rows)} of {repeats} repeats")
        text += f"; in {len(rows)} of {repeats} repeats"
    return Wrong(slide, text, cells)


def _mean(values: Sequence[float]) -> float:
    return max(sum(values) / len(values), 0.0)


def _probability(row: Row, name: str) -> float:
    try:
        return float(row[f"p_{name}"])
    except (KeyError, ValueError):
        return -1.0


def _regression(section: Section, found: Found, rows: Sequence[Row], values: Values) -> None:
    section.add(Heading("Largest errors"))
    by: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        truth, said = _float(row["target"]), _float(row["predicted"])
        if truth is not None and said is not None:
            by.setdefault(row["slide"], []).append((truth, said))
    means = {
        slide: (pairs[0][0], sum(p for _, p in pairs) / len(pairs)) for slide, pairs in by.items()
    }
    ranked = sorted(means.items(), key=lambda one: -abs(one[1][1] - one[1][0]))[:SHOWN]
    errors = [
        Wrong(
            slide, f"truth {truth:.4g}, predicted {said:.4g}",
            [slide, f"{truth:.4g}", f"{said:.4g}", f"{said - truth:+.4g}"],
        )
        for slide, (truth, said) in ranked
    ]  # fmt: skip
    _show(
        section, found, errors, ["slide", "truth", "predicted", "error"],
        f"The {len(errors)} of {count(len(means), 'slide')} that are farthest off.",
        frozenset({1, 2, 3}),
    )  # fmt: skip


def _survival(section: Section, found: Found, rows: Sequence[Row], values: Values) -> None:
    section.add(Heading("Early events at a low predicted risk"))
    known = [
        (row["slide"], time, risk, row["event"] in ("1", "1.0", "True", "true"))
        for row in rows
        if (time := _float(row["time"])) is not None and (risk := _float(row["risk"])) is not None
    ]
    times, risks = sorted(one[1] for one in known), sorted(one[2] for one in known)
    events = [one for one in known if one[3]]
    ranked = sorted(events, key=lambda one: times.index(one[1]) + risks.index(one[2]))
    shown = list({one[0]: one for one in reversed(ranked)}.values())[::-1][:SHOWN]
    errors = [
        Wrong(
            slide, f"event at {time:.4g}; {_below(risks, risk)} of the slides have a lower risk",
            [slide, f"{time:.4g}", f"{risk:.3f}", _below(risks, risk)],
        )
        for slide, time, risk, _ in shown
    ]  # fmt: skip
    _show(
        section, found, errors, ["slide", "time of the event", "risk", "slides of lower risk"],
        "Events, by how early they came and how low their risk was held to be.",
        frozenset({1, 2, 3}),
    )  # fmt: skip


def _below(risks: Sequence[float], risk: float) -> str:
    return f"{100 * risks.index(risk) / len(risks):.0f} %"


def _float(text: str) -> float | None:
    try:
        return as_float(float(text))
    except ValueError:
        return None


def _show(
    section: Section,
    found: Found,
    errors: Sequence[Wrong],
    head: Sequence[str],
    caption: str,
    numeric: frozenset[int],
) -> None:
    section.add(Table(caption, head, [error.cells for error in errors], numeric=numeric))
    thumbnails = Thumbnails(found)
    images = {error.slide: _image(section, thumbnails.of(error.slide)) for error in errors}
    if not any(images.values()):
        if not thumbnails:
            section.add(
                Text("Their thumbnails stand here when the folder of `tile` is given: --tiles.")
            )
        return
    section.add(
        Gallery(
            "The same slides, as they were tiled.",
            [Card(e.slide, e.text, "", images[e.slide]) for e in errors],
        )
    )


def _image(section: Section, path: Path | None) -> Image | None:
    if path is None:
        return None
    try:
        return figures.thumbnail(path)
    except figures.BadImage as problem:
        section.add(Note(f"{path.name} {problem}."))
        return None
