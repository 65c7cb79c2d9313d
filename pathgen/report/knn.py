"""Sections of features: which there are, and how well they are judged by their neighbors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pathgen.errors import NoInputError, StoreError
from pathgen.report import figures
from pathgen.report.blocks import Details, Figure, Note, Section, Table
from pathgen.report.collect import Found
from pathgen.report.text import DASH, as_float, count, inside, limits_of, number, with_interval

Values = Mapping[str, Any]


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
                [(_title(v), v["accuracy"], *limits_of(v.get("interval"))) for v in rows],
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
        [str(name), *(number(as_float(inside(table, name, "f1"))) for _, table in tables)]
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
