"""Labels from CSVs of all sorts, bags, and splits that keep patients together."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers_mil import write_store
from hypothesis import given, settings
from hypothesis import strategies as st

from pathgen.data.bags import Bags, load_bags, load_labels
from pathgen.data.labels import class_order, known, slide_key
from pathgen.data.splits import folds, shortfalls
from pathgen.errors import DataError, NoInputError, StoreError

NAMES = ("S-001", "S-002", "S-003", "S-004")


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    for i, name in enumerate(NAMES):
        write_store(folder, name, np.full((i + 1, 3), i, np.float32))
    return folder


def _csv(folder: Path, content: str | bytes) -> Path:
    path = folder / "labels.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- the CSV --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "PG-N06 no labels in this file: 'labels.csv'. it has nothing."),
        (b"slide,label\n", "it has a header but no rows"),
        (b"S-001,a\nS-002,b\n", "no slide column: 'labels.csv'. its first line has: S-001, a"),
        (b"slide,diagnosis\nS-001,a\n", "no label column"),
        (b"slide,label\nS-001,a\nS-002\n", "line 3 has 1 cells, the header 2: S-002"),
        (b"slide,label\nS-001,a,b\n", "line 2 has 3 cells, the header 2: S-001, a, b"),
        (b"slide,label\nS-001,a\nS-001.svs,b\n", "'S-001.svs' is 'a' in line 2 and 'b' in line 3"),
        (b"slide,label\n,a\n", "row without a slide: 'labels.csv'. line 2: , a"),
        (b"PK\x03\x04\x00\x00", "not a CSV: 'labels.csv'. it is a binary file. save the sheet"),
        (b'slide,label\n"S-001,a\nS-002,b\n', "line"),
        (b"slide,label,label\nS-001,a,b\n", "several label columns"),
        (b"slide,grade,class\nS-001,1,x\n", "say which with --label-column"),
        (b"slide,label\nS-001,1\nS-002,1.0\n", "the same number"),
        (b"slide,label\nS-001,Tumor\nS-002,tumor\n", "they differ in case only"),
        (b"slide,label\nS-001,\nS-002,\n", "no slide has a label: 'labels.csv'. 4 of 4 slides"),
        (b"slide,label\nx/S-001,a\ny/S-001,b\n", "several rows fit one slide"),
    ],
)
def test_a_bad_csv_is_refused_with_its_line(
    features: Path, tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(DataError) as error:
        load_bags(features, _csv(tmp_path, content))
    assert message.casefold() in str(error.value).casefold()
    assert error.value.code == "PG-N06"


def test_a_missing_csv_is_named(features: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file") as error:
        load_bags(features, tmp_path / "none.csv")
    assert "none.csv" in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        "slide,label,patient\nS-001,1,p\nS-002,2,q\n",
        "wsi;isup_grade;case_id\nS-001;1;p\nS-002;2;q\n",
        "Patient\tSlide_ID\tGrade\np\tS-001\t1\nq\tS-002\t2\n",
        "slide,label,patient,\nS-001,1,p,\nS-002,2,q,\n",
        "slide,label,patient\nS-001,1,p,\nS-002,2,q,\n",
        "\ufeffslide,label,patient\r\n S-001 , 1,p\r\n\r\nS-002,2,q\r\n",
        'image_path,target,patient\n"C:\\slides\\S-001.svs",1,p\n/data/S-002.ome.tiff,2,q\n',
        "slide,label,patient\nS-001,1,p\nS-001,1,p\nS-002,2,q\n",
    ],
    ids=["plain", "semicolon", "tab", "comma-ends", "comma-in-rows", "bom", "paths", "repeat"],
)
def test_every_dialect_reads_the_same(features: Path, tmp_path: Path, content: str) -> None:
    bags, _ = load_bags(features, _csv(tmp_path, content))
    assert list(bags.names) == ["S-001", "S-002"]
    assert bags.classes == ("1", "2")
    assert bags.labels.tolist() == [0, 1]
    assert list(bags.groups) == ["p", "q"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    table = load_labels(_csv(tmp_path, "slide,label\nMüller,größer\n".encode(encoding)))
    assert table.rows["Müller"].label == "größer"


def test_cells_stay_text(tmp_path: Path) -> None:
    table = load_labels(_csv(tmp_path, "slide,label\n007,01\n1e3,none\nNA,None\n"))
    assert {key: row.label for key, row in table.rows.items()} == {
        "007": "01", "1e3": "none", "NA": "None"
    }  # fmt: skip
    assert table.notes == ()


def test_cells_for_nothing_known_are_no_label_and_counted(features: Path, tmp_path: Path) -> None:
    labels = _csv(tmp_path, "slide,label\nS-001,a\nS-002,NA\nS-003,none\nS-004,NaN\nx,n/a\n")
    bags, report = load_bags(features, labels)
    assert (list(bags.names), bags.classes) == (["S-001", "S-003"], ("a", "none"))
    assert report.unlabeled == ("S-002", "S-004")
    assert "3 label cells ('NA', 'NaN', 'n/a') read as no label" in report.messages
    with pytest.raises(DataError, match="1 label cell \\('NA'\\) read as no label"):
        load_bags(features, _csv(tmp_path, "slide,label\nS-001,NA\n"))


def test_a_label_column_by_name(tmp_path: Path) -> None:
    path = _csv(tmp_path, "image_name,Task1-target,Task2-target\nB1,0,5\n")
    assert load_labels(path, label_column="task2-TARGET").rows["B1"].label == "5"
    with pytest.raises(DataError, match="Did you mean 'Task1-target'"):
        load_labels(path, label_column="Task1_target")


@given(
    st.lists(
        st.tuples(
            st.text("abc_-. ", min_size=1, max_size=6).filter(lambda t: slide_key(t)),
            st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=8),
        ),
        min_size=1, max_size=12, unique_by=lambda row: slide_key(row[0]),
    ),
    st.sampled_from(",;\t"),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], separator: str
) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=separator).writerows([("slide", "label"), *rows])
    table = load_labels(_csv(tmp_path_factory.mktemp("l"), text.getvalue()))
    assert {key: row.label for key, row in table.rows.items()} == {
        slide_key(slide): known(label.strip()) for slide, label in rows
    }


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("S1.svs", "S1"), ("a/b/S1.ome.tiff", "a/b/S1"), (r"a\S1.NDPI", "a/S1"),
        ("./S1", "S1"), ("TCGA-AA.01.2.svs", "TCGA-AA.01.2"), ("S1.v2", "S1.v2"),
    ],
)  # fmt: skip
def test_slide_key(text: str, key: str) -> None:
    assert slide_key(text) == key


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=20))
def test_numbers_sort_by_value(numbers: list[int]) -> None:
    assert [int(c) for c in class_order([str(n) for n in numbers])] == sorted(set(numbers))


def test_words_sort_alphabetically() -> None:
    assert class_order(["b", "10", "a", "9"]) == ("10", "9", "a", "b")


# --- joining --------------------------------------------------------------------------------


def test_bags_hold_the_stores_vectors(features: Path, tmp_path: Path) -> None:
    bags, report = load_bags(
        features, _csv(tmp_path, "slide,label\nS-004,b\nS-003,a\nS-002,b\nS-001,a\n")
    )
    assert list(bags.names) == list(NAMES)
    assert [len(x) for x in bags.features] == [1, 2, 3, 4]
    assert all((x == i).all() and x.dtype == np.float32 for i, x in enumerate(bags.features))
    assert list(bags.groups) == list(NAMES)  # no patient column: each slide its own
    assert report.messages == ()
    assert bags.dim == 3
    chosen = bags.select([2, 0])
    assert (list(chosen.names), chosen.labels.tolist()) == (["S-003", "S-001"], [0, 0])
    assert chosen.classes == bags.classes


def test_slides_left_out_are_counted(features: Path, tmp_path: Path) -> None:
    labels = _csv(tmp_path, "slide,label\nS-001,a\nS-002,b\nS003,a\nS-004,\n")
    bags, report = load_bags(features, labels)
    assert list(bags.names) == ["S-001", "S-002"]
    assert report.unlabeled == ("S-003", "S-004")
    assert report.messages == (
        "2 of 4 slides have no label ('S-003', 'S-004')",
        "1 label matches no slide, did you mean 'S-003' for 'S003'?",
    )
    with pytest.raises(DataError, match="do not fit together"):
        load_bags(features, labels, strict=True)


def test_an_empty_bag_is_left_out_and_counted(tmp_path: Path) -> None:
    write_store(tmp_path / "f", "full", np.ones((2, 3), np.float32))
    write_store(tmp_path / "f", "blank", np.ones((0, 3), np.float32))
    bags, report = load_bags(tmp_path / "f", _csv(tmp_path, "slide,label\nfull,a\nblank,b\n"))
    assert list(bags.names) == ["full"]
    assert report.messages == ("1 labeled slide has no patches ('blank')",)


def test_folders_tell_slides_of_one_name_apart(tmp_path: Path) -> None:
    for site in ("x", "y"):
        write_store(tmp_path / "f", f"{site}/S1", np.ones((1, 3), np.float32))
    bags, _ = load_bags(
        tmp_path / "f", _csv(tmp_path, "slide,label\n/old/x/S1.svs,a\n/old/y/S1.svs,b\n")
    )
    assert [bags.classes[i] for i in bags.labels] == ["a", "b"]
    with pytest.raises(DataError, match="a row fits two slides"):
        load_bags(tmp_path / "f", _csv(tmp_path, "slide,label\nS1,a\n"))


def test_the_patient_known_at_tiling_counts(tmp_path: Path) -> None:
    write_store(tmp_path / "f", "A", np.ones((1, 3), np.float32), patient="p1")
    bags, _ = load_bags(tmp_path / "f", _csv(tmp_path, "slide,label\nA,1\n"))
    assert list(bags.groups) == ["p1"]


@pytest.mark.parametrize(
    "header",
    [
        "patient", "Patient ID", "patient-id", "PatientID", "case", "Case_ID", "case_submitter_id",
        "subject", "Subject ID", "participant", "bcr_patient_barcode",
    ],
)  # fmt: skip
def test_a_patient_column_of_any_common_name_keeps_slides_together(
    features: Path, tmp_path: Path, header: str
) -> None:
    labels = _csv(tmp_path, f"slide,{header},label\nS-001,p,a\nS-002,p,b\nS-003,q,a\nS-004,q,b\n")
    bags, report = load_bags(features, labels)
    assert list(bags.groups) == ["p", "p", "q", "q"]
    assert (report.patients, report.patient_source) == (2, f"column {header!r}")
    assert report.messages == ()


def test_a_patient_column_by_name(features: Path, tmp_path: Path) -> None:
    labels = _csv(tmp_path, "slide,label,Patient Nr,site\nS-001,a,p,x\nS-002,b,p,x\n")
    bags, report = load_bags(features, labels, patient_column="patient nr")
    assert list(bags.groups) == ["p", "p"]
    assert report.patient_note == "1 patient (column 'Patient Nr')"
    bags, report = load_bags(features, labels)
    assert list(bags.groups) == ["S-001", "S-002"]
    assert report.messages[-1] == (
        "column 'Patient Nr' is not read; if it is the patient, use --patient-column"
    )
    with pytest.raises(DataError, match=r"no column 'patient_no'.*Did you mean 'Patient Nr'"):
        load_bags(features, labels, patient_column="patient_no")
    twice = _csv(tmp_path, "slide,label,Patient ID,patient_id\nS-001,a,p,q\n")
    with pytest.raises(DataError, match=r"several patient columns.* with --patient-column"):
        load_bags(features, twice)
    assert load_labels(twice, patient_column="patient_id").rows["S-001"].patient == "q"


def test_it_is_said_where_patients_come_from(tmp_path: Path) -> None:
    for name, patient in (("A", "p"), ("B", "p"), ("C", None), ("D", None)):
        write_store(tmp_path / "f", name, np.ones((1, 3), np.float32), patient=patient)
    bags, report = load_bags(tmp_path / "f", _csv(tmp_path, "slide,label\nA,1\nB,2\nC,1\n"))
    assert list(bags.groups) == ["p", "p", "C"]
    assert report.patient_note == "2 patients (known from tiling)"
    assert report.messages[1:] == (
        "1 slide of no known patient ('C'): each counts as a patient of its own",
    )
    _, report = load_bags(tmp_path / "f", _csv(tmp_path, "slide,label\nC,1\nD,2\n"))
    assert report.patient_note == (
        "2 patients (no patient column: each slide counts as a patient of its own)"
    )
    text = "slide,label,patient\nA,1,\nB,2,q\nC,1,na\nD,2,q\n"
    bags, report = load_bags(tmp_path / "f", _csv(tmp_path, text), strict=True)
    assert list(bags.groups) == ["p", "q", "C", "q"]
    assert report.patient_note == "3 patients (column 'patient')"
    assert report.messages[0] == "2 rows without a patient ('A', 'C')"


def test_a_label_column_is_not_the_patient(features: Path, tmp_path: Path) -> None:
    labels = _csv(tmp_path, "slide,case\nS-001,easy\nS-002,hard\nS-003,hard\n")
    bags, _ = load_bags(features, labels, label_column="case")
    assert list(bags.groups) == ["S-001", "S-002", "S-003"]


def test_features_that_do_not_belong_together(tmp_path: Path) -> None:
    labels = _csv(tmp_path, "slide,label\nA,1\nB,2\n")
    write_store(tmp_path / "f", "A", np.ones((1, 3), np.float32))
    write_store(tmp_path / "f", "B", np.ones((1, 3), np.float32), encoder="e2")
    with pytest.raises(DataError, match="features of different encoders"):
        load_bags(tmp_path / "f", labels)
    write_store(tmp_path / "g", "A", np.ones((1, 3), np.float32))
    with pytest.raises(DataError, match="two feature stores of one slide"):
        load_bags([tmp_path / "f" / "A.h5", tmp_path / "g"], labels)


def test_features_that_are_not_finite(tmp_path: Path) -> None:
    write_store(tmp_path / "f", "A", np.array([[1, np.nan]], np.float32))
    with pytest.raises(DataError, match="1 of 1 vectors") as error:
        load_bags(tmp_path / "f", _csv(tmp_path, "slide,label\nA,1\n"))
    assert (error.value.code, error.value.where) == ("PG-D06", "A")


def test_no_features(tmp_path: Path) -> None:
    with pytest.raises(NoInputError):
        load_bags(tmp_path, _csv(tmp_path, "slide,label\nA,1\n"))
    (tmp_path / "A.h5").write_bytes(b"no store")
    with pytest.raises(StoreError):
        load_bags(tmp_path / "A.h5", tmp_path / "labels.csv")


def test_bags_need_no_torch() -> None:
    code = "import pathgen.data.bags, pathgen.data.splits, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_fields_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        Bags([], np.zeros(1, np.int64), ["a"], ["a"], ("0", "1"))


# --- splits ---------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 15)), min_size=6, max_size=60),
    st.integers(2, 5),
    st.integers(0, 3),
)
@settings(max_examples=50, deadline=None)
def test_patients_never_part(rows: list[tuple[int, int]], k: int, seed: int) -> None:
    labels, groups = [a for a, _ in rows], [f"p{b}" for _, b in rows]
    try:
        splits = folds(labels, groups, k, seed)
    except DataError:  # what is impossible has a test of its own
        return
    assert len(splits) == k
    assert sorted(np.concatenate([s.test for s in splits])) == list(range(len(rows)))
    for split in splits:
        assert len(split.test)
        assert len(split.train)
        parts = [set(part.tolist()) for part in split]
        assert set.union(*parts) == set(range(len(rows)))
        owners = [{groups[i] for i in part} for part in parts]
        assert not owners[0] & owners[1]
        assert not owners[0] & owners[2]
        assert not owners[1] & owners[2]
        assert len({labels[i] for i in split.train}) >= 2
    assert all((a == b).all() for x, y in zip(splits, folds(labels, groups, k, seed), strict=True)
               for a, b in zip(x, y, strict=True))  # fmt: skip


def test_splits_are_stratified_and_depend_on_the_seed() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(6, 600, p=[0.27, 0.25, 0.13, 0.12, 0.12, 0.11])
    groups = [f"p{i // 2}" for i in range(600)]
    share = np.bincount(labels) / 600
    splits = folds(labels, groups, 5, seed=0)
    for split in splits:
        there = np.bincount(labels[split.test], minlength=6) / len(split.test)
        assert np.abs(there - share).max() < 0.03
        assert 0.15 < len(split.valid) / (len(split.valid) + len(split.train)) < 0.25
    assert not shortfalls(splits, labels, "012345")
    other = folds(labels, groups, 5, seed=1)
    assert any(set(a.test) != set(b.test) for a, b in zip(splits, other, strict=True))


def test_impossible_splits_say_why() -> None:
    with pytest.raises(DataError, match="3 patients \\(of 6 slides\\) for 5 folds") as error:
        folds([0, 1] * 3, list("aabbcc"), 5)
    assert error.value.hint == "use --folds 3"
    assert error.value.code == "PG-N07"
    with pytest.raises(DataError, match="all slides have the same label"):
        folds([1] * 6, list("abcdef"), 2)
    with pytest.raises(DataError, match="train on one class only"):
        folds([0, 0, 0, 0, 0, 1], list("abcdef"), 2)


def test_what_could_not_be_stratified_is_said() -> None:
    labels = np.array([0] * 6 + [1] * 6 + [2])
    splits = folds(labels, [str(i) for i in range(13)], 3, seed=0)
    texts = shortfalls(splits, labels, ("a", "b", "rare"))
    assert sum("class rare in test" in text for text in texts) == 2
    assert sum("class rare in training" in text for text in texts) == 1
    assert all(len(s.valid) == 0 for s in folds([0, 1] * 2, list("abcd"), 2, valid_share=0))
    tiny = folds([0, 1, 0, 1], list("abcd"), 2)
    assert "has no validation part" in shortfalls(tiny, [0, 1, 0, 1], "ab")[0]
