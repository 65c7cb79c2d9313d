"""One head of a cross-validation: train, predict who is tested, write both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen import commit
from pathgen.data.bags import Bags
from pathgen.data.truth import Target
from pathgen.evaluate.miltrials import Trial, Trials, training_bags
from pathgen.evaluate.predictionfile import (
    AnyPredictions,
    Continuous,
    Kind,
    Predictions,
    Survival,
    read_any,
    write_predictions,
)
from pathgen.progress import Progress
from pathgen.runs import Run
from pathgen.train.engine import find_device
from pathgen.train.mil import BagPrediction, Epoch, MILTrainConfig, fit_mil, predict


def train_fold(
    run: Run, trial: Trial, title: str, config: MILTrainConfig, bags: Bags, progress: Progress
) -> None:
    """Train, predict the test part, and write both; `done.json` comes last."""
    run.restore()  # forgets the log of a fold that was broken off

    def note(epoch: Epoch) -> None:
        values = {"valid_loss": epoch.valid_loss, f"valid_{config.monitor}": epoch.score}
        known = {name: value for name, value in values.items() if value is not None}
        run.log(epoch.epoch, loss=epoch.loss, **known)

    train, valid, test = training_bags(bags, trial, config)
    config = config.model_copy(update={"seed": trial.seed})
    head, history = fit_mil(config, train, valid, progress, on_epoch=note, title=title)
    said = predict(head.to(find_device(config.device)), test)
    write_predictions(run.path / "predictions.csv", _predictions(test, trial, said))
    with commit.draft(run.path / "attention.npz") as path, path.open("wb") as file:
        np.savez_compressed(
            file,
            slide=np.array(test.names),
            length=np.array([len(a) for a in said.attention], np.int64),
            attention=np.concatenate(said.attention),
        )
    kept = max(history, key=lambda e: e.rank) if len(valid) else history[-1]
    sizes = {part: len(rows) for part, rows in trial.split._asdict().items()}
    metrics = {
        "fold": trial.fold, "repeat": trial.repeat, "seed": trial.seed, "epochs": len(history),
        "best_epoch": kept.epoch, "loss": kept.loss, "valid_loss": kept.valid_loss,
        "slides": sizes, "classes": list(bags.classes), "target": bags.target,
    }  # fmt: skip
    if kept.score is not None:
        metrics["valid_score"] = kept.score
    run.finish(head.cpu(), metrics)


def collected(out: Path, trials: Trials, bags: Bags) -> AnyPredictions:
    """The folds' predictions as one: repeat by repeat, in the order of the slides."""
    parts, rows, numbers, repeats = [], [], [], []
    for trial in trials.every:
        parts.append(read_any(trials.folder(out, trial) / "predictions.csv", kind_of(bags)))
        rows.append(trial.split.test)
        numbers.append(np.full(len(trial.split.test), trial.fold))
        repeats.append(np.full(len(trial.split.test), trial.repeat))
    where, repeat = np.concatenate(rows), np.concatenate(repeats)
    order = np.lexsort((where, repeat))
    tested = bags.select(where[order])
    folds = np.concatenate(numbers)[order].tolist()
    again = repeat[order].tolist() if trials.repeats > 1 else None
    names, groups, sites = tested.names, tested.groups, tested.sites
    if bags.target == "regression":
        said = _joined(parts, "predicted", order)
        return Continuous(names, groups, folds, tested.values, said, sites, again)
    if bags.target == "survival":
        risk = _joined(parts, "risk", order)
        return Survival(names, groups, folds, tested.values, tested.events, risk, sites, again)
    return Predictions(
        names, groups, folds, _labels(tested), _joined(parts, "predicted", order).tolist(),
        _joined(parts, "probabilities", order), bags.classes, sites, again,
    )  # fmt: skip


def read_attention(folder: Path | str) -> dict[str, NDArray[np.float32]]:
    """Slide -> attention of each of its patches (n,), in the order of its feature store.

    Args:
        folder: a cross-validation, or one fold of it. Each slide's is that of the head that did
            not see its patient; the mean of those heads where there are several repeats.
    """
    folder = Path(folder)
    files = [folder / "attention.npz"]
    if not files[0].is_file():
        files = sorted([*folder.glob("fold-*/attention.npz"),
                        *folder.glob("repeat-*/fold-*/attention.npz")])  # fmt: skip
    found: dict[str, list[NDArray[np.float32]]] = {}
    for path in files:
        with np.load(path, allow_pickle=False) as arrays:
            parts = np.split(arrays["attention"], np.cumsum(arrays["length"])[:-1])
            for slide, part in zip(arrays["slide"].tolist(), parts, strict=True):
                found.setdefault(slide, []).append(part)
    return {slide: np.mean(parts, axis=0) if len(parts) > 1 else parts[0]
            for slide, parts in found.items()}  # fmt: skip


def kind_of(bags: Bags) -> Kind:
    """Of the predictions: classes, regression or survival."""
    kinds: Mapping[Target, Kind] = {"regression": "regression", "survival": "survival"}
    return kinds.get(bags.target, "classes")


def _predictions(test: Bags, trial: Trial, said: BagPrediction) -> AnyPredictions:
    folds = [trial.fold] * len(test)
    if test.target == "regression":
        return Continuous(
            test.names, test.groups, folds, test.values, said.logits[:, 0], test.sites
        )
    if test.target == "survival":
        return Survival(
            test.names, test.groups, folds, test.values, test.events, said.logits[:, 0],
            test.sites,
        )  # fmt: skip
    chosen = [test.classes[best] for best in said.chosen]
    return Predictions(
        test.names, test.groups, folds, _labels(test), chosen, said.probabilities, test.classes,
        test.sites,
    )  # fmt: skip


def _labels(bags: Bags) -> list[str]:
    return [bags.classes[label] for label in bags.labels]


def _joined(parts: Sequence[AnyPredictions], field: str, order: NDArray[np.intp]) -> NDArray[Any]:
    return np.concatenate([getattr(part, field) for part in parts])[order]
