"""How a slide-level result differs between sites, repeats and folds, and how folds trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pathgen.report import figures
from pathgen.report.blocks import Block, Details, Figure, Heading, Note, Section, Table
from pathgen.report.collect import Found, Unreadable, read_log
from pathgen.report.metricnames import NAMES, SHORT, brief, kind_of, main_metric
from pathgen.report.text import (
    DASH,
    as_float,
    inside,
    limits_of,
    mappings,
    number,
    with_interval,
)

Values = Mapping[str, Any]
#: So many folds are drawn openly; more are folded away.
OPEN = 10


def sites(section: Section, values: Values) -> None:
    """A row a site; nothing where sites are not known."""
    rows = [row for row in mappings(values.get("sites")) if "site" in row]
    if not rows:
        return
    kind, main = kind_of(values), main_metric(values)
    names = [name for name in SHORT[kind] if any(name in row for row in rows)]
    section.add(Heading("By site"))
    known = [
        (str(row["site"]), value, *limits_of(inside(row, "intervals", main)))
        for row in rows
        if main is not None and (value := as_float(row.get(main))) is not None
    ]
    if len(known) > 1 and main is not None:
        ends = [v for _, *span in known for v in span if v is not None]
        section.add(
            Figure(
                figures.bars(
                    known, NAMES[kind][main], limits=(min(0.0, *ends) * 1.05, max(1.0, *ends))
                ),
                f"{NAMES[kind][main]} of each site",
                "A classifier that is good at one site alone may have learned that site.",
            )
        )
    body = [
        [
            str(row["site"]), number(row.get("n")), number(row.get("patients")),
            *(with_interval(row.get(n), inside(row, "intervals", n)) for n in names),
        ]
        for row in rows
    ]  # fmt: skip
    head = ["site", "slides", "patients", *(brief(kind, name) for name in names)]
    section.add(
        Table(
            "The same predictions, judged site by site; in brackets the 95 % interval over the "
            f"site's patients. {DASH} where a site lacks a class.",
            head, body, numeric=frozenset(range(1, len(head))),
        )
    )  # fmt: skip


def repeats(section: Section, values: Values) -> None:
    """A row a repeat; nothing where there is one."""
    _table(
        section, values, "by_repeat", "repeat", "repeat_mean",
        "Each repeat of the whole cross-validation on its own: how much chance in dividing the "
        "slides and in training moves the result.",
    )  # fmt: skip


def trials(section: Section, values: Values) -> None:
    """Repeats and folds, each on its own."""
    if any(mappings(values.get(key)) for key in ("by_repeat", "folds")):
        section.add(Heading("By repeat and fold" if values.get("by_repeat") else "By fold"))
        repeats(section, values)
        folds(section, values)


def folds(section: Section, values: Values) -> None:
    """A row a fold, and their mean."""
    _table(
        section, values, "folds", "fold", "fold_mean",
        "Each fold on its own, and their mean, which compares no scores of different folds' "
        f"classifiers. Folds of few slides differ much by chance; {DASH} where a fold lacks a "
        "class.",
    )  # fmt: skip


def _table(
    section: Section, values: Values, rows_key: str, key: str, mean_key: str, caption: str
) -> None:
    rows = mappings(values.get(rows_key))
    if not rows:
        return
    kind = kind_of(values)
    pooled = values["pooled"] if isinstance(values.get("pooled"), Mapping) else values
    names = [name for name in SHORT[kind] if name in pooled]
    several = key == "fold" and len({row.get("repeat") for row in rows}) > 1
    body = [
        [
            f"{row.get(key, place)}" + (f" of repeat {row.get('repeat')}" if several else ""),
            number(row.get("n")), *(number(as_float(row.get(name))) for name in names),
        ]
        for place, row in enumerate(rows)
    ]  # fmt: skip
    if isinstance(means := values.get(mean_key), Mapping):
        body.append(["mean (sd)", "", *(_mean(means.get(name)) for name in names)])
    head = [key, "slides", *(brief(kind, name) for name in names)]
    section.add(Table(caption, head, body, numeric=frozenset(range(1, len(head)))))


def _mean(found: Any) -> str:
    """``0.713 (0.050)``: mean and standard deviation."""
    mean, sd = as_float(inside(found, "mean")), as_float(inside(found, "sd"))
    return number(mean) + ("" if mean is None or sd is None else f" ({sd:.3f})")


def fold_curves(section: Section, found: Found, folder: Path) -> None:
    """Training and validation loss, a panel a fold."""
    panels: dict[str, dict[str, figures.Curve]] = {}
    notes = []
    for place in _folds(folder):
        try:
            log = read_log(place / "log.jsonl", found.root)
        except Unreadable as problem:
            notes.append(Note(str(problem)))
            continue
        curves = _curves(log)
        if curves:
            name = "run" if place == folder else place.relative_to(folder).as_posix()
            panels[name.replace("-", " ").replace("/", ", ")] = curves
        else:
            notes.append(Note(f"{found.name(place)}/log.jsonl holds no loss."))
    if not panels and not notes:
        return
    section.add(Heading("Training of each fold"), *notes)
    if not panels:
        return
    figure: Block = Figure(
        figures.loss_curves(panels, unit="epoch"),
        "Loss curves of the folds",
        "Pale: as logged; dark: its moving mean. A validation loss that turns up while the "
        "training loss falls is overfitting; the head of the lowest one is kept.",
    )
    section.add(
        figure if len(panels) <= OPEN else Details(f"Loss curves of {len(panels)} folds", [figure])
    )


def _folds(folder: Path) -> Sequence[Path]:
    """Runs of single folds: of repeats too, or the folder itself."""
    own = [*folder.glob("fold-*"), *folder.glob("repeat-*/fold-*")]
    found = sorted(path for path in own if path.is_dir())
    return found or ([folder] if (folder / "log.jsonl").is_file() else [])


def _curves(log: Sequence[Values]) -> dict[str, figures.Curve]:
    curves: dict[str, figures.Curve] = {}
    for key, title in (("loss", "training"), ("valid_loss", "validation")):
        points = [(line["step"], as_float(line.get(key))) for line in log]
        known = [(step, value) for step, value in points if value is not None]
        if known:
            curves[title] = ([step for step, _ in known], [value for _, value in known])
    return curves
