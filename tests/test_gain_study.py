"""The gain study's arithmetic and its plan; no training here."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers_pretrain import image_folder

from pathgen.data.sources import ImageFolder
from pathgen.errors import ConfigError
from pathgen.progress import Silent
from pathgen.recipes import read_recipe

STUDY = Path(__file__).resolve().parents[1] / "benchmarks" / "gensis_gain"
NAMES = ("arms", "data", "pieces", "figures", "results", "work", "run")


@pytest.fixture(scope="module")
def study() -> Iterator[Any]:
    """The study's modules, as its script sees them."""
    sys.path.insert(0, str(STUDY))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    finally:
        sys.path.remove(str(STUDY))
        for name in NAMES:
            sys.modules.pop(name, None)


# --- arms ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_every_arm_resolves_and_differs_where_it_says(study: Any, size: str) -> None:
    config = study.arms.SIZES[size]
    trained = {name: study.arms.arm_config(config, name, 1) for name in study.arms.ARMS
               if study.arms.ARMS[name].group}  # fmt: skip
    gen = trained["gen-dino"]
    assert all(arm.run.seed == 1 for arm in trained.values())
    for name, blend in (("generative", "off"), ("pixel-mix", "pixel")):
        views = gen.views.model_copy(update={"blend": blend})
        assert trained[name] == gen.model_copy(update={"views": views})
    assert trained["positives"] == gen.model_copy(update={"blend_as": "positive"})
    plain = study.arms.resolved(config, 1).dino
    assert trained["dino-matched"].model_copy(update={"optim": plain.optim}) == plain


def test_arms_have_the_same_real_images(study: Any) -> None:
    """Check 14: same steps, batch, crops and schedule for DINO and every arm but the matched."""
    config = study.arms.SIZES["cpu"]
    dino = study.arms.resolved(config, 0).dino
    for name in ("generative", "positives", "gen-dino", "pixel-mix"):
        arm = study.arms.arm_config(config, name, 0)
        assert arm.optim == dino.optim
        assert arm.encoder == dino.encoder
        for crop in ("global_size", "global_scale", "local_size", "local_scale", "local_crops"):
            assert getattr(arm.views, crop) == getattr(dino.views, crop)


def test_compute_is_that_of_the_papers_sizes(study: Any) -> None:
    """ViT-S/16, 2 x 224 and 8 x 96 crops, 65,536 prototypes: 114 and 151 GFLOP an image."""
    config = study.arms.StudyConfig(recipe="vits16-pathology")
    assert study.arms.compute_factor(config) == pytest.approx(151 / 114, abs=0.01)


def test_matched_dino_takes_as_many_more_steps(study: Any) -> None:
    config = study.arms.SIZES["cpu"]
    more = study.arms.arm_config(config, "dino-matched", 0).optim.steps
    plain = study.arms.resolved(config, 0).dino.optim.steps
    assert more / plain == pytest.approx(study.arms.compute_factor(config), abs=1 / plain)
    assert 1.2 < more / plain < 1.5


def test_settings_are_told_apart_by_their_digest(study: Any) -> None:
    config = study.arms.SIZES["cpu"]

    def digest(**changed: Any) -> str:
        return str(study.arms.settings(config.model_copy(update=changed))["digest"])

    assert digest() == digest(device="auto", workers=3)
    others = [{"seeds": (0, 1)}, {"patches": 7}, {"settings": ("gen_dino.disentangle_weight=0.5",)}]
    assert len({digest(), *(digest(**other) for other in others)}) == 4


def test_an_unknown_setting_is_refused_before_anything_runs(study: Any) -> None:
    config = study.arms.SIZES["cpu"].model_copy(update={"settings": ("dino.optim.stepz=1",)})
    with pytest.raises(ConfigError, match="unknown setting"):
        study.arms.settings(config)


@pytest.mark.parametrize("size", ["cpu", "gpu"])
def test_recipes_say_what_they_are(size: str) -> None:
    assert read_recipe(STUDY / f"{size}.yaml")["note"]


# --- pieces ----------------------------------------------------------------------------------


def test_pieces_can_be_done_in_their_order(study: Any, tmp_path: Path) -> None:
    config = study.arms.StudyConfig(sets=("a", "b"), seeds=(4, 5))
    every = study.pieces.pieces(config)
    done: set[str] = set()
    for piece in every:
        assert done.issuperset(piece.needs)
        done.add(piece.name)
    assert len(done) == len(every) == 4 * (4 + len(study.arms.ARMS)) - 2  # color once a set
    assert len({piece.marker(tmp_path) for piece in every}) == len(every)


def test_only_what_a_piece_needs_is_waited_for(study: Any) -> None:
    config = study.arms.StudyConfig(sets=("a",), seeds=(0,))
    needs = {piece.what: piece.needs for piece in study.pieces.pieces(config)}
    assert needs["color"] == needs["dino-matched"] == ()
    assert needs["untrained"] == needs["dino"] == ("a/seed-0/stage dino",)
    assert needs["gen-dino"] == needs["pixel-mix"] == ("a/seed-0/stage augment",)


def test_patches_to_train_on_know_no_class(study: Any, tmp_path: Path) -> None:
    labelled = image_folder(tmp_path / "train")
    few, all_ = (
        study.data.unlabelled(labelled, tmp_path / name, n)
        for name, n in (("few", 5), ("all", None))
    )
    assert ImageFolder(few).classes == ()
    assert (len(ImageFolder(few)), len(ImageFolder(all_))) == (5, len(ImageFolder(labelled)))
    first = [path.read_bytes() for path in sorted(all_.iterdir())[:5]]
    assert first == [path.read_bytes() for path in sorted(few.iterdir())]
    assert {p.read_bytes() for p in all_.iterdir()} == {
        p.read_bytes() for p in labelled.rglob("*.png")
    }


def test_slides_are_those_of_the_table(study: Any, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "set" / "test", n=2)
    source = ImageFolder(folder)
    assert study.data.slides_of(folder, source) is None
    lines = ["file,label,slide", *(f"test/{name},x,slide of {name}" for name in source.files[::-1])]
    (folder.parent / "labels.csv").write_text("\n".join(lines))
    assert study.data.slides_of(folder, source) == [f"slide of {name}" for name in source.files]


# --- judging and the crew --------------------------------------------------------------------


def colors(study: Any, root: Path, *sets: str) -> tuple[Any, Any, list[Any]]:
    """A study of color histograms, where it is, and its pieces that train nothing."""
    config = study.arms.StudyConfig(sets=sets, seeds=(0,), arms=("color",), device="cpu", k=1)
    todo = [piece for piece in study.pieces.pieces(config) if piece.what == "color"]
    return config, study.pieces.Place(root / "data", root / "out"), todo


def labelled_set(root: Path, name: str) -> Path:
    for split in ("train", "test"):
        image_folder(root / "data" / name / split)
    return root / "data" / name


def test_judging_says_which_patches_of_which_slides_were_right(study: Any, tmp_path: Path) -> None:
    """One test patch is a copy of a training patch of another class; the others are known."""
    data = labelled_set(tmp_path, "set")
    shutil.copyfile(data / "train" / "a" / "2.png", data / "test" / "b" / "4.png")
    files = ImageFolder(data / "test").files
    lines = ["file,slide", *(f"test/{name},slide of {name}" for name in reversed(files))]
    (data / "labels.csv").write_text("\n".join(lines))
    config, place, (piece,) = colors(study, tmp_path, "set")
    study.pieces.do(piece, config, place, Silent())
    judged = json.loads(piece.marker(place.out).read_text())
    right = study.pieces.bits([judged["right"]["knn"]])[0].tolist()
    assert right == [name != "b/4.png" for name in files]
    assert judged["slides"] == [f"slide of {name}" for name in files]
    assert judged["knn"] == pytest.approx(11 / 12)
    assert (judged["n_train"], judged["n_test"]) == (12, 12)


def test_a_crew_keeps_what_is_done_and_says_what_failed(study: Any, tmp_path: Path) -> None:
    labelled_set(tmp_path, "there")
    config, place, todo = colors(study, tmp_path, "there", "absent")
    with pytest.raises(study.run.RunError, match=r"(?s)absent/seed-0/color failed.*Traceback"):
        study.work.Crew(config, place, jobs=1).work(todo)
    assert [piece.marker(place.out).exists() for piece in todo] == [True, False]
    (line,) = (place.out / "times.jsonl").read_text().splitlines()
    assert json.loads(line)["piece"] == "there/seed-0/color"
    assert study.work.Crew(config, place, jobs=1).work(todo[:1]) < 1  # kept: nothing is started
    with pytest.raises(study.work.Stopped):
        study.work.Crew(config, place, jobs=1, minutes=0).work(todo)


# --- results ---------------------------------------------------------------------------------


def judged(rows: str, slides: list[str] | None = None) -> dict[str, Any]:
    return {"knn": rows.count("1") / len(rows), "right": {"knn": rows}, "slides": slides}


def test_a_cell_is_mean_spread_and_paired_difference(study: Any) -> None:
    arm, dino = [judged("1110"), judged("1111")], [judged("1100"), judged("1011")]
    cell = study.results.summary(arm, dino, "knn", 200)
    assert cell["by_seed"] == [0.75, 1.0]
    assert cell["mean"] == 0.875
    assert cell["sd"] == pytest.approx(0.25 / 2**0.5)
    assert cell["to_dino"]["difference"] == pytest.approx(np.mean([0, 0.5, 0.5, 0]))
    assert cell["to_dino"]["runs"] == 2
    assert "to_dino" not in study.results.summary(dino, dino, "knn", 200)


def test_slides_are_drawn_where_they_are_known(study: Any) -> None:
    slides = ["x", "x", "y", "y"]
    arm, dino = [judged("1111", slides)], [judged("1100", slides)]
    assert study.results.summary(arm, dino, "knn", 500)["to_dino"]["interval"] == [0, 1]


def test_the_table_has_a_row_an_arm(study: Any) -> None:
    dino, arm = ({"knn": c, "linear": c} for c in (
        {"mean": 0.5, "sd": 0.01}, {"mean": 0.6, "sd": None, "to_dino": {
            "difference": 0.1, "interval": [-0.05, 0.2]}}))  # fmt: skip
    lines = study.results.table("set", {"dino": dino, "gen-dino": arm}).splitlines()
    assert lines[4] == "| DINO | 0.500 ± 0.010 |  | 0.500 ± 0.010 |  |"
    assert lines[5].startswith("| Gen-DINO | 0.600 | +0.100 (-0.050 to +0.200) |")
    assert {line.count("|") for line in lines[2:]} == {6}


def test_smoothing_keeps_length_and_constants(study: Any) -> None:
    smooth = study.figures.smooth
    assert np.allclose(smooth(np.full(5, 2.0)), 2.0)
    assert smooth(np.arange(30.0))[10] == pytest.approx(10.0)
    assert len(smooth(np.arange(3.0), 9)) == 3


def test_flags_survive_the_file(study: Any) -> None:
    flags = np.array([True, False, True])
    assert np.array_equal(study.pieces.bits([study.pieces._bits(flags)])[0], flags)


# --- the script ------------------------------------------------------------------------------


def test_another_study_is_refused_in_the_same_folder(study: Any, tmp_path: Path) -> None:
    config = study.arms.SIZES["cpu"]
    found = study.run.write_down(config, tmp_path)
    assert study.run.write_down(config, tmp_path) == found
    with pytest.raises(study.run.RunError, match="another study"):
        study.run.write_down(config.model_copy(update={"seeds": (9,)}), tmp_path)
