"""Folders, files, globs and lists become slides: each once, with a safe name of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pathgen.errors import DataError, NoInputError
from pathgen.tiling import find_slides
from pathgen.tiling.inputs import SlideInput, safe_name, series_of
from pathgen.tiling.lists import read_list


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def names(inputs: object) -> list[str]:
    return [slide.name for slide in find_slides(inputs)[0]]  # type: ignore[arg-type]


def by_name(inputs: object) -> dict[str, SlideInput]:
    return {slide.name: slide for slide in find_slides(inputs)[0]}  # type: ignore[arg-type]


def test_folder_is_searched_and_sorted(tmp_path: Path) -> None:
    touch(tmp_path, "b.svs", "sub/c.ndpi", "a.tif", "sub/deep/d.ome.tif")
    assert names(tmp_path) == ["a", "b", "sub/c", "sub/deep/d"]
    assert names(str(tmp_path)) == names([tmp_path, tmp_path / "a.tif"])


def test_what_is_no_slide_is_counted(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "notes.txt", "x.xml", "y.xml", "Thumbs.db", ".DS_Store", "._a.svs",
          "labels.csv", "preview.jpg", "b.svs.part", ".pathgen-tmp-h+1+2+a.h5")  # fmt: skip
    slides, ignored = find_slides(tmp_path)
    assert [slide.name for slide in slides] == ["a"]
    assert ignored == {
        ".csv": 1, ".db": 1, ".jpg": 1, ".part": 1, ".txt": 1, ".xml": 2, "._*": 1, "hidden": 2
    }  # fmt: skip


def test_plain_images_count_where_there_are_no_slides(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.jpg")
    assert names(tmp_path) == ["a", "b"]


def test_slides_of_many_files_are_one_input_each(tmp_path: Path) -> None:
    touch(tmp_path, "m.mrxs", "m/Slidedat.ini", "m/Data0000.dat", "v/slide.vms", "v/slide.jpg",
          "z.ome.zarr/.zattrs", "z.ome.zarr/0/0.tif", "d/1.dcm", "d/2.dcm")  # fmt: skip
    for name in ("1", "2"):
        uid = b"\x20\x00\x0e\x00UI\x04\x001.2\0"
        (tmp_path / f"d/{name}.dcm").write_bytes(b"\0" * 128 + b"DICM" + uid)
    assert names(tmp_path) == ["d", "m", "v/slide", "z"]
    assert by_name(tmp_path)["d"].path == tmp_path / "d"


def test_a_folder_of_several_dicom_series_has_a_slide_for_each(tmp_path: Path) -> None:
    for name, uid in (("a", b"1.2\0"), ("b", b"1.3\0"), ("c", b"1.2\0")):
        touch(tmp_path, f"d/{name}.dcm")
        body = b"\0" * 128 + b"DICM" + b"\x20\x00\x0e\x00UI\x04\x00" + uid
        (tmp_path / f"d/{name}.dcm").write_bytes(body)
    assert series_of(tmp_path / "d/a.dcm") == "1.2"
    assert names(tmp_path) == names(tmp_path / "d") == ["d/a", "d/b"]


def test_loose_instances_of_one_series_are_one_slide(tmp_path: Path) -> None:
    touch(tmp_path, "readme.txt")
    for name, uid in (("a", b"1.2\0"), ("b", b"1.3\0"), ("c", b"1.2\0")):
        body = b"\0" * 128 + b"DICM" + b"\x20\x00\x0e\x00UI\x04\x00" + uid
        (tmp_path / f"{name}.dcm").write_bytes(body)
    assert {s.name: s.same_as for s in find_slides(tmp_path)[0]} == {"a": None, "b": None, "c": "a"}


def test_its_own_output_is_no_input(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs", "tiles/slides.json", "tiles/config.yaml", "tiles/thumbnails/a.tif")
    assert names(tmp_path) == ["a"]


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    touch(tmp_path, "s/a.svs")
    (tmp_path / "s/loop").symlink_to(tmp_path / "s")
    (tmp_path / "s/b.svs").symlink_to(tmp_path / "s/a.svs")
    assert names(tmp_path / "s") == ["a", "b"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["x.svs", "x.ndpi", "y.svs"], ["x.ndpi", "x.svs", "y"]),
        (["a/x.svs", "b/x.svs"], ["a/x", "b/x"]),
        (["x.svs", "X.tif"], ["X.tif", "x.svs"]),
        (["x.svs", "x.svs.tif"], ["x", "x.svs"]),
    ],
)
def test_no_two_slides_share_a_name(tmp_path: Path, files: list[str], expected: list[str]) -> None:
    touch(tmp_path, *files)
    assert sorted(names(tmp_path)) == sorted(expected)


def test_equal_files_from_two_places_keep_their_folders(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.svs", "b/x.svs", "b/y.svs")
    given = [tmp_path / "a/x.svs", tmp_path / "b/x.svs", tmp_path / "b/y.svs"]
    assert names(given) == ["a/x.svs", "b/x.svs", "y"]


def test_glob(tmp_path: Path) -> None:
    touch(tmp_path, "a/x1.svs", "a/x2.svs", "a/y.svs", "a/x.txt")
    assert names(f"{tmp_path}/a/x*.svs") == ["x1", "x2"]
    assert names(f"{tmp_path}/**/*.svs") == ["a/x1", "a/x2", "a/y"]


def test_nothing_there_is_an_error_with_a_hint(tmp_path: Path) -> None:
    touch(tmp_path, "slides/a.svs")
    with pytest.raises(NoInputError, match=r"PG-N01.*Did you mean.*slides") as caught:
        find_slides(tmp_path / "slide")
    assert caught.value.exit_code == 4
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", f"{tmp_path}/*.ndpi", []):
        with pytest.raises(NoInputError, match="PG-N01"):
            find_slides(nothing)


# Lists


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("wsi,mpp", "s/a.svs,0.25"),
        ("slide,label,patient,mpp", "s/a.svs,3,P1,0.25"),
        ("PATIENT;FILENAME;spacing", "P1;s/a.svs;0,25"),
        ("sample_id\timage_path\tmask_path\tspacing_at_level_0", "id\ts/a.svs\t\t0.25"),
        ("case_id,slide_id,label,mpp_x", "P1,s/a,NA,0.25"),
        ("Slide ID,Patient-ID,MPP", "s/a,P1,0.25"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_lists_of_other_tools(tmp_path: Path, header: str, line: str, encoding: str) -> None:
    touch(tmp_path, "s/a.svs")
    (tmp_path / "list.csv").write_text(f"{header}\n{line}\n\n", encoding=encoding)
    (slide,) = find_slides(tmp_path / "list.csv")[0]
    assert (slide.name, slide.mpp, slide.problem) == ("s/a", 0.25, None)
    assert slide.path == tmp_path / "s/a.svs"
    if "label" in header:
        assert slide.label == ("3" if "3" in line else "NA")
    if "patient" in header.lower():
        assert slide.patient == "P1"


def test_a_listed_slide_that_is_missing_does_not_stop_the_others(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    (tmp_path / "list.csv").write_text("slide,label\na.svs,0\nb.svs,1\n")
    slides = by_name(tmp_path / "list.csv")
    assert slides["a"].problem is None
    assert slides["b"].problem is not None
    assert slides["b"].problem.code == "PG-N02"
    assert slides["b"].label == "1"


def test_labels_stay_text(tmp_path: Path) -> None:
    touch(tmp_path, "001.svs", "a,b.svs")
    (tmp_path / "list.csv").write_text('slide,label,patient\n001,007,1e3\n"a,b.svs",NA,\n')
    slides = by_name(tmp_path / "list.csv")
    assert (slides["001"].label, slides["001"].patient) == ("007", "1e3")
    assert (slides["a,b"].label, slides["a,b"].patient) == ("NA", None)


@pytest.mark.parametrize(
    ("files", "listed", "found"),
    [
        (["m.mrxs", "m/Slidedat.ini"], "m", "m.mrxs"),
        (["a.svs", "a.xml", "a.txt", "a.geojson", "a.h5"], "a", "a.svs"),
        (["a.svs", "a.png"], "a", "a.svs"),
        (["a.png"], "a", "a.png"),
        (["a.ome.tif", "a.txt"], "a", "a.ome.tif"),
        (["d/1.dcm", "d.csv"], "d", "d"),
        (["TCGA.1-2.SVS", "TCGA.1-2.svs.bak"], "TCGA.1-2", "TCGA.1-2.SVS"),
        (["a.svs", "a.ndpi"], "a", None),
        (["a.xml"], "a", None),
    ],
)
def test_a_stem_means_the_slide_of_that_name(
    tmp_path: Path, files: list[str], listed: str, found: str | None
) -> None:
    touch(tmp_path, *files)
    (tmp_path / "list.tsv").write_text(f"slide_id\n{listed}\n")
    (slide,) = find_slides(tmp_path / "list.tsv")[0]
    assert (slide.problem is None) == (found is not None)
    assert slide.path == tmp_path / (found or listed)


def test_long_lists_are_read_at_once(tmp_path: Path) -> None:
    count = 10_000
    for i in range(0, count, 2):
        (tmp_path / f"slide-{i:05d}.svs").touch()
    lines = "\n".join(f"slide-{i:05d}" for i in range(count))
    (tmp_path / "list.csv").write_text(f"slide_id\n{lines}\n")
    start = time.perf_counter()
    listed = read_list(tmp_path / "list.csv")
    assert time.perf_counter() - start < 5
    problems = [slide.problem for slide in listed if slide.problem]
    assert (len(listed), len(problems)) == (count, count // 2)
    assert all(problem.code == "PG-N02" for problem in problems)
    assert "did you mean" in (problems[0].hint or "")


@pytest.mark.parametrize("first", ["folder", "list"])
def test_a_list_beside_its_folder_keeps_its_values(tmp_path: Path, first: str) -> None:
    touch(tmp_path, "s/a.svs", "s/b.svs")
    (tmp_path / "list.csv").write_text("slide,mpp,label,patient\ns/a.svs,0.25,1,P1\n")
    given = [tmp_path / "s", tmp_path / "list.csv"]
    slides = find_slides(given if first == "folder" else given[::-1])[0]
    assert {(s.path.name, s.mpp, s.label, s.patient) for s in slides} == {
        ("a.svs", 0.25, "1", "P1"), ("b.svs", None, None, None)
    }  # fmt: skip


def test_lists_that_disagree_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.svs")
    (tmp_path / "x.csv").write_text("slide,label,patient\na.svs,1,\n")
    (tmp_path / "y.csv").write_text("slide,label,patient\na.svs,,P1\n")
    (slide,) = find_slides([tmp_path / "x.csv", tmp_path / "y.csv"])[0]
    assert (slide.label, slide.patient) == ("1", "P1")
    (tmp_path / "y.csv").write_text("slide,label\na.svs,2\n")
    with pytest.raises(DataError, match=r"PG-N06.*twice.*Label is '1' .* '2'"):
        find_slides([tmp_path / "x.csv", tmp_path / "y.csv"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name,mpp\na,1\n", "no column of slides"),
        ("", "no column of slides"),
        ("slide,mpp\na.svs,quarter\n", "Line 2"),
        ("slide,label\na.svs,1\na.svs,2\n", "twice"),
        ("slide,label\na.svs,1,2\n", "more cells"),
    ],
)
def test_a_list_that_cannot_be_understood(tmp_path: Path, text: str, words: str) -> None:
    touch(tmp_path, "a.svs")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        find_slides(tmp_path / "list.csv")


# Names


@given(st.text(st.characters(exclude_categories=[]), max_size=60))
def test_any_name_stays_inside_its_folder(text: str) -> None:
    name = safe_name(text)
    root = Path("/out")
    assert os.path.normpath(root / f"{name}.h5").startswith("/out/")
    assert not any(part in ("", ".", "..") for part in name.split("/"))
    name.encode("utf-8")
    assert all(len(part.encode()) <= 180 for part in name.split("/"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Fall 12 (Kopie)", "Fall 12 (Kopie)"),
        ("../../etc/passwd", "etc/passwd"),
        ("/abs/x", "abs/x"),
        ("C:\\x", "C%3A/x"),
        ("nul", "%6Eul"),
        (".hidden", "%2Ehidden"),
        ("a\nb", "a%0Ab"),
        ("a\udcffb", "a%FFb"),
        ("100%", "100%25"),
        ("=1+1", "%3D1+1"),
        ("x.", "x%2E"),
        ("", "slide"),
    ],
)
def test_odd_names_are_encoded(text: str, expected: str) -> None:
    assert safe_name(text) == expected


def test_unicode_twins_are_kept_apart(tmp_path: Path) -> None:
    touch(tmp_path, "caf\u00e9.svs", "cafe\u0301.tif")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system joins NFC and NFD")
    found = names(tmp_path)
    assert len(set(found)) == 2
