"""BRACS, CAMELYON16 and folders of one's own are read as they lie, and nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers_datasets import stub, write_table, write_xlsx

from pathgen.datasets.bracs import read_bracs
from pathgen.datasets.camelyon16 import read_camelyon16
from pathgen.datasets.folder import read_folder
from pathgen.errors import DataError, NoInputError

HEADER = ["WSI Filename", "Patient Id", "RoI", "WSI label", "Set"]
SLIDES = [
    ("BRACS_264", 1, 4, "PB", "Training"), ("BRACS_265", 1, 0, "N", "Training"),
    ("BRACS_280", 2, 1, "ADH", "Validation"), ("BRACS_281", 3, 2, "IC", "Testing"),
]  # fmt: skip
FOLDER = {"Training": "train", "Validation": "val", "Testing": "test"}
GROUP = {"PB": "BT", "N": "BT", "ADH": "AT", "IC": "MT"}


def bracs(root: Path, rows: list[tuple[object, ...]] | None = None) -> Path:
    """BRACS's folders; the workbook has the sheets of the real one."""
    for name, _, _, label, part in SLIDES:
        place = f"{FOLDER[part]}/Group_{GROUP[label]}/Type_{label}/{name}.svs"
        stub(root / "BRACS_WSI" / place)
    sheet = [HEADER, *(list(row) for row in (SLIDES if rows is None else rows))]
    write_xlsx(root / "BRACS.xlsx", {
        "WSI_with_RoI_Distribution": [["WSI Filename", "N"], ["BRACS_264", 2]],
        "WSI_Information": sheet,  # type: ignore[dict-item]
    })  # fmt: skip
    return root


def test_bracs_is_read_with_patients_parts_and_both_labels(tmp_path: Path) -> None:
    reading = read_bracs(bracs(tmp_path))
    found = {
        (m.slide, m.patient, m.label, m.more["subtype"], m.split) for m in reading.cohort.members
    }
    assert found == {
        ("BRACS_264", "1", "benign", "PB", "train"), ("BRACS_265", "1", "benign", "N", "train"),
        ("BRACS_280", "2", "atypical", "ADH", "valid"),
        ("BRACS_281", "3", "malignant", "IC", "test"),
    }  # fmt: skip
    assert all((tmp_path / m.path).is_file() for m in reading.cohort.members)
    assert "patients: 3 here, 189 published" in reading.differences


def test_bracs_summary_may_be_a_csv_or_absent(tmp_path: Path) -> None:
    whole = read_bracs(bracs(tmp_path)).cohort
    summary = write_table(tmp_path / "summary.csv", HEADER, SLIDES)
    assert read_bracs(tmp_path, summary=summary).cohort == whole
    (tmp_path / "BRACS.xlsx").unlink()
    reading = read_bracs(tmp_path)
    assert {m.patient for m in reading.cohort.members} == {""}
    assert any("no BRACS.xlsx" in note for note in reading.notes)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("BRACS_264", 1, 4, "UDH", "Training"), r"folder says PB, line 2 of the summary says UDH"),
        (("BRACS_264", 1, 4, "PB", "Testing"), r"folder says train, line 2 .* says test"),
        (("BRACS_264", 1, 4, "XX", "Training"), r"PG-N06.*line 2: 'XX'"),
        (("BRACS_264", 1, 4, "PB", "Holdout"), r"line 2: 'Holdout'.*Training, Validation"),
        (("BRACS_280", 2, 1, "ADH", "Validation"), r"stands twice.*lines 2 and 4"),
    ],
)
def test_a_broken_summary_is_refused(line: tuple[object, ...], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="(?i)" + said):
        read_bracs(bracs(tmp_path, [line, *SLIDES[1:]]))


def test_bracs_slides_that_are_lost_or_not_listed_are_said(tmp_path: Path) -> None:
    bracs(tmp_path, [*SLIDES[:3], ("BRACS_999", 9, 0, "IC", "Testing")])
    reading = read_bracs(tmp_path)
    assert reading.lists == {"missing": ("BRACS_999",), "extra": ("BRACS_281",)}
    assert reading.cohort.members[-1].flags == {"missing"}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda p: p.write_bytes(b"PK\3\4 no zip"), "not a readable workbook"),
        (lambda p: write_xlsx(p, {"a": [["x"]], "b": [["x"]]}), "no sheet 'WSI_Information'.*a, b"),
        (lambda p: write_xlsx(p, {"WSI_Information": [HEADER]}), "no rows in this sheet"),
        (lambda p: write_xlsx(p, {"only": [["WSI Filename"], ["x"]]}), "no column 'Patient Id'"),
    ],
)
def test_a_broken_workbook_is_refused(damage: object, said: str, tmp_path: Path) -> None:
    bracs(tmp_path)
    damage(tmp_path / "BRACS.xlsx")  # type: ignore[operator]
    with pytest.raises(DataError, match="(?i)" + said):
        read_bracs(tmp_path)


def test_a_bracs_slide_outside_of_its_folders_is_refused(tmp_path: Path) -> None:
    root = bracs(tmp_path)
    stub(root / "BRACS_WSI" / "train" / "Group_BT" / "BRACS_1.svs")
    with pytest.raises(DataError, match=r"(?i)BRACS_1\.svs is in no folder of a subtype"):
        read_bracs(root)


# CAMELYON16


def camelyon(root: Path, aws: bool = False) -> Path:
    """Either layout, with the annotations; reference.csv has no header."""
    places = {"normal": "training/normal", "tumor": "training/tumor", "test": "testing/images"}
    for kind, place in places.items():
        for i in (1, 2):
            stub(root / ("images" if aws else place) / f"{kind}_{i:03}.tif")
    notes = {"tumor_001": "training/lesion_annotations", "test_001": "testing/lesion_annotations"}
    for name, place in notes.items():
        path = root / ("annotations" if aws else place) / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("<ASAP_Annotations/>")
    reference = root / ("reference.csv" if aws else "testing/reference.csv")
    reference.write_text("test_001,Tumor,IDC,Macro\ntest_002,Normal,None,None\n")
    return root


@pytest.mark.parametrize("aws", [False, True])
def test_camelyon16_is_read_in_both_layouts(aws: bool, tmp_path: Path) -> None:
    reading = read_camelyon16(camelyon(tmp_path, aws))
    found = {
        (m.slide, m.label, m.split, bool(m.annotation), m.more["metastasis"])
        for m in reading.cohort.members
    }
    assert found == {
        ("normal_001", "normal", "train", False, ""), ("normal_002", "normal", "train", False, ""),
        ("tumor_001", "tumor", "train", True, ""), ("tumor_002", "tumor", "train", False, ""),
        ("test_001", "tumor", "test", True, "Macro"), ("test_002", "normal", "test", False, "None"),
    }  # fmt: skip
    assert any("1 slides with metastases have no outlines" in note for note in reading.notes)
    assert "unlabeled" not in reading.lists


def test_a_camelyon16_slide_that_the_reference_lacks_is_said(tmp_path: Path) -> None:
    stub(camelyon(tmp_path) / "testing" / "images" / "test_003.tif")
    assert read_camelyon16(tmp_path).lists["unlabeled"] == ("test_003",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("test_001,Tumor\ntest_002,Benign\n", "line 2: test_002, Benign"),
        ("test_001,Tumor\ntest_001,Tumor\n", "stands twice.*line 2"),
        ("image,type\ntest_001,Tumor\n", None),
    ],
)
def test_camelyon16_reference_is_checked(text: str, said: str | None, tmp_path: Path) -> None:
    (camelyon(tmp_path) / "testing" / "reference.csv").write_text(text)
    if said is None:
        by = {m.slide: m.label for m in read_camelyon16(tmp_path).cohort.members}
        assert (by["test_001"], by["test_002"]) == ("tumor", "")
        return
    with pytest.raises(DataError, match="(?i)" + said):
        read_camelyon16(tmp_path)


def test_camelyon16_never_guesses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?i)PG-D20.*neither training/normal"):
        read_camelyon16(tmp_path)
    root = camelyon(tmp_path)
    stub(root / "training" / "tumor" / "tumor_001_mask.tif")
    with pytest.raises(DataError, match=r"(?i)tumor_001_mask\.tif is no slide"):
        read_camelyon16(root)
    (root / "training" / "tumor" / "tumor_001_mask.tif").unlink()
    stub(root / "training" / "tumor" / "normal_003.tif")
    with pytest.raises(DataError, match=r"(?i)normal_003\.tif is in the folder tumor"):
        read_camelyon16(root)


# A folder


def test_folders_are_classes_and_train_and_test_are_parts(tmp_path: Path) -> None:
    for place in ("train/a/1.svs", "train/b/sub/2.svs", "val/a/3.svs", "test/b/4.svs"):
        stub(tmp_path / place)
    found = {(m.label, m.split) for m in read_folder(tmp_path).cohort.members}
    assert found == {("a", "train"), ("b", "train"), ("a", "valid"), ("b", "test")}
    stub(tmp_path / "5.svs")
    with pytest.raises(DataError, match=r"(?i)5\.svs lies in no folder of a class"):
        read_folder(tmp_path)


def test_a_csv_says_label_patient_site_and_part(tmp_path: Path) -> None:
    for place in ("one/1.svs", "two/1.svs", "2.svs"):
        stub(tmp_path / "slides" / place)
    table = write_table(
        tmp_path / "labels.csv", ("slide", "grade", "case_id", "site", "split"),
        [("one/1.svs", 3, "p1", "north", "Training"), ("two/1", "NA", "p1", "south", ""),
         ("9.svs", 1, "p3", "", "")],
    )  # fmt: skip
    reading = read_folder(tmp_path / "slides", labels=table)
    found = {m.slide: (m.label, m.patient, m.site, m.split) for m in reading.cohort.members}
    assert found == {
        "one/1": ("3", "p1", "north", "train"), "two/1": ("", "p1", "south", ""),
        "2": ("", "", "", ""),
    }  # fmt: skip
    assert reading.lists["missing"] == ("9",)
    assert "2 of 3 slides have no label" in reading.notes
    write_table(table, ("slide", "label"), [("1.svs", 3)])
    with pytest.raises(DataError, match=r"(?i)a row fits several slides"):
        read_folder(tmp_path / "slides", labels=table)
    write_table(table, ("slide", "label", "split"), [("2", 3, "holdout")])
    with pytest.raises(DataError, match=r"(?i)line 2: 'holdout'"):
        read_folder(tmp_path / "slides", labels=table)


def test_a_folder_without_slides_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match=r"(?i)PG-N01"):
        read_folder(tmp_path)
