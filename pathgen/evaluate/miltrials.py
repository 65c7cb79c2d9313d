"""Which heads a cross-validation trains: the splits, their repeats and their seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pathgen.data.bags import Bags
from pathgen.data.splitfile import read_splits, repeats_of, splits_of_rows
from pathgen.data.splits import Split, folds, shortfalls, shuffled
from pathgen.datasets.cohort import read_cohort
from pathgen.datasets.protocols import Protocol, divide
from pathgen.errors import ConfigError
from pathgen.provenance import digest
from pathgen.train.mil import MILTrainConfig


class Trial(NamedTuple):
    """One head: who trains, validates and tests, and the seed."""

    repeat: int
    fold: int
    seed: int
    split: Split


@dataclass(frozen=True)
class Trials:
    """All heads of a cross-validation, repeat by repeat."""

    every: tuple[Trial, ...]
    notes: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    """what the splits are from, where they were given"""

    @property
    def repeats(self) -> int:
        """How often a slide is tested at most."""
        return 1 + max(trial.repeat for trial in self.every)

    def folder(self, out: Path, trial: Trial) -> Path:
        """``fold-0``, or ``repeat-0/fold-0`` where there are several repeats."""
        parent = out / f"repeat-{trial.repeat}" if self.repeats > 1 else out
        return parent / f"fold-{trial.fold}"


def plan_trials(
    bags: Bags,
    config: MILTrainConfig,
    labels: Path,
    *,
    splits: Path | None = None,
    protocol: Protocol | None = None,
) -> Trials:
    """The splits of a protocol, of a file, or made from labels, patients and sites.

    Raises:
        ConfigError: PG-C01, a protocol and a file are given both, or sites are to be stratified
            by and none are known.
        DataError: PG-N07 and others, there are no such splits.
    """
    if splits is not None and protocol is not None:
        raise ConfigError(
            "a protocol has its own splits", where=protocol.name, why=f"{splits} is given too",
            hint="give one of them",
        )  # fmt: skip
    if protocol is not None:
        return _of_protocol(protocol, bags, config, labels)
    if splits is not None:
        fixed, notes = read_splits(splits, bags.names, bags.owners)
        inputs = {"splits": digest(_named(fixed, bags))}
        return _given(fixed, repeats_of(fixed), config, bags, notes, inputs)
    return _made(bags, config)


def training_bags(bags: Bags, trial: Trial, config: MILTrainConfig) -> tuple[Bags, Bags, Bags]:
    """The trial's training, validation and test bags; the first two perhaps with dealt labels."""
    train, valid, test = (bags.select(rows) for rows in trial.split)
    if config.shuffle_labels is None:
        return train, valid, test
    # Each part in itself: the classes of both keep their numbers.
    rng = np.random.default_rng([config.shuffle_labels, trial.repeat, trial.fold])
    train = train.answering(shuffled(train.groups, rng))
    return train, valid.answering(shuffled(valid.groups, rng)), test


def named_splits(trials: Trials, bags: Bags) -> list[dict[str, object]]:
    """As `splits.json` has them: slides of each part, and the repeat where there are several."""
    named: list[dict[str, object]] = []
    for trial in trials.every:
        parts: dict[str, object] = dict(_names(trial.split, bags))
        named.append(parts | ({"repeat": trial.repeat} if trials.repeats > 1 else {}))
    return named


def _made(bags: Bags, config: MILTrainConfig) -> Trials:
    if config.stratify == "label-site" and (bags.sites is None or not any(bags.sites)):
        raise ConfigError(
            "no sites to stratify by", where="stratify=label-site",
            why="the labels have no site column", hint="name it with --site-column",
        )  # fmt: skip
    every, notes = [], []
    for repeat in range(config.repeats):
        seed = config.seed + repeat
        splits = folds(
            bags.strata, bags.owners, config.folds, seed, config.valid_share,
            bags.sites if config.stratify == "label-site" else None,
        )  # fmt: skip
        every += [Trial(repeat, fold, seed, split) for fold, split in enumerate(splits)]
        said = shortfalls(splits, bags.labels, bags.classes)
        notes += said if config.repeats == 1 else [f"repeat {repeat}, {text}" for text in said]
    return Trials(tuple(every), tuple(notes))


def _of_protocol(protocol: Protocol, bags: Bags, config: MILTrainConfig, labels: Path) -> Trials:
    divided = divide(protocol, read_cohort(labels))
    splits, notes = splits_of_rows(
        divided.rows(), bags.names, bags.owners, f"protocol {protocol.name}"
    )
    seeds = sorted(set(divided.seeds))
    repeats = [seeds.index(seed) for seed in divided.seeds]
    inputs = {
        "protocol": f"{protocol.name} {protocol.version}", "splits": digest(_named(splits, bags))
    }  # fmt: skip
    notes = [
        f"protocol {protocol.name}, version {protocol.version}: {protocol.text}",
        *divided.notes, *notes,
    ]  # fmt: skip
    return _given(splits, repeats, config, bags, notes, inputs)


def _given(
    splits: Sequence[Split],
    repeats: Sequence[int],
    config: MILTrainConfig,
    bags: Bags,
    notes: Sequence[str],
    inputs: Mapping[str, str],
) -> Trials:
    """Splits that are fixed, `config.repeats` times over with other seeds of training."""
    every, own = [], 1 + max(repeats)
    for again in range(config.repeats):
        count = [0] * own
        for split, repeat in zip(splits, repeats, strict=True):
            number = again * own + repeat
            every.append(Trial(number, count[repeat], config.seed + number, split))
            count[repeat] += 1
    every.sort(key=lambda trial: (trial.repeat, trial.fold))
    texts = [*notes, *shortfalls(splits, bags.labels, bags.classes)]
    return Trials(tuple(every), tuple(dict.fromkeys(texts)), inputs)


def _named(splits: Sequence[Split], bags: Bags) -> list[dict[str, list[str]]]:
    return [_names(split, bags) for split in splits]


def _names(split: Split, bags: Bags) -> dict[str, list[str]]:
    return {part: [bags.names[i] for i in rows] for part, rows in split._asdict().items()}
