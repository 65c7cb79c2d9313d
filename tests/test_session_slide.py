"""One slide in a session: pictures, fields, tissue; and what `open` makes of what it is given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
from helpers_tiling import tissue_image, write_svs, write_tiff
from PIL import Image

import pathgen
from pathgen.errors import ConfigError, NoInputError, SlideError
from pathgen.session import Cohort, Slide
from pathgen.session.lengths import pixels
from pathgen.stores import PatchStore
from pathgen.tiling import TileConfig

WIDTH, HEIGHT = 1536, 1024


@pytest.fixture(scope="module")
def svs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slide") / "S1.svs"
    return write_svs(path, tissue_image(WIDTH, HEIGHT))


def test_a_slide_says_what_it_is(svs: Path) -> None:
    slide = pathgen.open(svs)
    assert isinstance(slide, Slide)
    assert repr(slide) == (
        "S1 · 1,536 x 1,024 px · 0.5 um/px · 0.8 x 0.5 mm · aperio 20x · 2 levels"
    )
    shown = slide._repr_html_()
    assert "data:image/jpeg;base64," in shown
    assert "0.5 um/px" in shown


def test_the_thumbnail_is_the_slide_and_never_larger(svs: Path) -> None:
    slide = pathgen.open(svs)
    small = slide.thumbnail(300)
    assert small.size == (300, 200)
    assert slide.thumbnail(5000).size == (WIDTH, HEIGHT)
    with openslide.OpenSlide(svs) as raw:  # whose own thumbnail picture is plain gray
        expected = raw.read_region((0, 0), 0, (WIDTH, HEIGHT)).convert("RGB")
    expected = np.asarray(expected.resize((300, 200), Image.Resampling.BOX), float)
    assert np.abs(np.asarray(small, float) - expected).mean() < 3


def test_a_field_is_what_openslide_reads(svs: Path) -> None:
    slide = pathgen.open(svs)
    field = slide.read(x=500, y=300, size="64um", mpp=0.5)
    with openslide.OpenSlide(svs) as raw:
        expected = raw.read_region((500, 300), 0, (128, 128)).convert("RGB")
    assert np.array_equal(np.asarray(field), np.asarray(expected))


def test_a_field_has_the_pixels_of_the_patch_there(svs: Path, tmp_path: Path) -> None:
    config = TileConfig(patch_size=128, mpp=0.7, codec="png", min_hematoxylin=0)
    report = pathgen.tile(svs, tmp_path, config, workers=0)
    with PatchStore.open(report.stores[0]) as store:
        (x, y), patch = store.coords([7])[0], store.images([7])[0]
    field = pathgen.open(svs).read(x=int(x), y=int(y), size=128, mpp=0.7)
    assert np.abs(np.asarray(field, int) - patch).max() <= 1  # patches are read in blocks


def test_fields_take_units_and_two_sides(svs: Path) -> None:
    slide = pathgen.open(svs)
    assert slide.read("0.1mm", "100 um", ("0.1mm", 64), 1.0).size == (100, 64)
    assert slide.read(0, 0, 64).size == (64, 64)
    beyond = np.asarray(slide.read(WIDTH - 32, 0, 64))
    assert (beyond[:, 32:] == 255).all()
    assert (beyond[:, :32] != 255).any()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"size": "64 inches"}, "length"), ({"size": "wide"}, "length"), ({"size": 0}, "size"),
        ({"size": "64um", "x": 9000}, "outside"), ({"size": "900mm"}, "size"),
        ({"size": 64, "mpp": -1.0}, "scale"), ({"size": float("nan")}, "length"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_is_refused(
    svs: Path, options: dict[str, object], word: str
) -> None:
    with pytest.raises(ConfigError, match=word):
        pathgen.open(svs).read(**({"x": 0, "y": 0} | options))


def test_a_field_is_not_made_up(svs: Path) -> None:
    with pytest.raises(SlideError, match="PG-S08"):
        pathgen.open(svs).read(0, 0, 64, mpp=0.25)


def test_lengths() -> None:
    assert pixels("256um", 0.5, "x") == pixels("256 µm", 0.5, "x") == 512
    assert pixels("1.5mm", 0.5, "x") == 3000
    assert pixels(7, 0.5, "x") == pixels("7px", 0.5, "x") == pixels("7", 0.5, "x") == 7


def test_tissue_is_the_ellipse_that_was_drawn(svs: Path, tmp_path: Path) -> None:
    tissue = pathgen.open(svs).tissue()
    true = np.pi * (0.42 * WIDTH) * (0.42 * HEIGHT) * 0.5**2 / 1e6
    assert tissue.area_mm2 == pytest.approx(true, rel=0.03)
    assert len(tissue.polygons) == 1
    assert f"{tissue.area_mm2:.2f} mm2 of tissue in 1 piece" in repr(tissue)
    table = tissue.table()
    assert table["area_mm2"].sum() == pytest.approx(tissue.area_mm2, abs=1e-4)
    value = json.loads(tissue.to_geojson(tmp_path / "t.geojson").read_text())
    (one,) = value["features"]
    shape = shapely.geometry.shape(one["geometry"])
    assert shape.area * 0.5**2 / 1e6 == pytest.approx(tissue.area_mm2, rel=1e-6)
    assert shape.contains(shapely.Point(WIDTH / 2, HEIGHT / 2))
    assert "area_mm2" in tissue._repr_html_()


def test_tissue_is_drawn_where_it_is(svs: Path) -> None:
    from matplotlib.figure import Figure

    figure = pathgen.open(svs).tissue().plot()
    (axes,) = figure.axes
    assert axes.get_xlim() == pytest.approx((0, 0.768))  # mm
    assert axes.get_ylim() == pytest.approx((0.512, 0))
    other = Figure().subplots()
    assert pathgen.open(svs).plot(other) is other.figure
    assert figure._repr_png_()[:4] == b"\x89PNG"


def test_settings_of_tissue_are_checked(svs: Path) -> None:
    with pytest.raises(ConfigError, match="method"):
        pathgen.open(svs).tissue(metod="otsu")


def test_a_slide_without_a_scale_can_be_seen_and_told_one(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "plain.tif", tissue_image(512, 384))
    slide = pathgen.open(path)
    assert "unknown um/px" in repr(slide)
    assert slide.thumbnail(100).size == (100, 75)
    with pytest.raises(SlideError, match="PG-S07"):
        slide.tissue()
    assert pathgen.open(path, mpp=1.0).tissue().area_mm2 > 0


def test_open_goes_by_what_is_there(svs: Path, tmp_path: Path) -> None:
    report = pathgen.tile(svs, tmp_path, patch_size=256, workers=0)
    (tmp_path / "list.csv").write_text(f"slide\n{svs}\n")
    assert isinstance(pathgen.open(str(svs)), Slide)
    assert isinstance(pathgen.open(report.stores[0]), PatchStore)
    for cohort in (svs.parent, f"{svs.parent}/*.svs", tmp_path / "list.csv", [svs]):
        found = pathgen.open(cohort, workers=0)
        assert isinstance(found, Cohort)
        assert found.names == ("S1",)


def test_one_bad_slide_says_code_and_hint(tmp_path: Path) -> None:
    (tmp_path / "bad.svs").write_bytes(b"II*\0 no slide")
    with pytest.raises(SlideError) as caught:
        pathgen.open(tmp_path / "bad.svs")
    assert caught.value.code.startswith("PG-S")
    assert caught.value.hint
    with pytest.raises(NoInputError):
        pathgen.open(tmp_path / "none.svs")


def test_star_import_leaves_the_builtin_open_alone() -> None:
    assert "open" not in pathgen.__all__
    assert "open" in dir(pathgen)


def test_looking_and_cutting_need_neither_torch_nor_tables() -> None:
    code = (
        "import sys, pathgen; pathgen.open, pathgen.tile, pathgen.annotations, pathgen.features\n"
        "names = ('torch', 'pandas', 'matplotlib', 'sklearn')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
