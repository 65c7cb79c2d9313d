"""Two runs on the same slides: which is better, and could it be chance?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pathgen.data.labels import count, shown
from pathgen.errors import ConfigError
from pathgen.evaluate.continuous import JudgedNumbers
from pathgen.evaluate.metrics import JudgedClasses
from pathgen.evaluate.paired import mcnemar, sign_flips
from pathgen.evaluate.pairing import Side, paired_sides
from pathgen.evaluate.predictions import Answered, Kind, answered, predictions_file
from pathgen.evaluate.resampling import (
    LEVEL,
    RESAMPLES,
    Floats,
    Ints,
    draws,
    number,
    quantiles,
)
from pathgen.progress import Progress, Silent

FORMAT = "pathgen.comparison"
#: Metrics that are better when they are lower.
LOWER = frozenset({"brier", "log_loss", "ece", "mce", "mae", "rmse"})
#: A difference of these says nothing about which run is better.
UNRANKED = frozenset({"bias"})


def compare(
    first: Path | str,
    second: Path | str,
    *,
    metrics: Sequence[str] | None = None,
    targets: Path | str | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    kind: Kind | None = None,
    ordinal: bool | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Difference of every metric between two runs on the slides that both predicted.

    A draw of the bootstrap takes the same patients for both runs (Efron & Tibshirani 1993, chapter
    8), so what makes a slide hard for both cancels. With several repeats the metric of a run is
    the mean over its repeats. The verdict follows from the interval of each metric by itself.

    Args:
        first, second: a predictions.csv each, or the folder with it.
        metrics: some of the metrics; default: all.
        targets: CSV with the truth; default: the files' own, which must agree.
        label_column, patient_column: names of columns of `targets`.
        kind, ordinal: as in `evaluate_predictions`.
        seed: of the bootstrap.

    Returns:
        JSON-ready; the keys are in docs/slide-level.md. ``difference`` is first - second.

    Raises:
        ConfigError: PG-C01, no such metric.
        DataError: PG-N06, a file cannot be used, the two have no slide in common, or they
            disagree on the truth of one, or predict different classes.
    """
    sides = [
        answered(
            path, targets=targets, label_column=label_column, patient_column=patient_column,
            kind=kind, ordinal=ordinal,
        )
        for path in (first, second)
    ]  # fmt: skip
    names = _titles(first, second)
    return compare_answered(
        sides[0], sides[1], names=names, metrics=metrics, seed=seed, progress=progress
    )


def compare_answered(
    first: Answered,
    second: Answered,
    *,
    names: Sequence[str] = ("first", "second"),
    metrics: Sequence[str] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """`compare` of what was read already; `names` are what the two are called."""
    a, b, keys = paired_sides(first, second, names)
    common, groups = keys.common, keys.groups
    wanted = _metrics(a.judged.metrics, metrics)
    found, undefined = _differences(a, b, wanted, groups, seed, resamples, progress or Silent())
    values: dict[str, Any] = {
        "format": FORMAT,
        "kind": a.judged.kind,
        "first": names[0],
        "second": names[1],
        "n": len(common),
        "patients": len(set(groups)),
        "only_first": keys.only_first,
        "only_second": keys.only_second,
        "repeats": [len(_distinct(side.repeats)) for side in (a, b)],
        "metrics": found,
        "undefined": undefined,
        "test": _test(a, b, groups, seed),
        "resamples": resamples,
        "level": LEVEL,
        "unit": "patient" if len(set(groups)) < len(common) else "slide",
        "notes": [],
    }
    values["verdict"] = verdict(values)
    if len(found) > 1:
        values["notes"].append(
            f"each of {len(found)} metrics is judged by itself: of 20 intervals about one excludes "
            "0 by chance alone"
        )
    for name, only in zip(names, ("only_first", "only_second"), strict=True):
        if values[only]:
            left = f"{count(len(values[only]), 'slide')} ({shown(values[only])})"
            values["notes"].append(f"{left} only in {name}: not compared")
    return values


def verdict(values: dict[str, Any]) -> str:
    """Which run is better in which metric, in sentences."""
    sentences = []
    for side, other in (("first", "second"), ("second", "first")):
        better = [
            f"{name} ({_signed(row, side)})"
            for name, row in values["metrics"].items()
            if row["better"] == side
        ]
        if better:
            sentences.append(f"{values[side]} is better than {values[other]} in {_listed(better)}.")
    rows = [(name, row) for name, row in values["metrics"].items() if row["better"] is None]
    even = [name for name, row in rows if row["interval"]]
    if even:
        hold = "intervals hold" if len(even) > 1 else "interval holds"
        sentences.append(f"No difference is shown in {_listed(even)}: the {hold} 0.")
    if bare := [name for name, row in rows if not row["interval"]]:
        sentences.append(f"There is no interval for {_listed(bare)}.")
    return " ".join(sentences)


# --- what differs --------------------------------------------------------------------------


def _titles(first: Path | str, second: Path | str) -> tuple[str, str]:
    """The shortest ends of both paths that differ."""
    paths = [predictions_file(path).resolve() for path in (first, second)]
    parts = [
        (path.parent.parts if path.name == "predictions.csv" else path.with_suffix("").parts)
        for path in paths
    ]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if names[0] != names[1]:
            return names[0], names[1]
    return f"{parts[0][-1]} (first)", f"{parts[1][-1]} (second)"


def _metrics(known: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    strange = [name for name in wanted or () if name not in known]
    if strange:
        raise ConfigError(
            "no such metric", where=", ".join(strange), hint=f"use some of {', '.join(known)}"
        )
    return list(wanted or (name for name in known if name not in UNRANKED))


def _differences(
    a: Side,
    b: Side,
    wanted: Sequence[str],
    groups: Sequence[str],
    seed: int,
    resamples: int,
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, str]]:
    once = np.ones((1, len(groups)))
    points = [side.measure(once).values for side in (a, b)]
    drawn: dict[str, list[Floats]] = {name: [] for name in wanted}
    with progress.task("paired bootstrap", resamples) as task:
        for weights in draws(len(groups), groups, resamples, seed):
            both = [side.measure(weights).values for side in (a, b)]
            for name in wanted:
                drawn[name].append(both[0][name] - both[1][name])
            task.advance(len(weights))
    found, undefined = {}, {}
    spreads = _over_repeats(a, b, wanted)
    reasons = [side.judged.point()["undefined"] for side in (a, b)]
    for name in wanted:
        values = [number(point[name][0]) for point in points]
        if values[0] is None or values[1] is None:
            undefined[name] = next((r[name] for r in reasons if name in r), "undefined in a repeat")
            continue
        interval = quantiles(np.concatenate(drawn[name]))
        found[name] = {
            "first": values[0],
            "second": values[1],
            "difference": values[0] - values[1],
            "interval": interval,
            "better": _better(name, interval),
            "higher_is_better": name not in LOWER,
        } | ({"sd_over_repeats": spreads[name]} if spreads else {})
    return found, undefined


def _over_repeats(a: Side, b: Side, wanted: Sequence[str]) -> dict[str, float | None]:
    """Standard deviation of the difference over repeats that both have; empty with one."""
    repeats = _distinct(a.repeats)
    if len(repeats) < 2 or repeats != _distinct(b.repeats):
        return {}
    values: dict[str, list[float]] = {name: [] for name in wanted}
    for repeat in repeats:
        both = []
        for side in (a, b):
            rows = np.flatnonzero(side.repeats == repeat)
            both.append(side.judged.select(rows).measure(np.ones((1, len(rows)))).values)
        for name in wanted:
            values[name].append(float(both[0][name][0] - both[1][name][0]))
    return {name: number(np.std(found, ddof=1)) for name, found in values.items()}


def _better(name: str, interval: Sequence[float] | None) -> str | None:
    if interval is None or name in UNRANKED or interval[0] <= 0 <= interval[1]:
        return None
    return "first" if (interval[0] > 0) != (name in LOWER) else "second"


def _test(a: Side, b: Side, groups: Sequence[str], seed: int) -> dict[str, Any] | None:
    """A test of accuracy, or of the absolute error; None for risks, which are ranked together."""
    if isinstance(a.judged, JudgedClasses) and isinstance(b.judged, JudgedClasses):
        right = [(one.judged.truth == one.judged.chosen) for one in (a, b)]  # type: ignore[attr-defined]
        what = "accuracy"
    elif isinstance(a.judged, JudgedNumbers) and isinstance(b.judged, JudgedNumbers):
        right = [np.abs(one.judged.truth - one.judged.predicted) for one in (a, b)]  # type: ignore[attr-defined]
        what = "the absolute error"
    else:
        return None
    counts = [np.bincount(side.place, minlength=len(groups)) for side in (a, b)]
    means = [
        np.bincount(side.place, np.asarray(values, np.float64), len(groups)) / n
        for side, values, n in zip((a, b), right, counts, strict=True)
    ]
    single = max(int(n.max()) for n in counts) == 1
    if what == "accuracy" and single and len(set(groups)) == len(groups):
        return {"name": "exact McNemar test of accuracy"} | mcnemar(*(m > 0 for m in means))
    found = sign_flips(means[0] - means[1], groups, seed=seed)
    return {"name": f"permutation test of {what}, by patient"} | found


def _distinct(repeats: Ints | None) -> list[int]:
    return [0] if repeats is None else np.unique(repeats).tolist()


def _signed(row: dict[str, Any], side: str) -> str:
    """``+0.031 [0.004, 0.058]`` from where `side` stands."""
    sign = 1 if side == "first" else -1
    low, high = sorted(sign * v for v in row["interval"])
    return f"{sign * row['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"
