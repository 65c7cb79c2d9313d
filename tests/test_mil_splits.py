"""Splits: given, kept together, balanced by site, repeated, trained on shuffled labels."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_mil import witness_bags, write_cohort
from hypothesis import given, settings
from hypothesis import strategies as st

from pathgen.data.bags import load_bags
from pathgen.data.splitfile import read_splits, repeats_of, write_splits
from pathgen.data.splits import Split, folds, joined, shuffled
from pathgen.errors import ConfigError, DataError
from pathgen.evaluate import milexposure
from pathgen.evaluate.mil import read_attention, train_mil
from pathgen.evaluate.miltrials import Trial, training_bags
from pathgen.models.mil import PoolingConfig
from pathgen.provenance import Provenance
from pathgen.train.mil import MILTrainConfig

QUICK = MILTrainConfig(
    model=PoolingConfig(embed=8, hidden=4), epochs=1, batch_size=4, device="cpu", folds=2
)
NAMES = [f"s{i:03}" for i in range(16)]


def _parts(text: str) -> list[str]:
    """``tttvx-``: a part a slide, in order; - is none."""
    names = {"t": "train", "v": "valid", "x": "test"}
    return [names.get(letter, "") for letter in text]


def _splits_csv(path: Path, *splits: str) -> Path:
    lines = ["slide,split,part"]
    for number, text in enumerate(splits):
        lines += [f"{NAMES[i]}.svs,{number},{part}" for i, part in enumerate(_parts(text)) if part]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder, witness_bags(16, 0, dim=4, size=8))
    return folder


# --- splits of a file -----------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path: Path) -> None:
    splits = folds([0, 1] * 8, NAMES, 4, seed=3)
    write_splits(tmp_path / "s.csv", splits, NAMES)
    found, notes = read_splits(tmp_path / "s.csv", NAMES)
    assert notes == []
    for one, other in zip(splits, found, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_slide_is_in_the_part_that_the_file_says(tmp_path: Path) -> None:
    path = _splits_csv(tmp_path / "s.csv", "tttttttvvvxxxx--", "xxxxtttttttttttv")
    with path.open("a") as file:
        file.write("another,1,val\n")
    (first, second), notes = read_splits(path, NAMES)
    assert first.train.tolist() == list(range(7))
    assert first.valid.tolist() == [7, 8, 9]
    assert first.test.tolist() == [10, 11, 12, 13]
    assert second.test.tolist() == [0, 1, 2, 3]
    assert notes == [
        "split 0: 2 slides in no part ('s014', 's015')",
        "split 1: 1 slide of s.csv without features or label",
    ]


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("slide,fold,part\ns000,0,train\n", "PG-N06", "no column 'split'"),
        ("slide,split,part\ns000,first,train\n", "PG-N06", "Line 2: 'first'"),
        ("slide,split,part\ns000,0,holdout\n", "PG-N06", "Line 2: 'holdout'"),
        ("slide,split,part\ns000,1,train\ns001,1,test\n", "PG-N06", "do not count from 0"),
        ("slide,split,part\ns000,0,train\ns000.svs,0,test\n", "PG-N06", "in test in line 3"),
        ("slide,split,part\ns000,0,train\n", "PG-N07", "without a test part"),
        ("slide,split,part\nz,0,train\ns000,0,test\n", "PG-N07", "without a train part"),
        ("slide,split,part\ns000,0,train\ns001,0,test\n", "PG-N07", "'s000' is in train"),
    ],
)
def test_bad_splits_say_why(tmp_path: Path, text: str, code: str, message: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(DataError, match=message) as error:
        read_splits(tmp_path / "s.csv", NAMES, ["p", "p", *NAMES[2:]])
    assert error.value.code == code


def test_a_repeat_tests_each_slide_once() -> None:
    def of(*test: int) -> Split:
        return Split(np.array([9]), np.array([], np.int64), np.array(test))

    assert repeats_of([of(0, 1), of(2), of(3)]) == [0, 0, 0]
    assert repeats_of([of(0, 1), of(0, 1), of(0, 1)]) == [0, 1, 2]
    assert repeats_of([of(0, 1), of(1, 2), of(2)]) == [0, 1, 0]


# --- what belongs together ------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 6)), min_size=1, max_size=30),
)
@settings(max_examples=60, deadline=None)
def test_owners_are_the_connected_patients(rows: list[tuple[int, int]]) -> None:
    groups, others = [f"p{a}" for a, _ in rows], [f"g{b}" if b else "" for _, b in rows]
    owners = joined(groups, others)
    # By flooding: what can be reached from a row through equal patients or equal groups.
    for i in range(len(rows)):
        reached = {i}
        while True:
            more = {
                k for j in reached for k in range(len(rows))
                if groups[j] == groups[k] or (others[j] and others[j] == others[k])
            }  # fmt: skip
            if more <= reached:
                break
            reached |= more
        assert {k for k in range(len(rows)) if owners[k] == owners[i]} == reached


def test_a_group_column_keeps_duplicates_together(cohort: Path, tmp_path: Path) -> None:
    lines = (cohort / "labels.csv").read_text().splitlines()
    marks = {1: "a", 2: "a", 3: "b", 12: "b"}
    rows = [f"{line},{marks.get(i, '')}" for i, line in enumerate(lines[1:])]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join([lines[0] + ",group", *rows]) + "\n")
    bags, report = load_bags(cohort / "features", labels)
    assert bags.owners[1] == bags.owners[2] != bags.owners[3] == bags.owners[12]
    assert list(bags.groups) == NAMES
    assert "16 patients are 14 units to a split" in report.messages[-1]
    result = train_mil(cohort / "features", labels, tmp_path / "mil", QUICK)
    for parts in json.loads((result.path / "splits.json").read_text()):
        for pair in (("s001", "s002"), ("s003", "s012")):
            assert any(set(pair) <= set(names) for names in parts.values())
    split = _splits_csv(tmp_path / "s.csv", "txtttttttxxxxxxx")
    with pytest.raises(DataError, match="parts what belongs together"):
        train_mil(cohort / "features", labels, tmp_path / "other", QUICK, splits=split)


def test_parts_are_alike_in_label_by_site() -> None:
    rng = np.random.default_rng(0)
    sites = rng.choice(["k", "r"], 900, p=[0.3, 0.7]).tolist()
    labels = np.where(np.array(sites) == "k", rng.choice(3, 900, p=[0.7, 0.2, 0.1]),
                      rng.choice(3, 900, p=[0.1, 0.3, 0.6]))  # fmt: skip
    whole = Counter(zip(labels.tolist(), sites, strict=True))
    groups = [f"p{i // 2 if i % 5 else i}" for i in range(900)]
    for split in folds(labels, groups, 5, 0, sites=sites):
        there = Counter((int(labels[i]), sites[i]) for i in split.test)
        for cell, n in whole.items():
            assert abs(there[cell] / len(split.test) - n / 900) < 0.01


# --- the whole of it ------------------------------------------------------------------------


def _table(path: Path) -> list[dict[str, str]]:
    header, *rows = (line.split(",") for line in path.read_text().splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_fixed_splits_test_who_they_say(cohort: Path, tmp_path: Path) -> None:
    splits = _splits_csv(tmp_path / "s.csv", "ttttttttvvxxxxx-", "xxxxxtttttttvv--")
    result = train_mil(
        cohort / "features", cohort / "labels.csv", tmp_path / "mil", QUICK, splits=splits
    )
    rows = _table(result.predictions)
    assert [(row["slide"], row["fold"]) for row in rows] == [
        *((name, "1") for name in NAMES[:5]), *((name, "0") for name in NAMES[10:15])
    ]  # fmt: skip
    assert "split 0: 1 slide in no part ('s015')" in result.metrics["notes"]
    with pytest.raises(ConfigError, match="own splits"):
        train_mil(
            cohort / "features", cohort / "labels.csv", tmp_path / "p", QUICK, splits=splits,
            protocol="panda-gensis",
        )  # fmt: skip


def test_repeats_are_several_cross_validations(cohort: Path, tmp_path: Path) -> None:
    result = train_mil(
        cohort / "features", cohort / "labels.csv", tmp_path / "mil", QUICK, repeats=2
    )
    rows = _table(result.predictions)
    assert [row["repeat"] for row in rows] == ["0"] * 16 + ["1"] * 16
    assert [row["slide"] for row in rows] == NAMES * 2
    told = json.loads((result.path / "splits.json").read_text())
    assert [parts["repeat"] for parts in told] == [0, 0, 1, 1]
    assert told[0]["test"] != told[2]["test"]
    assert sorted(told[2]["test"] + told[3]["test"]) == NAMES
    # The first repeat is the cross-validation that one repeat is.
    alone = train_mil(cohort / "features", cohort / "labels.csv", tmp_path / "one", QUICK)
    for one, again in zip(_table(alone.predictions), rows[:16], strict=True):
        assert {**one, "repeat": "0"} == again
    attention = read_attention(result.path)
    assert sorted(attention) == NAMES
    assert all(a.sum() == pytest.approx(1, abs=1e-5) for a in attention.values())


def test_one_test_part_with_several_seeds_is_several_repeats(cohort: Path, tmp_path: Path) -> None:
    splits = _splits_csv(tmp_path / "s.csv", "tttttttttvvvxxxx", "vvvtttttttttxxxx")
    result = train_mil(
        cohort / "features", cohort / "labels.csv", tmp_path / "mil", QUICK, splits=splits
    )
    rows = _table(result.predictions)
    assert [(row["repeat"], row["slide"]) for row in rows] == [
        (repeat, name) for repeat in "01" for name in NAMES[12:]
    ]
    assert result.metrics["repeats"] == 2


def test_shuffled_labels_are_the_same_labels() -> None:
    rng = np.random.default_rng(0)
    groups = [f"p{i}" for i in rng.integers(0, 12, 40)]
    order = shuffled(groups, np.random.default_rng(1))
    assert sorted(order) == list(range(40))
    assert (order != np.arange(40)).mean() > 0.5
    # The truths of one patient stay beside each other.
    given = [[groups[order[i]] for i in range(40) if groups[i] == p] for p in sorted(set(groups))]
    seams = sum(len(set(row)) - 1 for row in given)
    assert seams <= len(set(groups))


def test_tests_keep_their_labels_when_training_labels_are_shuffled() -> None:
    bags = witness_bags(16, 0, dim=4, size=8)
    split = folds(bags.labels, bags.groups, 2, 0)[0]
    config = QUICK.model_copy(update={"shuffle_labels": 5})
    train, valid, test = training_bags(bags, Trial(0, 0, 0, split), config)
    assert np.array_equal(test.labels, bags.labels[split.test])
    for part, rows in ((train, split.train), (valid, split.valid)):
        assert sorted(part.labels) == sorted(bags.labels[rows])
        assert all(a is b for a, b in zip(part.features, bags.select(rows).features, strict=True))
    assert not np.array_equal(train.labels, bags.labels[split.train])
    other, _, _ = training_bags(bags, Trial(0, 1, 0, split), config)
    assert not np.array_equal(train.labels, other.labels)


def test_a_shuffled_run_says_so(cohort: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shuffle_labels": 3}
    result = train_mil(
        cohort / "features", cohort / "labels.csv", tmp_path / "mil", QUICK, **options
    )
    assert any("were shuffled (seed 3)" in note for note in result.metrics["notes"])
    labels = {row["slide"]: row["label"] for row in _table(result.predictions)}
    assert labels == {name: str(i % 2) for i, name in enumerate(NAMES)}
    assert "shuffle_labels: 3" in (result.path / "config.yaml").read_text()


def test_sites_are_written_and_stratified_by_when_asked(cohort: Path, tmp_path: Path) -> None:
    lines = (cohort / "labels.csv").read_text().splitlines()
    rows = [f"{line},{'kr'[i // 8]}" for i, line in enumerate(lines[1:])]
    labels = tmp_path / "labels.csv"
    labels.write_text("\n".join([lines[0] + ",data_provider", *rows]) + "\n")
    config = QUICK.model_copy(update={"stratify": "label-site"})
    result = train_mil(cohort / "features", labels, tmp_path / "mil", config)
    found = Counter((r["fold"], r["site"], r["label"]) for r in _table(result.predictions))
    assert set(found.values()) == {2}
    with pytest.raises(ConfigError, match="no sites"):
        train_mil(cohort / "features", cohort / "labels.csv", tmp_path / "x", config)


def test_a_protocol_says_who_tests_and_in_which_order_classes_are(
    cohort: Path, tmp_path: Path
) -> None:
    labels = tmp_path / "cohort.csv"
    classes = ("Noncancerous", "Precancerous", "Cancerous")
    rows = [f"{name},{name}.svs,{classes[i % 3]},{'valid' if i > 11 else 'train'}"
            for i, name in enumerate(NAMES)]  # fmt: skip
    labels.write_text("\n".join(["slide,path,label,split", *rows]) + "\n")
    result = train_mil(
        cohort / "features", labels, tmp_path / "mil", QUICK, protocol="bright3-gensis"
    )
    table = _table(result.predictions)
    assert [(row["repeat"], row["slide"]) for row in table] == [
        (repeat, name) for repeat in "012" for name in NAMES[12:]
    ]
    assert list(table[0])[-3:] == [f"p_{name}" for name in classes]
    assert any(n.startswith("protocol bright3-gensis, version 1") for n in result.metrics["notes"])
    told = json.loads((result.path / "splits.json").read_text())
    assert all(set(parts["train"]) | set(parts["valid"]) == set(NAMES[:12]) for parts in told)
    with pytest.raises(DataError, match="no such protocol"):
        train_mil(cohort / "features", labels, tmp_path / "x", QUICK, protocol="bright")


def test_it_is_said_whether_the_encoder_saw_the_tested_slides(
    cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Known:
        id = "e1"  # as the stores of `write_cohort` say

    monkeypatch.setattr(milexposure, "load_encoder", lambda *_, **__: Known())
    # By the id of the patches, by the slide's name, and a slide that is not tested here.
    inputs = {"00000 tiled again": "id-s004", "00001 s007": "other", "00002 elsewhere": "id-x"}
    (tmp_path / "run" / "dino" / "model").mkdir(parents=True)
    (tmp_path / "run" / "dino" / "provenance.json").write_text(
        Provenance(stage="dino", config={}, inputs=inputs).model_dump_json()
    )
    _, report = load_bags(cohort / "features", cohort / "labels.csv")
    assert milexposure.exposure(NAMES, report, tmp_path / "run") == (16, 2)
    assert milexposure.exposure(NAMES[:4], report, tmp_path / "run").seen == 0
    assert milexposure.exposure(NAMES, report).seen is None
    assert "transductive: of 16" in str(milexposure.exposure(NAMES, report, tmp_path / "run"))
    Known.id = "another"
    with pytest.raises(DataError, match="not of this encoder"):
        milexposure.exposure(NAMES, report, tmp_path / "run")


def test_classes_in_the_order_that_is_given(cohort: Path, tmp_path: Path) -> None:
    text = (cohort / "labels.csv").read_text().replace(",0,", ",low,").replace(",1,", ",high,")
    labels = tmp_path / "labels.csv"
    labels.write_text(text)
    with pytest.raises(DataError, match="ordered classes are numbers"):
        load_bags(cohort / "features", labels, target="ordinal")
    with pytest.raises(DataError, match="label is none of low, middle"):
        load_bags(cohort / "features", labels, classes=("low", "middle"))
    bags, _ = load_bags(cohort / "features", labels, target="ordinal", classes=("low", "high"))
    assert bags.labels.tolist() == [0, 1] * 8
