"""What `tile`, `refilter`, `info` and `doctor` say to a new user, and what they suggest next."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import typer.main
from helpers_tiling import tissue_image, write_svs

from pathgen.cli import app, main
from pathgen.config import build
from pathgen.errors import ConfigError, NoInputError
from pathgen.stores import find_stores
from pathgen.tiling import TileConfig, tile
from pathgen.tiling.forecast import Forecast, minutes
from pathgen.tiling.lists import doubtful_columns
from pathgen.tiling.presets import PRESETS
from pathgen.tiling.refiltering import refilter
from pathgen.tiling.selection import Histogram, Selection

SMALL = TileConfig(patch_size=128, thumbnail_px=256, min_hematoxylin=0)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One slide with a pixel size, one without."""
    folder = tmp_path_factory.mktemp("hints") / "s"
    write_svs(folder / "own.svs", tissue_image(600, 400))
    write_svs(folder / "none.svs", tissue_image(600, 400, seed=1), mpp=None)
    return folder


@pytest.fixture(scope="module")
def tiles(slides: Path) -> Path:
    tile(slides / "own.svs", slides.parent / "tiles", SMALL, workers=0)
    return slides.parent / "tiles"


# Settings


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"mag": "abc"}, "mag"), ({"mag": 20, "mpp": 1.0}, "mag"),
        ({"patch_um": 100.3}, "patch_um"), ({"patch_um": "wide"}, "patch_um"),
        ({"patch_um": 100, "mpp": None}, "patch_um"),
        ({"overlap": 300}, "overlap"), ({"step": 0}, "step"), ({"step": 128, "overlap": 0}, "step"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(values: Mapping[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match="PG-C01") as caught:
        build(TileConfig, values)
    assert caught.value.where == named


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--set", "tissue.mpp", "Write tissue.mpp=VALUE"),
        ("--set", "masks.use=within", "masks.use"),
        ("--set", "masks.within=Tumor", "masks.within"),
        ("--set", "masks.missing=skip", "Give --masks"),
        ("--set", "preset=biopsy", "Use --preset biopsy"),
    ],
)
def test_what_would_be_without_effect_is_refused(
    capsys: pytest.CaptureFixture[str], slides: Path, tmp_path: Path, option: str, value: str,
    words: str,
) -> None:  # fmt: skip
    code, _, err = run(capsys, "tile", slides, "-o", tmp_path / "out", option, value)
    assert code == 2
    assert "PG-C01" in err
    assert words in err
    assert not (tmp_path / "out").exists()


def test_a_preset_in_a_file_is_explained(
    capsys: pytest.CaptureFixture[str], slides: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("preset: tma\n")
    code, _, err = run(capsys, "tile", slides, "-o", tmp_path / "o", "-c", tmp_path / "own.yaml")
    assert (code, "Use --preset tma" in err) == (2, True)


def test_the_help_lists_presets_and_has_an_example() -> None:
    command = typer.main.get_command(app).commands["tile"]  # type: ignore[attr-defined]
    (preset,) = [option for option in command.params if option.name == "preset"]
    assert preset.metavar == "|".join(PRESETS)
    assert "pathgen tile slides/ -o tiles/" in command.epilog


# Empty slides


def outline(path: Path, name: str) -> Path:
    square = [[[50, 50], [500, 50], [500, 350], [50, 350], [50, 50]]]
    feature = {
        "type": "Feature", "geometry": {"type": "Polygon", "coordinates": square},
        "properties": {"classification": {"name": name}},
    }  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path.parent


@pytest.mark.parametrize("setting", ["masks.within=tumour", "masks.min_class={tumour: 0.5}"])
def test_a_misspelled_class_is_seen(
    capsys: pytest.CaptureFixture[str], slides: Path, tmp_path: Path, setting: str
) -> None:
    masks = outline(tmp_path / "masks/own.geojson", "Tumor")
    (tmp_path / "s").mkdir()
    (tmp_path / "s/own.svs").symlink_to(slides / "own.svs")
    (tmp_path / "s/notes.txt").write_text("x")
    code, out, err = run(
        capsys, "tile", tmp_path / "s", "-o", tmp_path / "out", "--masks", masks, "--set", setting,
        "--workers", 0,
    )  # fmt: skip
    assert code == 0
    assert "1 slide: 0 done, 1 empty" in out
    assert "Next" not in out
    assert "own: " in err
    assert "the mask has no class 'tumour', but Tumor" in err
    assert "passed over as no slides: 1 .txt" in err


def test_of_many_empty_slides_a_few_are_named(
    capsys: pytest.CaptureFixture[str], slides: Path, tmp_path: Path
) -> None:
    for i in range(5):
        write_svs(tmp_path / f"s/glass{i}.svs", np.full((300, 300, 3), 242, np.uint8))
    (tmp_path / "s/own.svs").symlink_to(slides / "own.svs")
    command = ("tile", tmp_path / "s", "--workers", 0, "-o")
    _, out, err = run(capsys, *command, tmp_path / "out")
    assert "6 slides: 1 done, 5 empty" in out
    assert err.count("no tissue found") == 3
    assert "and 2 more that are empty" in err
    (tmp_path / "s/own.svs").unlink()
    _, _, err = run(capsys, *command, tmp_path / "other", "--plan")
    assert err.count("no tissue found") == 5


# What is suggested


def test_a_slide_without_mpp_gets_a_suggestion_with_it(
    capsys: pytest.CaptureFixture[str], slides: Path
) -> None:
    _, out, _ = run(capsys, "info", slides / "none.svs")
    assert out.rstrip().endswith("-o tiles/ --slide-mpp UM_PER_PIXEL")
    _, out, _ = run(capsys, "info", slides / "own.svs")
    assert "--slide-mpp" not in out
    code, out, _ = run(capsys, "doctor", slides, "--workers", 0, "--mag", 20)
    assert code == 3
    assert out.rstrip().endswith("-o tiles/ --mag 20 --slide-mpp UM_PER_PIXEL")
    code, out, _ = run(capsys, "doctor", slides, "--workers", 0, "--slide-mpp", 0.5)
    assert (code, out.rstrip().endswith("-o tiles/ --slide-mpp 0.5")) == (0, True)


def test_nothing_is_suggested_for_what_cannot_be_tiled(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "text.svs").write_text("no slide")
    code, out, _ = run(capsys, "doctor", tmp_path / "text.svs", "--workers", 0)
    assert (code, "Next" in out) == (3, False)
    code, out, _ = run(
        capsys, "tile", tmp_path / "text.svs", "-o", tmp_path / "o", "--plan", "--workers", 0
    )
    assert (code, "Next" in out) == (3, False)


@pytest.mark.parametrize(
    ("command", "resumes"), [(["tile"], True), (["tile", "--plan"], False), (["doctor"], False)]
)
def test_only_what_goes_on_is_said_to_resume(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, slides: Path,
    tmp_path: Path, command: Sequence[str], resumes: bool,
) -> None:  # fmt: skip
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pathgen.tiling.tile", stop)
    monkeypatch.setattr("pathgen.doctor.diagnose", stop)
    code, _, err = run(capsys, command[0], slides, "-o", tmp_path / "out", *command[1:])
    assert code == 130
    assert "Stopped." in err
    assert ("Resume with" in err) == resumes


# Lists


@pytest.mark.parametrize(
    ("header", "doubtful"),
    [
        ("slide,lable", ["lable"]), ("slide,labels,spacin", ["labels", "spacin"]),
        ("slide,label,lable", []), ("slide,stage,level,notes", []),
        ("Slide ID,MPP,Patient-ID,mask_path", []),
    ],
)  # fmt: skip
def test_columns_that_look_misspelled_are_told(
    tmp_path: Path, header: str, doubtful: list[str]
) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"{header}\na.svs\n")
    found = doubtful_columns(path)
    assert [text.split("'")[1] for text in found] == doubtful
    assert all("did you mean" in text for text in found)


def test_a_missing_slide_says_where_it_was_looked_for(
    capsys: pytest.CaptureFixture[str], slides: Path, tmp_path: Path
) -> None:
    path = tmp_path / "lists/list.csv"
    path.parent.mkdir()
    path.write_text(f"slide,lable\n{slides / 'own.svs'},a\nsub/gone.svs,b\n")
    code, _, err = run(capsys, "tile", path, "-o", tmp_path / "out", "--workers", 0)
    assert code == 3
    assert "looked for lists/sub/gone.svs" in err
    assert "did you mean 'label'" in err


# Choosing again


def test_a_plan_without_limits_suggests_one(
    capsys: pytest.CaptureFixture[str], tiles: Path, tmp_path: Path
) -> None:
    _, out, _ = run(capsys, "refilter", tiles, "-o", tmp_path / "c", "--plan")
    following = out.rstrip().rpartition("Next: pathgen ")[2].split()
    assert following[-2:] == ["--min-focus", "0.15"]
    assert run(capsys, *following)[0] == 0


@pytest.mark.parametrize(
    "values",
    [
        {"limits": {"min_focus": 5}}, {"limits": {"max_pen": -0.1}}, {"limits": {"min_eosin": 2}},
        {"limits": {"min_eosin_mean": -1}}, {"classes": {"Tumor": 30}},
    ],
)  # fmt: skip
def test_limits_out_of_range_are_refused(values: Mapping[str, object]) -> None:
    with pytest.raises(ConfigError, match="PG-C01"):
        build(Selection, values)


def test_the_limit_that_differs_is_named(tiles: Path, tmp_path: Path) -> None:
    refilter(tiles, tmp_path / "c", Selection(limits={"min_focus": 0.1}))
    with pytest.raises(ConfigError, match=r"PG-O19.*min_focus was 0\.1 and is now 0\.12"):
        refilter(tiles, tmp_path / "c", Selection(limits={"min_focus": 0.12}))
    with pytest.raises(ConfigError, match=r"PG-O19.*made by `pathgen tile`"):
        tile_place = tmp_path / "d"
        tile(tiles.parent / "s/own.svs", tile_place, SMALL, workers=0)
        refilter(tiles, tile_place, Selection(limits={"min_focus": 0.1}))


def test_a_constant_share_is_drawn_from_0_to_1() -> None:
    for value in (0.0, 0.3, 1.0):
        one = Histogram.of(np.full(4, value, np.float32))
        assert (one.edges[0], one.edges[-1], one.counts.sum()) == (0, 1, 4)
    assert Histogram.of(np.full(4, 1.5, np.float32)).edges[-1] == 2


# Numbers


def test_one_is_singular(tmp_path: Path) -> None:
    assert [minutes(s) for s in (0.2, 1.5, 60, 100)] == [
        "1 second", "2 seconds", "60 seconds", "2 minutes"
    ]  # fmt: skip
    said = Forecast(1, 1.0, 0.5, 3.2, slides=1, blocks=1, workers=1).sentence()
    assert said.startswith("It takes 1 to 4 seconds, going by 1 block of a slide that was cut now;")
    with pytest.raises(NoInputError, match="no patch stores found"):
        find_stores(tmp_path, kind="patches")
