"""The label-shuffle baseline: the run's heads, trained where there is nothing to learn."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pathgen import commit
from pathgen.config import load_config
from pathgen.evaluate.baselinedata import RunData, write_labels
from pathgen.evaluate.mil import train_mil
from pathgen.evaluate.predictionfile import AnyPredictions, read_any
from pathgen.progress import Progress
from pathgen.train.mil import MILTrainConfig


def train_shuffled(
    data: RunData,
    features: Path | str | Sequence[Path | str],
    out: Path,
    *,
    seed: int,
    device: str | None,
    progress: Progress,
) -> AnyPredictions:
    """Predictions of heads whose training and validation labels were dealt out anew.

    Settings and splits are the run's, of its first repeat where there are several. The test
    slides keep their labels. Heads that were trained already are kept.
    """
    first = [split for split in data.splits if split.repeat == data.splits[0].repeat]
    out.parent.mkdir(parents=True, exist_ok=True)
    labels, splits = out.parent / "labels.csv", out.parent / "splits.csv"
    classes = data.classes or None
    named = None if classes is None else [classes[i] for i in data.labels]
    write_labels(
        labels, data.names, data.groups, data.sites, labels=named, values=data.values,
        events=data.events,
    )  # fmt: skip
    commit.write_text(splits, _splits(data.path, len(first)))
    config = load_config(MILTrainConfig, data.path / "config.yaml")
    changes: dict[str, Any] = {"shuffle_labels": seed, "repeats": 1}
    if device is not None:
        changes["device"] = device
    result = train_mil(
        features, labels, out, config.model_copy(update=changes), classes=classes, splits=splits,
        progress=progress,
    )  # fmt: skip
    said = read_any(result.predictions)
    return replace(said, repeats=None)


def _splits(run: Path, number: int) -> str:
    """The first splits of the run as `train-mil` reads them, validation parts as they were."""
    parts = commit.read_json(run / "splits.json")[:number]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("slide", "split", "part"))
    for split, named in enumerate(parts):
        for part in ("train", "valid", "test"):
            writer.writerows((name, split, part) for name in named.get(part, ()))
    return text.getvalue()
