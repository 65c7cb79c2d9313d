"""The baselines nobody prints: what a slide classifier's figures are worth.

mil/baselines/<name>/predictions.csv   on the same splits as the run
mil/baselines/<name>/metrics.json      as of the run
mil/baselines/<name>/comparison.json   run - baseline, on the same slides
mil/baselines/<name>/slides.csv        the measures, where there are any
mil/baselines/label-shuffle/run-0/     the heads trained on labels shuffled by seed 0
mil/baselines/baselines.json           all of it, short
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pathgen import commit
from pathgen.errors import ConfigError
from pathgen.evaluate.baselinedata import RunData, read_run
from pathgen.evaluate.baselinepredictions import from_labels, from_measures
from pathgen.evaluate.compare import compare_answered
from pathgen.evaluate.judgement import judge
from pathgen.evaluate.predictionfile import AnyPredictions, Kind, write_predictions
from pathgen.evaluate.predictions import answered
from pathgen.evaluate.shortcuts import Measures, size_measures, stain_measures
from pathgen.progress import Progress, Silent

PathLike = str | Path
FORMAT = "pathgen.baselines"
#: name -> what it is, in the order they are made.
BASELINES = {
    "majority": "the class frequencies of the training slides, or their mean",
    "size-only": "the number of patches and the tissue area",
    "stain-only": "mean color and stain scores",
    "label-shuffle": "the same heads, trained on shuffled labels: chance",
}
#: Numbers that `baselines.json` repeats of each baseline's metrics.
SHORT = ("accuracy", "balanced_accuracy", "macro_f1", "auc", "qwk", "mae", "r2", "spearman",
         "c_index")  # fmt: skip


def evaluate_baselines(
    run: PathLike,
    *,
    patches: PathLike | Sequence[PathLike] | None = None,
    features: PathLike | Sequence[PathLike] | None = None,
    labels: PathLike | None = None,
    only: Sequence[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Baselines on the splits of a `train-mil` run, each compared with it on the same slides.

    Every one is fit on the training and validation slides of a split and predicts its test slides.
    Small models are logistic, ridge or Cox regressions of a few measures, standardized by the
    slides they are fit on. Those that need what was not given are skipped, and it is said.

    Args:
        run: the folder of a finished `train-mil`.
        patches: patch stores, for ``stain-only`` and ``size-only``.
        features: feature stores, for ``label-shuffle`` and, without `patches`, ``size-only``.
        labels: CSV of labels, where the run does not hold those of its training slides.
        only: some of `BASELINES`; default: all that can be made.
        seed: of the shuffle and of the bootstrap.
        device: for ``label-shuffle``; default: auto.

    Returns:
        What ``baselines.json`` holds; docs/slide-level.md says the keys.

    Raises:
        ConfigError: PG-C01, no such baseline.
        RunError: PG-T04, the folder is no finished `train-mil` run.
        DataError: PG-N06, training slides have no label.
        NoInputError, StoreError: the stores are missing or damaged.
    """
    run, progress = Path(run), progress or Silent()
    strange = [name for name in only or () if name not in BASELINES]
    if strange:
        raise ConfigError(
            "no such baseline", where=", ".join(strange), hint=f"use {', '.join(BASELINES)}"
        )
    data = read_run(run, labels)
    places = Places(patches, features)
    with commit.lock(run):
        made, skipped = _earlier(data), []
        for name in only or BASELINES:
            if need := places.lacking(name):
                skipped.append({"name": name, "why": need})
                continue
            made[name] = _made(name, data, places, seed=seed, device=device, progress=progress)
            commit.write_json(run / "baselines" / "baselines.json", _told(data, made, skipped))
    return _told(data, made, skipped)


def _told(
    data: RunData, made: Mapping[str, dict[str, Any]], skipped: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "run": data.path.name,
        "run_id": data.id,
        "baselines": [made[name] for name in BASELINES if name in made],
        "skipped": [row for row in skipped if row["name"] not in made],
    }


class Places(NamedTuple):
    """Where patches and features are; None: not given."""

    patches: PathLike | Sequence[PathLike] | None
    features: PathLike | Sequence[PathLike] | None

    def lacking(self, name: str) -> str:
        """What a baseline needs and has not; empty when nothing."""
        if name == "stain-only" and self.patches is None:
            return "it reads colors and stain scores of patches: give the stores with --patches"
        if name == "size-only" and self.patches is None and self.features is None:
            return "it counts patches: give --patches, or --features"
        if name == "label-shuffle" and self.features is None:
            return "it trains heads: give the features of the run with --features"
        return ""

    def measures(self, name: str, progress: Progress) -> Measures:
        """Of ``stain-only`` or ``size-only``."""
        if name == "stain-only":
            assert self.patches is not None
            return stain_measures(self.patches, progress)
        stores = self.features if self.patches is None else self.patches
        assert stores is not None
        return size_measures(stores, progress)


def _earlier(data: RunData) -> dict[str, dict[str, Any]]:
    """Baselines of this run that were made before; those of a run that stood here are removed."""
    path = data.path / "baselines" / "baselines.json"
    if not path.is_file():  # what a broken-off call left goes on
        return {}
    found = commit.read_json(path)
    if found.get("run_id") == data.id:
        return {row["name"]: row for row in found["baselines"]}
    commit.discard(path.parent)
    return {}


def _made(
    name: str,
    data: RunData,
    places: Places,
    *,
    seed: int,
    device: str | None,
    progress: Progress,
) -> dict[str, Any]:
    """One baseline: its predictions, metrics and comparison written, and in short."""
    folder = data.path / "baselines" / name
    folder.mkdir(parents=True, exist_ok=True)
    notes: list[str] = []
    predictions: AnyPredictions
    if name == "label-shuffle":
        from pathgen.evaluate.shuffled import train_shuffled

        assert places.features is not None
        predictions = train_shuffled(
            data, places.features, folder / f"run-{seed}", seed=seed, device=device,
            progress=progress,
        )  # fmt: skip
        if data.repeated:
            notes.append("only the first repeat was trained on shuffled labels")
    elif name == "majority":
        predictions = from_labels(data)
    else:
        predictions = from_measures(data, places.measures(name, progress), folder, notes)
    return _judged(data, name, folder, predictions, notes, seed, progress)


def _judged(
    data: RunData,
    name: str,
    folder: Path,
    predictions: AnyPredictions,
    notes: Sequence[str],
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Write predictions, metrics and comparison; return them short."""
    write_predictions(folder / "predictions.csv", predictions)
    ordinal = True if data.target == "ordinal" else None
    kind: Kind = "classes" if data.target in ("classes", "ordinal") else data.target  # type: ignore[assignment]
    own, theirs = (answered(path, kind=kind, ordinal=ordinal) for path in (folder, data.path))
    metrics = judge(own.judged, own.slides, seed=seed, progress=progress) | {
        "notes": [*notes, *own.notes]
    }
    commit.write_json(folder / "metrics.json", metrics)
    comparison = compare_answered(
        theirs, own, names=(data.path.name, name), seed=seed, progress=progress
    )
    commit.write_json(folder / "comparison.json", comparison)
    short = {key: metrics[key] for key in SHORT if key in metrics}
    return {
        "name": name,
        "title": BASELINES[name],
        "n": metrics["n"],
        "metrics": short | {"intervals": {key: metrics["intervals"][key] for key in short}},
        "comparison": comparison,
        "notes": list(notes),
        "files": name,
    }
