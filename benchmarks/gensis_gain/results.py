"""What came out: every number in study.json, the table in table.md, and the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from arms import ARMS, BASELINE, StudyConfig, settings
from figures import draw_figures
from pieces import Piece, Place, bits, seed_of

from pathgen import commit
from pathgen.evaluate.paired import paired_interval

MEASURES = {"knn": "k-NN", "linear": "linear"}


def write_results(study: StudyConfig, place: Place) -> str:
    """study.json, table.md and the figures, from what the pieces left; returns the table."""
    found = {name: set_results(name, study, place) for name in study.sets}
    values = {
        "settings": settings(study),
        "sets": found,
        "generator": {name: generator_results(name, study, place) for name in study.sets},
        "piece_hours": piece_hours(place.out),
    }
    commit.write_json(place.out / "study.json", values)
    text = "\n\n".join([table(name, found[name]) for name in study.sets])
    commit.write_text(place.out / "table.md", text + "\n")
    draw_figures(study, place)
    return text


def set_results(name: str, study: StudyConfig, place: Place) -> dict[str, Any]:
    """arm -> measure -> accuracies by seed, their mean and sd, and the difference to DINO."""
    judged = {
        arm: [
            commit.read_json(Piece(name, seed_of(arm, seed, study), arm).marker(place.out))
            for seed in study.seeds
        ]
        for arm in study.arms
    }
    return {
        arm: {
            measure: summary(runs, judged.get(BASELINE), measure, study.resamples)
            for measure in MEASURES
        }
        for arm, runs in judged.items()
    }


def summary(
    runs: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]] | None,
    measure: str,
    resamples: int,
) -> dict[str, Any]:
    """One cell of the table: runs and the baseline's runs with the same seeds, as `judge` left."""
    accuracies = [run[measure] for run in runs]
    cell: dict[str, Any] = {
        "by_seed": accuracies,
        "mean": float(np.mean(accuracies)),
        "sd": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
    }
    if baseline is not None and baseline is not runs:
        cell["to_dino"] = paired_interval(
            bits([run["right"][measure] for run in runs]),
            bits([run["right"][measure] for run in baseline]),
            groups=runs[0]["slides"], resamples=resamples,
        )  # fmt: skip
    return cell


def generator_results(name: str, study: StudyConfig, place: Place) -> list[dict[str, Any]]:
    """For each seed, what the augment stage measured of its images."""
    found = []
    for seed in study.seeds:
        path = place.base(Piece(name, seed, "")) / "augment" / "metrics.json"
        found.append({"seed": seed, **commit.read_json(path)} if path.exists() else {"seed": seed})
    return found


def piece_hours(out: Path) -> float:
    """Of all pieces together, as the clock ran beside them."""
    path = out / "times.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return float(sum(json.loads(line)["seconds"] for line in lines) / 3600)


def table(name: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row an arm."""
    head = ["arm"]
    for title in MEASURES.values():
        head += [title, f"{title} to DINO (95 %)"]
    lines = [f"**{name}**", "", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for arm, cells in found.items():
        row = [ARMS[arm].title]
        for measure in MEASURES:
            cell = cells[measure]
            row += [_spread(cell), _difference(cell.get("to_dino"))]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _spread(cell: Mapping[str, Any]) -> str:
    mean = f"{cell['mean']:.3f}"
    return mean if not cell["sd"] else f"{mean} ± {cell['sd']:.3f}"


def _difference(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    return f"{found['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
