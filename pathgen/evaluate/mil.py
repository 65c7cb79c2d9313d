"""`pathgen train-mil`: cross-validated slide heads on features.

mil/config.yaml  provenance.json  environment.json
mil/splits.json  who trains, validates and tests in each fold
mil/labels.csv   what is true of each slide, as it was read
mil/features.json  encoder and patches of the features: how a slide to come has to be cut
mil/fold-0/      a run: log.jsonl, model/, predictions.csv, attention.npz, metrics.json
mil/fold-1/ ...  with several repeats mil/repeat-0/fold-0/ ...
mil/predictions.csv   each slide once a repeat, predicted by the fold that did not see its patient
mil/metrics.json      see `pathgen.evaluate.predictions.evaluate_predictions`
mil/done.json
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pathgen import commit
from pathgen.config import build
from pathgen.data.bags import BagReport, Bags, load_bags
from pathgen.data.labels import count
from pathgen.data.truth import Target
from pathgen.data.vectors import StoredVectors
from pathgen.datasets.protocols import Protocol, protocol_named
from pathgen.evaluate.baselinedata import write_labels
from pathgen.evaluate.judgement import summary
from pathgen.evaluate.milexposure import Exposure, exposure
from pathgen.evaluate.milfold import collected, kind_of, read_attention, train_fold
from pathgen.evaluate.miltrials import Trials, named_splits, plan_trials
from pathgen.evaluate.predictions import evaluate_predictions, write_predictions
from pathgen.progress import Progress, Silent
from pathgen.provenance import digest
from pathgen.runs import Run
from pathgen.train.mil import MILTrainConfig
from pathgen.train.milconfig import FREE

__all__ = ["MILResult", "read_attention", "train_mil"]

#: Belongs to a cross-validation besides what every run has.
OUTPUTS = ("predictions.csv", "splits.json", "labels.csv", "features.json", "baselines")


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
    target: Target | None = None,
    head: str | None = None,
    classes: Sequence[str] | None = None,
    folds: int | None = None,
    repeats: int | None = None,
    seed: int | None = None,
    splits: Path | str | None = None,
    protocol: str | None = None,
    shuffle_labels: int | None = None,
    label_column: str | None = None,
    patient_column: str | None = None,
    site_column: str | None = None,
    group_column: str | None = None,
    time_column: str | None = None,
    event_column: str | None = None,
    encoder_run: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MILResult:
    """Train one head a fold, predict each slide with the head that did not see its patient.

    Finished folds of the same features, labels and settings are kept; a finished
    cross-validation is only read. Each fold keeps its head for slides to come.

    If the encoder was pretrained on these slides, the cross-validation is transductive: no head
    saw a label of its test slides, but the encoder saw their images. `metrics.json` says in its
    notes whether that is so, as far as it is known.

    Args:
        features: feature stores, or folders of them.
        labels: CSV with slide, label and perhaps patient, site and group; see
            `pathgen.data.load_bags`.
        out: folder for everything.
        target: classes, ordinal, regression or survival. Default: the protocol's, else the
            config's.
        head: name of the head. Default: the config's.
        classes: all classes there are, in their order. Default: the protocol's, else those of the
            labels: by value when all are numbers, else alphabetical.
        folds: how many; patients never part. Default: the config's.
        repeats: whole cross-validations with other seeds. Default: the config's.
        seed: of splits, training and bootstrap. Default: the config's.
        splits: a CSV of slide, split, part (train, valid, test) in place of folds.
        protocol: a name of `pathgen.datasets.protocols.PROTOCOLS`; `labels` is then a cohort.
        shuffle_labels: a seed; labels of training and validation are dealt out anew among
            patients. Default: the config's, that is not.
        label_column: name of the label column when it is not called label; so the others.
        encoder_run: the pretraining run that the features' encoder is from.
        overwrite: discard what `out` holds of an earlier cross-validation.

    Raises:
        DataError: PG-N06, labels and features do not fit; PG-N07, no such splits exist; PG-D06,
            a vector is not finite; PG-D21, the cohort does not fit the protocol.
        RunError: PG-T04, `out` holds a cross-validation with other settings; PG-T03, the loss is
            not finite.
        BusyError, StorageError, StoreError, NoInputError: as their names say.
    """
    out, progress, given = Path(out), progress or Silent(), config or MILTrainConfig()
    rules = None if protocol is None else protocol_named(protocol)
    asked = _asked(
        given, rules, target=target, folds=folds, repeats=repeats, seed=seed, head=head,
        shuffle_labels=shuffle_labels,
    )  # fmt: skip
    if rules is not None:
        label_column = label_column or rules.label_column
        classes = classes or rules.classes
    bags, report = load_bags(
        features, labels, target=asked.target, classes=classes, label_column=label_column,
        patient_column=patient_column, site_column=site_column, group_column=group_column,
        time_column=time_column, event_column=event_column, cache_gb=given.cache_gb,
        progress=progress,
    )  # fmt: skip
    try:
        trials = plan_trials(
            bags, asked, Path(labels), splits=None if splits is None else Path(splits),
            protocol=rules,
        )  # fmt: skip
        tested = _tested(trials, bags)
        seen = exposure(tested, report, None if encoder_run is None else Path(encoder_run))
        notes = _notes(asked, report, trials, seen, rules)
        for note in notes:
            progress.say(note)
        run = Run.start(out, "mil", asked, _inputs(bags, report, trials), overwrite=overwrite)
        free = {name: getattr(given, name) for name in FREE}
        work = _Work(out, run, asked.model_copy(update=free), asked, bags, report, trials)
        return work.done(seen, notes, overwrite, progress)
    finally:
        if isinstance(bags.features, StoredVectors):
            bags.features.close()


@dataclass(frozen=True)
class _Work:
    """A cross-validation that is all planned."""

    out: Path
    run: Run
    config: MILTrainConfig
    asked: MILTrainConfig
    """the config without what no result depends on: what the run's provenance has"""
    bags: Bags
    report: BagReport
    trials: Trials

    def done(
        self, seen: Exposure, notes: Sequence[str], overwrite: bool, progress: Progress
    ) -> MILResult:
        """What is not there yet is trained; then all is put together and judged."""
        out, run, bags, trials = self.out, self.run, self.bags, self.trials
        with commit.lock(out):
            if overwrite:
                _discard(out)
            if run.finished:
                return MILResult(out, run.metrics, self.report)
            commit.write_json(out / "splits.json", named_splits(trials, bags))
            commit.write_json(out / "features.json", self.report.made)
            write_labels(
                out / "labels.csv", bags.names, bags.groups, bags.sites, values=bags.values,
                labels=[bags.classes[i] for i in bags.labels] if bags.classes else None,
                events=bags.events,
            )  # fmt: skip
            for number, trial in enumerate(trials.every, 1):
                folder = trials.folder(out, trial)
                name = folder.relative_to(out).as_posix().replace("/", "-")
                fold_run = Run.start(folder, f"mil-{name}", self.asked, run.provenance.inputs)
                if fold_run.finished:
                    continue
                where = f"repeat {trial.repeat}, " if trials.repeats > 1 else ""
                title = f"MIL head, {where}fold {trial.fold}"
                train_fold(fold_run, trial, title, self.config, bags, progress)
                progress.say(_told(fold_run.metrics, f"{number} of {len(trials.every)}", title))
            write_predictions(out / "predictions.csv", collected(out, trials, bags))
            metrics = evaluate_predictions(
                out, kind=kind_of(bags), seed=self.asked.seed,
                ordinal=True if bags.target == "ordinal" else None, progress=progress,
            )  # fmt: skip
            metrics["notes"] = [*notes, *metrics["notes"]]
            metrics["label"] = self.report.label_column
            metrics["target"] = bags.target
            metrics["head"] = self.asked.model.head
            metrics["encoder_saw"] = seen._asdict()
            run.finish(None, metrics)
        return MILResult(out, run.metrics, self.report)


def _asked(
    given: MILTrainConfig, rules: Protocol | None, *, head: str | None, **own: Any
) -> MILTrainConfig:
    """The config with what was said beside it, and without what no result depends on."""
    if own["target"] is None and rules is not None and "target" not in given.model_fields_set:
        own["target"] = rules.target
    values = given.model_dump(exclude=set(FREE))
    if head is not None:
        values["model"] |= {"head": head}
    return build(MILTrainConfig, values | {k: v for k, v in own.items() if v is not None})


def _tested(trials: Trials, bags: Bags) -> list[str]:
    """Names of the slides that some fold tests, in order."""
    rows = sorted({int(i) for trial in trials.every for i in trial.split.test})
    return [bags.names[i] for i in rows]


def _notes(
    config: MILTrainConfig,
    report: BagReport,
    trials: Trials,
    seen: Exposure,
    rules: Protocol | None,
) -> list[str]:
    """What a person should know of the result."""
    notes = [report.patient_note, *report.messages, *trials.notes, str(seen)]
    if rules is not None and rules.pretraining == "inductive" and seen.seen:
        notes.append(f"protocol {rules.name} asks for an encoder that saw none of these slides")
    if config.shuffle_labels is not None:
        notes.append(
            f"labels of training and validation were shuffled (seed {config.shuffle_labels}): "
            "what is better than chance here is no knowledge of labels"
        )
    return notes


def _told(metrics: dict[str, Any], number: str, title: str) -> str:
    """``MIL head, fold 0 (1 of 5): best epoch 12 of 33, validation loss 0.412``."""
    text = f"{title} ({number}): best epoch {metrics['best_epoch'] + 1} of {metrics['epochs']}"
    if metrics["valid_loss"] is not None:
        return f"{text}, validation loss {metrics['valid_loss']:.3f}"
    return f"{text}, loss {metrics['loss']:.3f}; {count(metrics['slides']['test'], 'slide')} tested"


def _inputs(bags: Bags, report: BagReport, trials: Trials) -> dict[str, str]:
    truth: list[Any] = [bags.classes[label] for label in bags.labels] if bags.classes else []
    if bags.values is not None:
        truth = bags.values.tolist()
    if bags.events is not None:
        truth = list(zip(truth, bags.events.tolist(), strict=True))
    rows: list[Any] = [[*row] for row in zip(bags.names, truth, bags.groups, strict=True)]
    # Only where they are known, so that what they do not change keeps its name.
    further = [bags.units, bags.sites]
    other_order = bags.classes != tuple(sorted(set(truth)))  # decides what an output means
    if any(further) or bags.target != "classes" or other_order:
        rows.append([bags.target, bags.classes, *further])
    return {
        "features": report.id, "encoder": report.encoder, "labels": digest(rows), **trials.inputs
    }  # fmt: skip


def _discard(out: Path) -> None:
    for path in [
        *(out / name for name in OUTPUTS), *out.glob("fold-*"), *out.glob("repeat-*")
    ]:  # fmt: skip
        commit.discard(path)
