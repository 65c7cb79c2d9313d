"""`pathgen train-mil`: cross-validated slide classifiers on features.

mil/config.yaml  provenance.json  environment.json
mil/fold-0/      a run: log.jsonl, model/, predictions.csv, attention.npz, metrics.json
mil/fold-1/ ...
mil/predictions.csv   each slide once, predicted by the fold that did not see its patient
mil/metrics.json      see `pathgen.evaluate.predictions.evaluate_predictions`
mil/done.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen import commit
from pathgen.config import build
from pathgen.data.bags import BagReport, Bags, load_bags
from pathgen.data.splits import Split, shortfalls
from pathgen.data.splits import folds as divide
from pathgen.evaluate.judgement import summary
from pathgen.evaluate.predictions import (
    Predictions,
    evaluate_predictions,
    read_predictions,
    write_predictions,
)
from pathgen.progress import Progress, Silent
from pathgen.provenance import digest
from pathgen.runs import Run
from pathgen.train.mil import Epoch, MILTrainConfig, fit_mil, predict

#: Belongs to a cross-validation besides what every run has.
OUTPUTS = ("predictions.csv", "splits.json")


@dataclass(frozen=True)
class MILResult:
    """Where the answers are, and how good they are."""

    path: Path
    metrics: dict[str, Any]
    report: BagReport
    """what was left out"""

    @property
    def predictions(self) -> Path:
        """The CSV of out-of-fold predictions."""
        return self.path / "predictions.csv"

    def summary(self) -> str:
        """One line for people."""
        return summary(self.metrics)


def train_mil(
    features: Path | str | Sequence[Path | str],
    labels: Path | str,
    out: Path | str,
    config: MILTrainConfig | None = None,
    *,
    folds: int | None = None,
    seed: int | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MILResult:
    """Train one head a fold, predict each slide with the head that did not see its patient.

    Finished folds of the same features, labels and settings are kept; a finished
    cross-validation is only read. Each fold keeps its head for slides to come.

    If the encoder was pretrained on these slides, the cross-validation is transductive: no head
    saw a label of its test slides, but the encoder saw their images.

    Args:
        features: feature stores, or folders of them.
        labels: CSV with slide, label and perhaps patient; see `pathgen.data.load_bags`.
        out: folder for everything.
        folds: how many; patients never part. Default: the config's.
        seed: of splits, training and bootstrap. Default: the config's.
        label_column: name of the label column when it is not called label.
        patient_column: name of the patient column when it is not called patient.
        overwrite: discard what `out` holds of an earlier cross-validation.

    Raises:
        DataError: PG-N06, labels and features do not fit; PG-N07, no such splits exist.
        RunError: PG-T04, `out` holds a cross-validation with other settings; PG-T03, the loss is
            not finite.
        BusyError, StorageError, StoreError, NoInputError: as their names say.
    """
    out, progress, given = Path(out), progress or Silent(), config or MILTrainConfig()
    own = {"seed": seed, "folds": folds}
    asked = build(
        MILTrainConfig,
        given.model_dump(exclude={"device"})  # which changes no result
        | {name: value for name, value in own.items() if value is not None},
    )
    bags, report = load_bags(
        features, labels, label_column=label_column, patient_column=patient_column
    )
    for message in (report.patient_note, *report.messages):
        progress.say(message)
    splits = divide(bags.labels, bags.groups, asked.folds, asked.seed, asked.valid_share)
    inputs = _inputs(bags, report)
    run = Run.start(out, "mil", asked, inputs, overwrite=overwrite)
    with commit.lock(out):
        if overwrite:
            _discard(out)
        if run.finished:
            return MILResult(out, run.metrics, report)
        missing = shortfalls(splits, bags.labels, bags.classes)
        for message in missing:
            progress.say(message)
        commit.write_json(out / "splits.json", _named(splits, bags))
        train = asked.model_copy(update={"device": given.device})
        for fold, split in enumerate(splits):
            fold_run = Run.start(out / f"fold-{fold}", f"mil-fold-{fold}", asked, inputs)
            if not fold_run.finished:
                _fold(fold_run, fold, train, bags, split, progress)
        write_predictions(out / "predictions.csv", _collected(out, splits, bags))
        metrics = evaluate_predictions(out, seed=asked.seed)
        metrics["notes"] = [report.patient_note, *report.messages, *missing, *metrics["notes"]]
        metrics["label"] = report.label_column
        run.finish(None, metrics)
    return MILResult(out, run.metrics, report)


def read_attention(folder: Path | str) -> dict[str, NDArray[np.float32]]:
    """Slide -> attention of each of its patches (n,), in the order of its feature store.

    Args:
        folder: a cross-validation, or one fold of it. Each slide's is that of the head that did
            not see its patient.
    """
    folder = Path(folder)
    files = [folder / "attention.npz"]
    if not files[0].is_file():
        files = sorted(folder.glob("fold-*/attention.npz"))
    found: dict[str, NDArray[np.float32]] = {}
    for path in files:
        with np.load(path, allow_pickle=False) as arrays:
            parts = np.split(arrays["attention"], np.cumsum(arrays["length"])[:-1])
            found |= dict(zip(arrays["slide"].tolist(), parts, strict=True))
    return found


def _fold(
    run: Run, fold: int, config: MILTrainConfig, bags: Bags, split: Split, progress: Progress
) -> None:
    """Train, predict the test part, and write both; `done.json` comes last."""
    run.restore()  # forgets the log of a fold that was broken off

    def note(epoch: Epoch) -> None:
        valid = {} if epoch.valid_loss is None else {"valid_loss": epoch.valid_loss}
        run.log(epoch.epoch, loss=epoch.loss, **valid)

    head, history = fit_mil(
        config, bags.select(split.train), bags.select(split.valid), progress,
        on_epoch=note, title=f"MIL head, fold {fold}",
    )  # fmt: skip
    test = bags.select(split.test)
    said = predict(head, test)
    write_predictions(
        run.path / "predictions.csv",
        Predictions(
            test.names,
            test.groups,
            [fold] * len(test),
            [bags.classes[label] for label in test.labels],
            [bags.classes[best] for best in said.probabilities.argmax(1)],
            said.probabilities,
            bags.classes,
        ),
    )
    with commit.draft(run.path / "attention.npz") as path, path.open("wb") as file:
        np.savez_compressed(
            file,
            slide=np.array(test.names),
            length=np.array([len(a) for a in said.attention], np.int64),
            attention=np.concatenate(said.attention),
        )
    best = min(history, key=lambda e: e.loss if e.valid_loss is None else e.valid_loss)
    kept = best if len(split.valid) else history[-1]
    run.finish(
        head,
        {
            "fold": fold,
            "epochs": len(history),
            "best_epoch": kept.epoch,
            "loss": kept.loss,
            "valid_loss": kept.valid_loss,
            "slides": {"train": len(split.train), "valid": len(split.valid), "test": len(test)},
            "classes": list(bags.classes),
        },
    )


def _collected(out: Path, splits: Sequence[Split], bags: Bags) -> Predictions:
    """The folds' predictions as one, in the order of the slides."""
    parts = [read_predictions(out / f"fold-{i}" / "predictions.csv") for i in range(len(splits))]
    rows = np.concatenate([split.test for split in splits])
    order = np.argsort(rows)
    fold = np.repeat(np.arange(len(splits)), [len(split.test) for split in splits])[order]
    predicted = np.concatenate([part.predicted for part in parts])[order]
    scores = np.concatenate(
        [part.probabilities for part in parts if part.probabilities is not None]
    )
    return Predictions(
        bags.names,
        bags.groups,
        fold.tolist(),
        [bags.classes[label] for label in bags.labels],
        predicted.tolist(),
        scores[order],
        bags.classes,
    )


def _inputs(bags: Bags, report: BagReport) -> dict[str, str]:
    labels = [
        [name, bags.classes[label], group]
        for name, label, group in zip(bags.names, bags.labels, bags.groups, strict=True)
    ]
    return {"features": report.id, "encoder": report.encoder, "labels": digest(labels)}


def _named(splits: Sequence[Split], bags: Bags) -> list[dict[str, list[str]]]:
    return [
        {part: [bags.names[i] for i in rows] for part, rows in split._asdict().items()}
        for split in splits
    ]


def _discard(out: Path) -> None:
    for path in [*(out / name for name in OUTPUTS), *out.glob("fold-*")]:
        commit.discard(path)
