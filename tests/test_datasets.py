"""PANDA and BRIGHT are read in the layout they are distributed in, and in no other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_datasets import (
    META,
    PANDA_HEADER,
    PANDA_ROWS,
    panda,
    read_rows,
    stub,
    write_pyramid,
    write_table,
)
from helpers_tiling import tissue_image

from pathgen.cli import main
from pathgen.datasets import divide, read_cohort
from pathgen.datasets.bright import read_bright
from pathgen.datasets.panda import (
    PROVIDERS,
    PUBLISHED,
    Lists,
    mask_settings,
    read_panda,
)
from pathgen.errors import DataError, NoInputError
from pathgen.stores.patches import PatchStore
from pathgen.tiling import TileConfig, tile

# PANDA


def test_panda_is_read_with_provider_grade_gleason_and_mask(tmp_path: Path) -> None:
    reading = read_panda(panda(tmp_path))
    found = [
        (m.slide, m.site, m.label, m.more["gleason"]) for m in reading.cohort.members
    ]  # fmt: skip
    assert found == sorted(PANDA_ROWS)
    last = reading.cohort.members[-1]
    assert last.flags == {"no_mask"}
    assert reading.cohort.members[0].annotation.endswith("96917_mask.tiff")
    assert reading.found["masks"] == 5
    assert "slides: 6 here, 10,616 published" in reading.differences
    assert not reading.lists


@pytest.mark.data
def test_the_published_counts_are_those_of_the_real_labels(tmp_path: Path) -> None:
    if not META.is_dir():
        pytest.skip("the labels of PANDA are not in ../shared/data/meta")
    (tmp_path / "train_images").mkdir()
    reading = read_panda(
        tmp_path, labels=META / "panda_train_5fold.csv",
        lists=Lists(
            duplicates=META / "panda_duplicates_imghash090.csv",
            clean=META / "panda_train_5fold_noisy_removed.csv",
        ),
    )  # fmt: skip
    members = reading.cohort.members
    counts = {"slides": len(members)}
    counts |= {site: sum(m.site == site for m in members) for site in PROVIDERS}
    counts |= {f"isup {g}": sum(m.label == g for m in members) for g in "012345"}
    assert counts == {name: n for name, n in PUBLISHED.items() if name != "masks"}
    assert len(reading.lists["missing"]) == 10_616  # kept, and said
    assert reading.lists["problems"] == (
        "line 7275: b0a92a74cb53899311acc30b7405e101 is ISUP 2, but Gleason 4+3 is 3",
    )
    clean = {row["image_id"] for row in read_rows(META / "panda_train_5fold_noisy_removed.csv")}
    assert {m.slide for m in members if "noisy" not in m.flags} == clean
    groups = read_rows(META / "panda_duplicates_imghash090.csv")
    of = {m.slide: m.group for m in members}
    assert all(of[row["image_id"]] == f"dup-{row['group_id']}" for row in groups)


def change(root: Path, line: int, column: str, value: str) -> Path:
    """PANDA with one cell changed; line 2 is the first row."""
    rows = [list(row) for row in PANDA_ROWS]
    rows[line - 2][PANDA_HEADER.index(column)] = value
    panda(root)
    write_table(root / "train.csv", PANDA_HEADER, rows)
    return root


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("isup_grade", "6", r"PG-N06.*isup_grade.*line 3: '6'"),
        ("isup_grade", "", r"line 3: ''"),
        ("data_provider", "Radboud UMC", r"data_provider.*line 3"),
        ("gleason_score", "4+6", r"gleason_score.*line 3: '4\+6'"),
        ("image_id", PANDA_ROWS[0][0], r"stands twice.*lines 2 and 3"),
    ],
)
def test_a_broken_row_is_refused_with_its_line(
    column: str, value: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="(?i)" + said):
        read_panda(change(tmp_path, 3, column, value))


def test_a_grade_that_contradicts_the_score_is_listed(tmp_path: Path) -> None:
    reading = read_panda(change(tmp_path, 3, "isup_grade", "3"))
    assert reading.lists["problems"] == (
        f"line 3: {PANDA_ROWS[1][0]} is ISUP 3, but Gleason 4+4 is 4",
    )


def test_another_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    with pytest.raises(
        DataError, match=r"(?i)PG-D20.*no train\.csv; it has: slides/.*train_images/"
    ):
        read_panda(tmp_path)
    write_table(tmp_path / "train.csv", ("id", "isup_grade"), [("a", 1)])
    with pytest.raises(DataError, match=r"(?i)no folder train_images"):
        read_panda(tmp_path)
    (tmp_path / "train_images").mkdir()
    with pytest.raises(DataError, match=r"(?i)no column 'image_id'"):
        read_panda(tmp_path)
    with pytest.raises(
        NoInputError, match=r"(?i)`pathgen datasets panda` without a folder says how"
    ):
        read_panda(tmp_path / "nowhere")


def test_files_that_are_missing_extra_empty_or_a_web_page_are_listed(tmp_path: Path) -> None:
    images = panda(tmp_path) / "train_images"
    names = [row[0] for row in PANDA_ROWS]
    (images / f"{names[0]}.tiff").unlink()
    (images / f"{names[1]}.tiff").write_bytes(b"")
    (images / f"{names[2]}.tiff").write_bytes(b"<!DOCTYPE html>Too many requests")
    stub(images / "stranger.tiff")
    reading = read_panda(tmp_path)
    assert reading.lists == {
        "missing": (names[0],), "empty": (names[1],), "no_slide": (names[2],),
        "extra": ("stranger.tiff",),
    }  # fmt: skip
    assert len(reading.cohort) == 6
    assert reading.found["slides"] == 5


def test_equal_files_are_one_group_and_join_a_given_one(tmp_path: Path) -> None:
    images = panda(tmp_path) / "train_images"
    names = [row[0] for row in PANDA_ROWS]
    for i in (0, 2, 4):
        stub(images / f"{names[i]}.tiff", "the same biopsy")
    given = write_table(
        tmp_path / "dup.csv", ("image_id", "group_id", "index_in_group"),
        [(names[4], 7, 0), (names[5], 7, 1)],
    )  # fmt: skip
    of = {m.slide: m.group for m in read_panda(tmp_path).cohort.members}
    assert of[names[0]] == of[names[2]] == of[names[4]] != ""
    assert of[names[1]] == of[names[5]] == ""
    of = {
        m.slide: m.group for m in read_panda(tmp_path, lists=Lists(duplicates=given)).cohort.members
    }
    assert {of[names[i]] for i in (0, 2, 4, 5)} == {"dup-7"}


def test_lists_of_others_mark_slides(tmp_path: Path) -> None:
    panda(tmp_path)
    names = [row[0] for row in PANDA_ROWS]
    noisy = write_table(
        tmp_path / "noisy.csv", ("image_id", "noise_ratio_10"), [(names[0], 0), (names[1], 1)]
    )
    pen = write_table(tmp_path / "pen.csv", ("image_id", "reason"), [(names[2], "marks")])
    reading = read_panda(tmp_path, lists=Lists(noisy=noisy, suspicious=pen))
    by = {m.slide: m for m in reading.cohort.members}
    # As in the public list: 0 is left out, 1 is kept.
    assert [by[n].flags - {"no_mask"} for n in names[:3]] == [{"noisy"}, set(), {"suspicious"}]
    assert by[names[2]].more["suspicion"] == "marks"
    clean = read_panda(tmp_path, lists=Lists(clean=noisy)).cohort.members
    assert {m.slide for m in clean if "noisy" not in m.flags} == {names[1]}
    strange = write_table(tmp_path / "strange.csv", ("image_id",), [("unknown",)])
    with pytest.raises(DataError, match=r"(?i)not in train\.csv.*line 2: 'unknown'"):
        read_panda(tmp_path, lists=Lists(clean=strange))
    with pytest.raises(DataError, match=r"(?i)both a noisy and a clean list"):
        read_panda(tmp_path, lists=Lists(noisy=noisy, clean=noisy))


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide and a mask of each provider in PANDA's format."""
    root = tmp_path_factory.mktemp("panda")
    rows = [PANDA_ROWS[0], PANDA_ROWS[1]]
    write_table(root / "train.csv", PANDA_HEADER, rows)
    image = tissue_image(1536, 1024)
    # Columns of patches with the values 0 to 5; Karolinska's masks have no more than 2.
    columns = np.repeat(np.arange(6, dtype=np.uint8), 256)
    for row in rows:
        values = np.broadcast_to(columns, image.shape[:2])
        if row[1] == "karolinska":
            values = np.minimum(values, 2)
        write_pyramid(root / "train_images" / f"{row[0]}.tiff", image, lossy=True)
        three = np.dstack([values, 0 * values, 0 * values])
        write_pyramid(root / "train_label_masks" / f"{row[0]}_mask.tiff", three, lossy=False)
    return root


#: What the competition's data page says of the values.
MEANING = {
    ("radboud", "native"): {
        1: "stroma",
        2: "benign",
        3: "gleason 3",
        4: "gleason 4",
        5: "gleason 5",
    },
    ("radboud", "cancer"): {1: "benign", 2: "benign", 3: "cancer", 4: "cancer", 5: "cancer"},
    ("karolinska", "native"): {1: "benign", 2: "cancer"},
    ("karolinska", "cancer"): {1: "benign", 2: "cancer"},
}


@pytest.mark.parametrize(("provider", "legend"), list(MEANING))
def test_masks_give_patches_the_share_of_each_class(
    provider: str, legend: str, slides: Path, tmp_path: Path
) -> None:
    root, meaning = slides, MEANING[provider, legend]
    cohort = tmp_path / "cohort.csv"
    main_done(["datasets", "panda", str(root), "-o", str(cohort), "--site", provider, "-q"])
    assert {m.site for m in read_cohort(cohort).members} == {provider}
    config = TileConfig.model_validate(
        {"masks": mask_settings(provider, legend), "patch_size": 128, "min_hematoxylin": 0.0}
    )
    report = tile(cohort, tmp_path / "tiles", config, masks=root / "train_label_masks", workers=0)
    assert [row.state for row in report.rows] == ["done"]
    store = PatchStore.open(next((tmp_path / "tiles").rglob("*.h5")))
    assert store.class_names == tuple(sorted(set(meaning.values())))
    side = round(store.attrs["patch_size_level0"])
    seen = set()
    for (x, _), own in zip(store.coords().tolist(), store.class_shares(), strict=True):
        columns = np.arange(x, x + side) // 256
        if provider == "karolinska":
            columns = np.minimum(columns, 2)
        for name, share in zip(store.class_names, own, strict=True):
            inside = [meaning.get(int(value)) == name for value in columns]
            assert share == pytest.approx(np.mean(inside), abs=0.02)
        seen |= {name for name, share in zip(store.class_names, own, strict=True) if share > 0.9}
    assert seen == set(store.class_names)


def main_done(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0


def test_no_such_legend() -> None:
    with pytest.raises(DataError, match=r"(?i)PG-D21"):
        mask_settings("elsewhere")


# BRIGHT


def bright(root: Path, style: str) -> Path:
    """The challenge's parts with one slide a subtype, its classes named as in `style`."""
    folders = {
        "bracs": {"PB": "Group_BT/Type_PB", "ADH": "Group_AT/Type_ADH", "IC": "Group_MT/Type_IC"},
        "plain": {"PB": "Non-cancerous/PB", "ADH": "Pre-cancerous/ADH", "IC": "Cancerous/IC"},
        "subtypes": {"PB": "PB", "ADH": "ADH", "IC": "IC"},
    }[style]
    for part in ("train", "Validation"):
        for i, (_, folder) in enumerate(folders.items()):
            stub(root / part / "WSIs" / folder / f"BRACS_{part[0]}{i}.svs")
    stub(root / "train" / "ROIs" / "whatever" / "BRACS_1_PB_1.svs")
    stub(root / "test" / "WSIs" / "BRACS_9.svs")
    return root


@pytest.mark.parametrize("style", ["bracs", "plain", "subtypes"])
def test_bright_is_read_from_its_folders(style: str, tmp_path: Path) -> None:
    cohort = read_bright(bright(tmp_path, style)).cohort
    found = {(m.slide, m.label, m.more["subtype"], m.split) for m in cohort.members}
    names = [("Noncancerous", "PB"), ("Precancerous", "ADH"), ("Cancerous", "IC")]
    assert found == {
        *((f"BRACS_t{i}", *names[i], "train") for i in range(3)),
        *((f"BRACS_V{i}", *names[i], "valid") for i in range(3)),
        ("BRACS_9", "", "", "test"),
    }


@pytest.mark.data
def test_bright_takes_the_challenges_targets_for_slides_without_folders(tmp_path: Path) -> None:
    targets = META / "bright_validation_targets.csv"
    if not targets.is_file():
        pytest.skip("the targets of BRIGHT are not in ../shared/data/meta")
    rows = read_rows(targets)
    bright(tmp_path, "plain")
    for row in rows[:-1]:
        stub(tmp_path / "Validation" / "WSIs" / f"{row['image_name']}.svs")
    reading = read_bright(tmp_path, labels=[targets])
    of = {m.slide: m for m in reading.cohort.members}
    for row in rows:
        member = of[row["image_name"]]
        task1 = ("Noncancerous", "Precancerous", "Cancerous").index(member.label)
        task2 = ("PB", "UDH", "FEA", "ADH", "DCIS", "IC").index(member.more["subtype"])
        assert (str(task1), str(task2)) == (row["Task1-target"], row["Task2-target"])
    assert reading.lists["missing"] == (rows[-1]["image_name"],)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("BRACS_t0", 0, 6)], r"Task2-target.*line 2: '6' is none of 0 to 5"),
        ([("BRACS_t0", "x", 0)], r"Task1-target.*line 2: 'x'"),
        ([("BRACS_t0", 0, 3)], r"two targets of a slide disagree.*line 2: ADH"),
        ([("BRACS_t0", 2, 5)], r"PG-D20.*folder says Noncancerous.*targets.csv, line 2 says"),
        ([("BRACS_t0", 0, 0), ("BRACS_t0", 0, 1)], r"twice.*line 2 and targets.csv, line 3"),
    ],
)
def test_broken_targets_are_refused(rows: list[object], said: str, tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "targets.csv", ("image_name", "Task1-target", "Task2-target"), rows
    )  # type: ignore[arg-type]
    with pytest.raises(DataError, match="(?i)" + said):
        read_bright(bright(tmp_path, "plain"), labels=[path])


def test_bright_never_guesses(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?i)no folder train"):
        read_bright(tmp_path)
    stub(tmp_path / "train" / "WSIs" / "a.svs")
    with pytest.raises(DataError, match=r"(?i)no slide has a class"):
        read_bright(tmp_path)
    stub(tmp_path / "train" / "WSIs" / "Invasive" / "b.svs")
    with pytest.raises(DataError, match=r"(?i)folder 'Invasive' is no class"):
        read_bright(tmp_path)
    (tmp_path / "train" / "WSIs" / "Invasive").rename(tmp_path / "train" / "WSIs" / "Cancerous")
    stub(tmp_path / "train" / "WSIs" / "Cancerous" / "PB" / "c.svs")
    with pytest.raises(DataError, match=r"(?i)Cancerous/PB: PB is of group BT"):
        read_bright(tmp_path)


# The commands


def test_without_a_folder_a_command_says_how_to_get_the_data(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, word in (("panda", "kaggle"), ("bright", "register"), ("bracs", "bracs.icar.cnr.it"),
                       ("camelyon16", "CC0"), ("folder", "class")):  # fmt: skip
        main_done(["datasets", name])
        assert word in capsys.readouterr().out


def test_from_a_folder_to_splits_by_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [(f"{i:032x}", ("karolinska", "radboud")[i % 2], str(i // 2 % 6), score)
            for i in range(48)
            for score in [("negative", "3+3", "3+4", "4+3", "4+4", "5+5")[i // 2 % 6]]]  # fmt: skip
    root = panda(tmp_path / "data", rows)
    out = tmp_path / "lists" / "cohort.csv"
    main_done(["datasets", "panda", str(root), "-o", str(out)])
    assert "slides: 48 here, 10,616 published" in capsys.readouterr().out
    cohort = read_cohort(out)
    assert (out.parent / cohort.members[0].path).is_file()
    facts = json.loads(out.with_suffix(".json").read_text())
    assert facts["slides"] == 48
    assert str(tmp_path) not in out.with_suffix(".json").read_text()
    before = out.read_bytes(), out.with_suffix(".json").read_bytes()
    main_done(["datasets", "panda", str(root), "-o", str(out), "-q"])
    assert (out.read_bytes(), out.with_suffix(".json").read_bytes()) == before
    path = tmp_path / "splits.csv"
    main_done(["datasets", "splits", str(out), "--protocol", "panda-gensis", "-o", str(path)])
    written = [tuple(row.values()) for row in read_rows(path)]
    splits = divide("panda-gensis", cohort)
    assert written == [(slide, str(i), part) for slide, i, part in splits.rows()]
    facts = json.loads(path.with_suffix(".json").read_text())
    assert (facts["protocol"], facts["version"], len(facts["splits"])) == ("panda-gensis", 1, 5)


def test_strict_writes_nothing_where_counts_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = panda(tmp_path / "data"), tmp_path / "cohort.csv"
    with pytest.raises(SystemExit) as stop:
        main(["datasets", "panda", str(root), "-o", str(out), "--strict"])
    assert stop.value.code == 2
    assert "slides: 6 here, 10,616 published" in capsys.readouterr().err
    assert not out.exists()


def test_a_lost_slide_of_a_cohort_fails_in_the_ledger(tmp_path: Path) -> None:
    root, out = panda(tmp_path / "data"), tmp_path / "cohort.csv"
    (root / "train_images" / f"{PANDA_ROWS[0][0]}.tiff").unlink()
    main_done(["datasets", "panda", str(root), "-o", str(out), "-q"])
    report = tile(out, tmp_path / "tiles", TileConfig(), workers=0)
    states = {row.slide.rpartition("/")[2]: row.reason for row in report.rows}
    assert states[PANDA_ROWS[0][0]] == "PG-N02"
    assert len(states) == len(PANDA_ROWS)
