"""Sections of evaluations: k-nearest neighbors, slide classifiers, and features themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pathgen.errors import NoInputError, StoreError
from pathgen.report import figures
from pathgen.report.blocks import Details, Figure, Heading, Note, Section, Stats, Table, Text
from pathgen.report.collect import Found, Unreadable, read_log, read_object, read_rows
from pathgen.report.text import DASH, as_float, count, interval_of, number, with_interval

Values = Mapping[str, Any]

METRICS = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1",
    "weighted_f1": "weighted F1", "auc": "AUC", "qwk": "quadratic kappa",
}  # fmt: skip
ERRORS_SHOWN = 12
TRANSDUCTIVE = (
    "If the encoder was pretrained on these slides, this cross-validation is transductive: no "
    "classifier saw a label of the slides it is judged on, but the encoder saw their images."
)


# --- k-NN ------------------------------------------------------------------------------------


def knn_section(found: Found) -> Section:
    """All k-NN results side by side, from the lowest accuracy to the highest."""
    section = Section("knn", "Features judged by their neighbors (k-NN)")
    rows = [values for path, values in found.knn if _has_accuracy(section, found, path, values)]
    rows.sort(key=lambda values: float(values["accuracy"]))
    if not rows:
        return section
    best = rows[-1]
    section.facts.append(f"{count(len(rows), 'k-NN result')} (best {best['accuracy']:.3f})")
    tests = {(values.get("n_test"), values.get("chance")) for values in rows}
    if len(tests) > 1:
        section.add(Note("Rows were judged on different patches; compare them with care."))
    section.add(
        Figure(
            figures.bars(
                [(_title(v), v["accuracy"], *_limits(v.get("interval"))) for v in rows],
                "k-NN accuracy", _chance(rows),
            ),
            "k-NN accuracy of each encoder",
            "Share of patches whose class is found by the most similar patches of other slides. "
            "Chance is the share of the largest class: what always naming it would reach. An "
            "encoder that learned something is above its untrained self.",
        ),
        Table(
            "The same in numbers.",
            ["encoder", "accuracy", "balanced accuracy", "macro F1", "chance", "k",
             "to learn from", "judged"],
            [
                [
                    _title(values), with_interval(values["accuracy"], values.get("interval")),
                    *(number(as_float(values.get(n)))
                      for n in ("balanced_accuracy", "macro_f1", "chance")),
                    *(number(values.get(n)) for n in ("k", "n_train", "n_test")),
                ]
                for values in rows
            ],
            numeric=frozenset(range(1, 8)),
        ),
    )  # fmt: skip
    _by_class(section, rows)
    return section


def _has_accuracy(section: Section, found: Found, path: Path, values: Values) -> bool:
    if as_float(values.get("accuracy")) is not None:
        return True
    section.add(Note(f"{found.name(path)} holds no accuracy."))
    return False


def _by_class(section: Section, rows: Sequence[Values]) -> None:
    """F1 of each class under each encoder."""
    tables = [(_title(v), v["per_class"]) for v in rows if isinstance(v.get("per_class"), Mapping)]
    classes = list(dict.fromkeys(name for _, table in tables for name in table))
    if not classes:
        return
    body = [
        [str(name), *(number(as_float(_get(table, name, "f1"))) for _, table in tables)]
        for name in classes
    ]
    head = ["class", *(title for title, _ in tables)]
    numeric = frozenset(range(1, len(head)))
    section.add(Details("F1 by class", [Table("F1 of each class.", head, body, numeric=numeric)]))


def _chance(rows: Sequence[Values]) -> tuple[str, float] | None:
    chances = {as_float(values.get("chance")) for values in rows}
    chance = chances.pop() if len(chances) == 1 else None
    return None if chance is None else ("chance", chance)


def _title(values: Values) -> str:
    encoder = values.get("encoder")
    name = encoder.get("name") if isinstance(encoder, Mapping) else encoder
    return str(values.get("title") or name or "encoder")


# --- slide classifiers -----------------------------------------------------------------------


def mil_section(found: Found, folder: Path, number_: int) -> Section:
    """A cross-validated slide classifier."""
    section = Section(f"mil-{number_}", f"Slide classifier (MIL) · {found.name(folder)}")
    try:
        metrics = read_object(folder / "metrics.json", found.root)
    except Unreadable as problem:
        section.add(Note(str(problem)))
    else:
        _metrics(section, metrics)
        section.add(Text(TRANSDUCTIVE))
    _errors(section, found, folder / "predictions.csv")
    _fold_curves(section, found, folder)
    return section


def predictions_section(found: Found, path: Path, values: Values, number_: int) -> Section:
    """Slide-level metrics that are a single file."""
    section = Section(f"slide-level-{number_}", f"Slide-level result · {found.name(path)}")
    _metrics(section, values)
    return section


def _metrics(section: Section, values: Values) -> None:
    pooled = values["pooled"] if isinstance(values.get("pooled"), Mapping) else values
    intervals = pooled.get("intervals") or pooled.get("interval")
    intervals = intervals if isinstance(intervals, Mapping) else {}
    undefined = pooled.get("undefined") if isinstance(pooled.get("undefined"), Mapping) else {}
    slides = pooled.get("n")
    present = {name: title for name, title in METRICS.items() if name in pooled}
    for name in ("balanced_accuracy", "auc", "accuracy"):
        if as_float(pooled.get(name)) is not None:
            section.facts.append(f"a slide classifier ({METRICS[name]} {pooled[name]:.3f})")
            break
    section.add(
        Stats(
            ([(number(slides), "slides")] if isinstance(slides, int) else [])
            + [
                (number(as_float(pooled[n])), METRICS[n])
                for n in ("accuracy", "balanced_accuracy", "auc")
                if as_float(pooled.get(n)) is not None
            ]
        )
    )
    baseline = _get(pooled, "baselines", "majority")
    body = []
    for name, title in present.items():
        value = with_interval(pooled[name], intervals.get(name))
        why = str(undefined.get(name, "")) if undefined and pooled[name] is None else ""
        body.append([title, f"{value} {why}".strip(), number(as_float(_get(baseline, name)))])
    said = _get(baseline, "predicts")
    section.add(
        Table(
            "Each slide once, predicted by the fold that had not seen its patient; in brackets the "
            "95 % interval over patients. On the right, what always naming the largest class "
            f"{'(' + str(said) + ') ' if said is not None else ''}would reach.",
            ["metric", "value", "largest class"], body, numeric=frozenset({1, 2}),
        )
    )  # fmt: skip
    section.add(*(Note(str(note)) for note in values.get("notes") or () if note))
    _confusion(section, pooled)
    _folds(section, values, list(present))


def _confusion(section: Section, pooled: Values) -> None:
    matrix, classes = pooled.get("confusion"), pooled.get("classes")
    section.add(Heading("Confusion matrix"))
    try:
        figure = figures.confusion(matrix or [], [str(name) for name in classes or ()])
    except (ValueError, TypeError):
        section.add(Note("The confusion matrix does not fit its classes, or is missing."))
        return
    section.add(
        Figure(
            figure,
            "Confusion matrix",
            "Rows are the truth, columns the prediction, numbers count slides; right answers lie "
            "on the diagonal.",
        )
    )


def _folds(section: Section, values: Values, names: Sequence[str]) -> None:
    folds = [fold for fold in values.get("folds") or () if isinstance(fold, Mapping)]
    if not folds:
        return
    body = [
        [str(fold.get("fold", place)), number(fold.get("n")),
         *(number(as_float(fold.get(name))) for name in names)]
        for place, fold in enumerate(folds)
    ]  # fmt: skip
    if isinstance(means := values.get("fold_mean"), Mapping):
        body.append(["mean (sd)", "", *(_mean(means.get(name)) for name in names)])
    head = ["fold", "slides", *(METRICS[name] for name in names)]
    section.add(
        Table(
            "Each fold on its own, and their mean, which compares no scores of different folds' "
            f"classifiers. Folds of few slides differ much by chance; {DASH} where a fold lacks a "
            "class.",
            head, body, numeric=frozenset(range(1, len(head))),
        )
    )  # fmt: skip


def _mean(found: Any) -> str:
    """``0.713 (0.050)``: mean and standard deviation over folds."""
    mean, sd = as_float(_get(found, "mean")), as_float(_get(found, "sd"))
    return number(mean) + ("" if mean is None or sd is None else f" ({sd:.3f})")


def _errors(section: Section, found: Found, path: Path) -> None:
    """Wrong slides, those first that the classifier was surest about."""
    try:
        rows = read_rows(path, found.root)
    except Unreadable as problem:
        section.add(Note(str(problem)))
        return
    if not rows or not {"slide", "label", "predicted"} <= rows[0].keys():
        section.add(Note(f"{found.name(path)} lacks the columns slide, label and predicted."))
        return
    wrong = [row for row in rows if row["label"] != row["predicted"]]
    wrong.sort(key=lambda row: -_probability(row, row["predicted"]))
    section.add(Heading("Surest errors"))
    if not wrong:
        section.add(Text(f"None of {count(len(rows), 'slide')} is wrong."))
        return
    body = [
        [row["slide"], row["label"], row["predicted"],
         *(number(max(_probability(row, row[n]), 0.0)) for n in ("predicted", "label"))]
        for row in wrong[:ERRORS_SHOWN]
    ]  # fmt: skip
    section.add(
        Table(
            f"{len(wrong)} of {count(len(rows), 'slide')} are wrong; the ones the classifier was "
            "surest about stand first, and are the first to look at.",
            ["slide", "truth", "predicted", "p of the predicted", "p of the truth"], body,
            numeric=frozenset({3, 4}),
        )
    )  # fmt: skip


def _probability(row: Mapping[str, str], name: str) -> float:
    try:
        return float(row[f"p_{name}"])
    except (KeyError, ValueError):
        return -1.0


def _fold_curves(section: Section, found: Found, folder: Path) -> None:
    """Training and validation loss, a panel a fold."""
    panels: dict[str, dict[str, figures.Curve]] = {}
    notes = []
    folds = sorted(path for path in folder.glob("fold-*") if path.is_dir())
    for place in folds or ([folder] if (folder / "log.jsonl").is_file() else []):
        try:
            log = read_log(place / "log.jsonl", found.root)
        except Unreadable as problem:
            notes.append(Note(str(problem)))
            continue
        curves: dict[str, figures.Curve] = {}
        for key, title in (("loss", "training"), ("valid_loss", "validation")):
            points = [(line["step"], as_float(line.get(key))) for line in log]
            known = [(step, value) for step, value in points if value is not None]
            if known:
                curves[title] = ([step for step, _ in known], [value for _, value in known])
        if curves:
            panels[place.name.replace("-", " ")] = curves
        else:
            notes.append(Note(f"{found.name(place)}/log.jsonl holds no loss."))
    if not panels and not notes:
        return
    section.add(Heading("Training of each fold"), *notes)
    if panels:
        section.add(
            Figure(
                figures.loss_curves(panels, unit="epoch"),
                "Loss curves of the folds",
                "Pale: as logged; dark: its moving mean. A validation loss that turns up while the "
                "training loss falls is overfitting; the head of the lowest one is kept.",
            )
        )


# --- features --------------------------------------------------------------------------------


def features_section(found: Found) -> Section:
    """Which features there are, and of which encoder; the first store of a folder speaks for it."""
    from pathgen.stores import FeatureStore, find_stores

    section = Section("features", "Features")
    body = []
    for folder in found.features:
        try:
            paths = find_stores(folder, kind="features")
            with FeatureStore.open(paths[0]) as store:
                encoder, dim = store.encoder, store.dim
        except (StoreError, NoInputError) as error:
            section.add(Note(f"{found.name(folder)}: {error.what} ({error.code})."))
            continue
        names = [str(encoder.get(key, DASH)) for key in ("name", "id")]
        body.append([found.name(folder), *names, number(dim), number(len(paths))])
    section.facts.append(count(len(body), "set of features", "sets of features"))
    section.add(
        Table(
            "One vector a patch, one store a slide.",
            ["folder", "encoder", "id", "dimensions", "stores"], body, numeric=frozenset({3, 4}),
        )
    )  # fmt: skip
    return section


# --- helpers ---------------------------------------------------------------------------------


def _get(values: Any, *keys: str) -> Any:
    for key in keys:
        if not isinstance(values, Mapping):
            return None
        values = values.get(key)
    return values


def _limits(interval: Any) -> tuple[float | None, float | None]:
    return interval_of(interval) or (None, None)
