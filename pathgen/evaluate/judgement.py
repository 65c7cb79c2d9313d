"""What `metrics.json` says of a set of slide-level predictions, and the same in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pathgen.data.labels import count
from pathgen.errors import DataError
from pathgen.evaluate.continuous import judged_numbers
from pathgen.evaluate.metrics import judged_classes
from pathgen.evaluate.resampling import Ints, Judged, intervals, spread
from pathgen.evaluate.survival import JudgedRisks, judged_risks
from pathgen.progress import Progress

FORMAT = "pathgen.mil"
#: Metrics of the line for people, and what they are called there.
HEADLINES = {
    "accuracy": "accuracy", "auc": "AUC", "qwk": "kappa", "mae": "mean absolute error",
    "r2": "R²", "spearman": "Spearman", "c_index": "C-index",
}  # fmt: skip
#: Of which folds are summed up in that line.
FOLDED = ("accuracy", "auc", "mae", "c_index")


@dataclass(frozen=True)
class Slides:
    """Whose answers they are: one entry a row in every field that is given."""

    groups: Sequence[str]
    """the patient: drawn as a whole"""
    names: Sequence[str] | None = None
    """the slide; needed where a slide stands in several repeats"""
    folds: Ints | None = None
    sites: Sequence[str] | None = None
    """such as the provider; empty where unknown"""
    repeats: Ints | None = None
    """which seed said it"""

    @property
    def count(self) -> int:
        """How many different slides there are."""
        return len(self.groups) if self.names is None else len(set(self.names))


def judge(
    judged: Judged, slides: Slides, *, seed: int = 0, progress: Progress | None = None
) -> dict[str, Any]:
    """All that `evaluate_predictions` returns but the notes; the keys are in docs/slide-level.md.

    With several repeats a metric is the mean over repeats of the metric of all slides in that
    repeat, and its interval draws the same patients in each.

    Args:
        judged: what is true and what was said.
        seed: of the bootstrap.
    """
    repeats = (
        slides.repeats if slides.repeats is not None and len(set(slides.repeats)) > 1 else None
    )
    values: dict[str, Any] = {"format": FORMAT, "kind": judged.kind}
    values |= _pooled(judged, repeats)
    values["n"] = slides.count
    values["patients"] = len(set(slides.groups))
    values["repeats"] = 1 if repeats is None else len(np.unique(repeats))
    values["intervals"] = intervals(
        judged, slides.groups, repeats, classes=judged.classes, seed=seed, progress=progress
    )
    values["intervals"]["undefined"] |= values["undefined"]
    if isinstance(judged, JudgedRisks):
        names, seen = slides.names, np.flatnonzero(judged.event).tolist()
        values["events"] = len(seen) if names is None else len({names[i] for i in seen})
        values |= judged.of_patients(slides.groups).details()
    else:
        values |= judged.details()
    values["sites"] = _sites(judged, slides, repeats, seed, progress)
    values["baselines"] = judged.baselines()
    values["folds"] = _folds(judged, slides, repeats)
    metrics = judged.metrics
    values["fold_mean"] = spread(values["folds"], metrics) if values["folds"] else None
    values["by_repeat"] = [
        {"repeat": repeat, **judged.select(rows).point()} for repeat, rows in _parts(repeats)
    ]
    values["repeat_mean"] = spread(values["by_repeat"], metrics) if values["by_repeat"] else None
    return values


def judge_arrays(
    truth: ArrayLike,
    probabilities: NDArray[np.floating] | None = None,
    *,
    predicted: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    kind: str = "classes",
    event: ArrayLike | None = None,
    groups: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    sites: Sequence[str] | None = None,
    folds: Sequence[int] | None = None,
    repeats: Sequence[int] | None = None,
    ordinal: bool | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The metrics of N rows, one a slide (and repeat), as in `metrics.json`.

    Args:
        truth: (N,) index into `classes`; the target value of ``kind="regression"``; the time of
            ``kind="survival"``.
        probabilities: (N, classes), of ``kind="classes"``.
        predicted: (N,) index into `classes` (default: the most probable), value, or risk.
        classes: names; default: "0", "1", ....
        event: (N,) of survival: true where the event was seen, false where the row is censored.
        groups: (N,) patient, drawn as a whole for the intervals; default: the name or the row.
        names: (N,) slide; needed with `repeats`.
        sites: (N,) such as the provider, for a table by site.
        ordinal: whether classes have an order; default: two classes, or numbers.

    Raises:
        DataError: PG-N06, lengths differ, a label is no class, or a value is not finite.
        ValueError: an unknown `kind`, or a needed argument is missing.
    """
    if repeats is not None and names is None:
        raise ValueError("repeats need names: which rows are of one slide")
    judged: Judged
    if kind == "classes":
        width = _width(truth, probabilities, predicted)
        judged = judged_classes(
            np.asarray(truth, np.int64), probabilities, classes or [str(i) for i in range(width)],
            predicted=None if predicted is None else np.asarray(predicted, np.int64),
            ordinal=ordinal,
        )  # fmt: skip
    elif predicted is None:
        raise ValueError(f"{kind} needs predicted")
    elif kind == "regression":
        judged = judged_numbers(truth, predicted)
    elif kind == "survival" and event is not None:
        judged = judged_risks(truth, event, predicted)
    else:
        raise ValueError(f"kind is classes, regression or survival (with event), not {kind!r}")
    owners = groups if groups is not None else names or [str(i) for i in range(len(judged))]
    for found in (owners, names, sites, folds, repeats):
        if found is not None and len(found) != len(judged):
            raise DataError(
                "rows do not fit", code="PG-N06", why=f"{len(found)} for {len(judged)} rows"
            )
    slides = Slides(owners, names, _integers(folds), sites, _integers(repeats))
    return judge(judged, slides, seed=seed)


def summary(values: dict[str, Any]) -> str:
    """One line for people: ``accuracy 0.83 [0.70, 0.93], ... on 12 slides.``"""
    parts = []
    for name, title in HEADLINES.items():
        if name not in values:
            continue
        if values[name] is None:
            parts.append(f"{title} undefined ({values['undefined'][name]})")
            continue
        parts.append(f"{title} {with_interval(values[name], values['intervals'][name])}")
    if "challenge" in values:
        parts.append(_challenge(values["challenge"]))
    repeats = f" in {values['repeats']} repeats" if values.get("repeats", 1) > 1 else ""
    return (
        f"{', '.join(parts)} on {count(values['n'], 'slide')} of "
        f"{count(values['patients'], 'patient')}{repeats}{_fold_mean(values)}{_baseline(values)}."
    )


def with_interval(value: float, interval: Sequence[float] | None) -> str:
    """``0.83 [0.70, 0.93]``, without brackets where there is no interval."""
    return f"{value:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


# --- parts of it ---------------------------------------------------------------------------


def _pooled(judged: Judged, repeats: Ints | None) -> dict[str, Any]:
    """`Judged.point` of all rows, its metrics the mean over repeats."""
    values = judged.point()
    parts = [judged.select(rows).point() for _, rows in _parts(repeats)]
    if not parts:
        return values
    values["undefined"] = {}
    for name in judged.metrics:
        values[name] = _mean([part[name] for part in parts])
        reasons = [part["undefined"][name] for part in parts if name in part["undefined"]]
        if reasons:
            values["undefined"][name] = reasons[0]
    for i, row in enumerate(values.get("per_class", ())):
        for name in row.keys() - {"class", "support", "predicted"}:
            row[name] = _mean([part["per_class"][i][name] for part in parts])
    return values


def _sites(
    judged: Judged,
    slides: Slides,
    repeats: Ints | None,
    seed: int,
    progress: Progress | None,
) -> list[dict[str, Any]]:
    """The metrics of each site, with intervals; empty where no site is known."""
    if slides.sites is None or not any(slides.sites):
        return []
    sites, table = np.asarray(slides.sites, dtype=str), []
    for site in np.unique(sites):
        rows = np.flatnonzero(sites == site)
        part = judged.select(rows)
        groups = [slides.groups[i] for i in rows.tolist()]
        here = None if repeats is None else repeats[rows]
        names = None if slides.names is None else [slides.names[i] for i in rows.tolist()]
        found = _pooled(part, here)
        table.append(
            {
                "site": str(site) or "unknown",
                "n": Slides(groups, names).count,
                "patients": len(set(groups)),
                **{name: found[name] for name in judged.metrics},
                "undefined": found["undefined"],
                "intervals": intervals(
                    part,
                    groups,
                    here,
                    seed=seed,
                    progress=progress,
                    title=f"bootstrap, {site or 'unknown site'}",
                ),
            }
        )
    return table


def _folds(judged: Judged, slides: Slides, repeats: Ints | None) -> list[dict[str, Any]]:
    if slides.folds is None:
        return []
    table = []
    for repeat, within in _parts(repeats) or [(0, np.arange(len(judged)))]:
        for fold in np.unique(slides.folds[within]):
            rows = within[slides.folds[within] == fold]
            table.append({"fold": int(fold), "repeat": repeat, **judged.select(rows).point()})
    return table


def _parts(repeats: Ints | None) -> list[tuple[int, Ints]]:
    if repeats is None:
        return []
    return [(int(r), np.flatnonzero(repeats == r)) for r in np.unique(repeats)]


def _mean(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return float(np.mean(found)) if len(found) == len(values) else None


def _width(truth: Any, probabilities: Any, predicted: Any) -> int:
    """How many classes there are, where nobody named them."""
    if probabilities is not None:
        return int(np.shape(probabilities)[-1])
    given = [np.asarray(v, np.int64) for v in (truth, predicted) if v is not None and np.size(v)]
    return max((int(v.max()) + 1 for v in given), default=0)


def _integers(values: Sequence[int] | None) -> Ints | None:
    return None if values is None else np.asarray(values, np.int64)


def _baseline(values: dict[str, Any]) -> str:
    """``; always 0: accuracy 0.300``: what needs no look at a slide."""
    baselines = values["baselines"]
    if "majority" in baselines:
        found = baselines["majority"]
        return f"; always {found['predicts']}: accuracy {found['accuracy']:.3f}"
    if "mean" in baselines:
        return f"; always the mean: mean absolute error {baselines['mean']['mae']:.3f}"
    return "; chance: C-index 0.500"


def _challenge(found: dict[str, Any]) -> str:
    """``official BRIGHT task 1: average F1 0.59 [0.49, 0.69], ...``"""
    parts = [
        f"{title} {with_interval(found[name], found['intervals'][name])}"
        for name, title in (("average_f1", "average F1"), ("brier_skill_score", "Brier skill"))
        if found[name] is not None
    ]
    return f"official {found['title']}: {', '.join(parts)}"


def _fold_mean(values: dict[str, Any]) -> str:
    """``; mean of 5 folds: accuracy 0.81 (sd 0.05)``: scores of several heads were pooled."""
    means = values.get("fold_mean") or {}
    parts = [
        f"{HEADLINES[name]} {found['mean']:.3f}"
        + (f" (sd {found['sd']:.3f})" if found["sd"] else "")
        for name in FOLDED
        if (found := means.get(name)) and len(values["folds"]) > 1
    ]
    return f"; mean of {len(values['folds'])} folds: {', '.join(parts)}" if parts else ""
