"""Splits keep groups whole, parts alike, and are the same for the same slides and seed."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers_datasets import META, read_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pathgen.data.labels import load_labels
from pathgen.datasets import PROTOCOLS, Cohort, Member, divide, read_cohort, write_cohort
from pathgen.datasets.splitting import codes, deal, joined
from pathgen.errors import DataError

SHARES = st.sampled_from([(0.5, 0.5), (0.2,) * 5, (0.8, 0.1, 0.1), (0.7, 0.15, 0.15)])


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[str], list[int], list[int], tuple[float, ...], int]:
    """Names, cells, groups (patients with one to six slides), shares, seed."""
    size = draw(st.integers(12, 150))
    cells = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    spread = draw(st.sampled_from([1, 3, 6]))
    groups = draw(st.lists(st.integers(0, size // spread), min_size=size, max_size=size))
    for i in range(6):
        groups[i] = size + i  # as many groups as parts, whatever was drawn
    return [f"s{i}" for i in range(size)], cells, groups, draw(SHARES), draw(st.integers(0, 99))


@given(cohorts())
@settings(max_examples=60, deadline=None)
def test_groups_never_part_and_no_part_is_empty(
    cohort: tuple[list[str], list[int], list[int], tuple[float, ...], int],
) -> None:
    names, cells, groups, shares, seed = cohort
    part = deal(names, cells, groups, shares, seed)
    assert set(part.tolist()) == set(range(len(shares)))
    for group in set(groups):
        assert len({int(p) for p, g in zip(part, groups, strict=True) if g == group}) == 1


@given(st.lists(st.integers(0, 6), min_size=12, max_size=300), SHARES, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_slides_on_their_own_are_within_one_of_their_share(
    cells: list[int], shares: tuple[float, ...], seed: int
) -> None:
    part = deal([f"s{i}" for i in range(len(cells))], cells, range(len(cells)), shares, seed)
    # Forcing a slide into an empty part may cost a cell one more.
    slack = 2 if len(cells) * min(shares) < len(set(cells)) else 1
    for cell, count in Counter(cells).items():
        inside = part[np.array(cells) == cell]
        for p, share in enumerate(shares):
            assert abs((inside == p).sum() - share * count) < slack + 1e-9


@given(cohorts(), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_order_of_rows_and_numbers_of_groups_mean_nothing(
    cohort: tuple[list[str], list[int], list[int], tuple[float, ...], int], random: object
) -> None:
    names, cells, groups, shares, seed = cohort
    part = deal(names, cells, groups, shares, seed)
    order = list(range(len(names)))
    random.shuffle(order)  # type: ignore[attr-defined]
    other = {group: i for i, group in enumerate(sorted(set(groups), reverse=True))}
    again = deal(
        [names[i] for i in order], [cells[i] for i in order], [other[groups[i]] for i in order],
        shares, seed,
    )  # fmt: skip
    assert [again[order.index(i)] for i in range(len(names))] == part.tolist()


def test_what_rounding_owes_a_part_in_one_cell_it_gets_in_another() -> None:
    cells = np.repeat(np.arange(12), 3)  # a tenth of three slides is no slide
    part = deal([f"s{i}" for i in range(36)], cells, range(36), (0.8, 0.1, 0.1), 0)
    sizes = np.bincount(part, minlength=3)
    assert np.abs(sizes - np.array([28.8, 3.6, 3.6])).max() < 1


def test_as_many_groups_as_parts_leave_no_part_empty() -> None:
    part = deal(["a", "b", "c"], [0, 1, 2], [0, 1, 2], (0.8, 0.1, 0.1), 0)
    assert sorted(part.tolist()) == [0, 1, 2]


def test_many_patients_of_several_slides_are_spread_evenly() -> None:
    rng = np.random.default_rng(0)
    patient = rng.integers(0, 400, 1200)
    label = rng.integers(0, 3, 400)[patient]  # of one patient all slides are alike
    part = deal([str(i) for i in range(1200)], label, patient, [0.2] * 5, 0)
    shares = np.array([np.bincount(part[label == c], minlength=5) / (label == c).sum()
                       for c in range(3)])  # fmt: skip
    assert np.abs(shares - 0.2).max() < 0.01
    other = deal([str(i) for i in range(1200)], label, patient, [0.2] * 5, 1)
    assert (other != part).mean() > 0.5


def test_groups_join_through_any_column() -> None:
    patients = ["a", "a", "", "b", "", "c"]
    duplicates = ["", "1", "1", "", "", ""]
    found = joined(patients, duplicates)
    assert found[0] == found[1] == found[2]
    assert len({int(g) for g in found}) == 4


def test_shares_and_groups_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"(?i)sum to 1"):
        deal(["a", "b"], [0, 0], [0, 1], [0.5, 0.6], 0)
    with pytest.raises(ValueError, match=r"(?i)1 groups for 2 parts"):
        deal(["a", "b"], [0, 0], [0, 0], [0.5, 0.5], 0)


# Protocols on the real labels


@pytest.fixture(scope="module")
def real() -> Cohort:
    if not META.is_dir():
        pytest.skip("the labels of PANDA are not in ../shared/data/meta")
    groups = _column("panda_duplicates_imghash090.csv", "group_id")
    clean = _column("panda_train_5fold_noisy_removed.csv", "image_id")
    rows = read_rows(META / "panda_train_5fold.csv")
    return Cohort(
        tuple(
            Member(
                row["image_id"], label=row["isup_grade"], site=row["data_provider"],
                group=groups.get(row["image_id"], ""),
                flags=frozenset() if row["image_id"] in clean else frozenset({"noisy"}),
            )
            for row in rows
        ),
        "panda",
    )  # fmt: skip


def _column(name: str, column: str) -> dict[str, str]:
    return {row["image_id"]: row[column] for row in read_rows(META / name)}


@pytest.mark.data
@pytest.mark.parametrize("name", ["panda-gensis", "panda-full-5fold", "panda-clean-80-10-10"])
def test_all_of_panda_is_divided_in_seconds_and_within_one_percent(name: str, real: Cohort) -> None:
    start = time.perf_counter()
    splits = divide(name, real)
    assert time.perf_counter() - start < 10
    assert len(real) == 10_616
    protocol = PROTOCOLS[name]
    cell = codes(real.column("label"), real.column("site"))
    group = joined(real.column("group"))
    for parts in splits.parts:
        used = parts >= 0
        assert used.sum() == len(real) - len(splits.left_out)
        for c in range(12):
            inside = parts[used & (cell == c)]
            share = np.bincount(inside, minlength=3) / len(inside)
            assert np.abs(share - protocol.shares).max() < 0.01
        pairs = np.unique(np.stack([group[used], parts[used]]), axis=1)
        assert (np.bincount(pairs[0]) <= 1).all()  # duplicates never part
    if protocol.design == "folds":
        assert ((splits.parts == 2).sum(0) == 1).all()  # each slide is tested once
    again = divide(name, Cohort(real.members[::-1], "panda"))
    np.testing.assert_array_equal(again.parts, splits.parts)


@pytest.mark.data
def test_the_clean_protocol_leaves_out_the_noisy_slides_alone(real: Cohort) -> None:
    splits = divide("panda-clean-80-10-10", real)
    assert set(splits.left_out) == {m.slide for m in real.members if "noisy" in m.flags}
    assert set(splits.left_out.values()) == {"noisy"}
    cleared = Cohort(tuple(Member(m.slide, label=m.label, site=m.site) for m in real.members))
    with pytest.raises(DataError, match=r"(?i)PG-D21.*none is marked so.*--noisy"):
        divide("panda-clean-80-10-10", cleared)


# Protocols on small cohorts


def small(count: int = 60, **own: object) -> Cohort:
    """Slides of six grades and two providers."""
    return Cohort(
        tuple(
            Member(f"s{i:03}", label=str(i % 6), site=("k", "r")[i // 6 % 2], **own)  # type: ignore[arg-type]
            for i in range(count)
        )
    )


def official(**more: str) -> Cohort:
    names = ("Noncancerous", "Precancerous", "Cancerous")
    return Cohort(
        tuple(
            Member(f"{part}{i}", label=names[i % 3], split=part)
            for part, count in (("train", 30), ("valid", 9), ("test", 6))
            for i in range(count)
        )
    )


def test_bright_is_tested_on_its_official_validation_part_with_three_seeds() -> None:
    splits = divide("bright3-gensis", official())
    assert splits.seeds == (0, 1, 2)
    for i in range(3):
        assert set(splits.names(i, "test")) == {f"valid{j}" for j in range(9)}
        assert len(splits.names(i, "valid")) == 6
        assert all(name.startswith("train") for name in splits.names(i, "valid"))
    assert splits.names(0, "valid") != splits.names(1, "valid")
    assert not any(slide.startswith("test") for slide, _, _ in splits.rows())
    assert any("6 labeled slides are in no official part" in note for note in splits.notes)


def test_a_patient_in_two_official_parts_leaves_training_and_the_test_part_stays() -> None:
    names = ("benign", "atypical", "malignant")
    cohort = Cohort(
        tuple(
            Member(f"{part}{i}", label=names[i % 3], split=part, patient=f"{part}{i // 2}")
            for part, count in (("train", 12), ("valid", 6), ("test", 6))
            for i in range(count)
        )
        + (Member("both", label="benign", split="train", patient="test0"),)
    )
    splits = divide("bracs3", cohort)
    assert set(splits.names(0, "test")) == {f"test{i}" for i in range(6)}
    assert "both" not in {slide for slide, _, _ in splits.rows()}
    assert any("(both)" in note for note in splits.notes)


def test_an_inductive_encoder_sees_training_slides_alone() -> None:
    splits = divide("panda-gensis", small())
    for i in range(len(splits)):
        seen = set(splits.pretraining(i))
        assert seen == set(splits.names(i, "train"))


def test_unlabeled_slides_are_named_and_take_no_part() -> None:
    cohort = Cohort((*small().members, Member("unknown")))
    splits = divide("panda-gensis", cohort)
    assert splits.left_out == {"unknown": "no label"}
    assert "unknown" not in {slide for slide, _, _ in splits.rows()}


@pytest.mark.parametrize(
    ("cohort", "protocol", "said"),
    [
        (small(), "panda-gensus", "did you mean 'panda-gensis'"),
        (small(), "bright3-gensis", "'0'.*is none of Noncancerous"),
        (small(), "bright6", "no column 'subtype'"),
        (small(3), "panda-gensis", "PG-N07.*3 slides in 3 groups"),
        (Cohort(tuple(Member(f"s{i}", label="1") for i in range(9))), "panda-gensis", "same label"),
        (Cohort((Member("a"), Member("b"))), "panda-gensis", "no slide has a label"),
    ],
)
def test_a_cohort_that_does_not_fit_is_refused(cohort: Cohort, protocol: str, said: str) -> None:
    with pytest.raises(DataError, match="(?i)" + said):
        divide(protocol, cohort)


def test_what_is_not_known_is_said() -> None:
    notes = " ".join(divide("panda-gensis", small()).notes)
    assert "patients are not known" in notes
    assert "no duplicates are known" in notes
    alone = Cohort(tuple(Member(f"s{i}", label=str(i % 5)) for i in range(40)))
    notes = " ".join(divide("panda-gensis", alone).notes)
    assert "sites are not known" in notes
    assert "no slide of class 5" in notes


# The cohort's file


def test_a_cohort_reads_back_and_serves_as_labels(tmp_path: Path) -> None:
    members = (
        Member("b/2", "b/2.svs", "1", "p1", "r", "g1", "train", "b/2.xml",
               frozenset({"noisy", "x"}), {"gleason": "3+3"}),
        Member("a/1", "a/1.svs", "", "p2", more={"gleason": ""}),
    )  # fmt: skip
    path = tmp_path / "cohort.csv"
    write_cohort(path, Cohort(members, "cohort.csv"))
    assert read_cohort(path) == Cohort(members, "cohort.csv")
    labels = load_labels(path)
    assert labels.rows["b/2"].label == "1"
    assert labels.rows["b/2"].patient == "p1"
    assert labels.rows["a/1"].label is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,label\na,1\n", "no column 'slide'"),
        ("slide,label,label\na,1,1\n", "a column stands twice"),
        ("slide,split\na,training\n", "line 2: 'training'"),
        ("slide,label\na,1\na,2\n", "stands twice"),
        ("slide,label\na\n", "line 2 has 1 cells"),
    ],
)
def test_a_broken_cohort_is_refused_by_line(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text(text)
    with pytest.raises(DataError, match="(?i)" + said):
        read_cohort(tmp_path / "cohort.csv")


def test_empty_columns_are_not_written(tmp_path: Path) -> None:
    write_cohort(tmp_path / "c.csv", small(3))
    header: NDArray[np.str_] = np.array((tmp_path / "c.csv").read_text().splitlines()[0].split(","))
    assert header.tolist() == ["slide", "path", "label", "site"]
