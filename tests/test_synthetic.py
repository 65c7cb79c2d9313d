"""Synthetic slides: what OpenSlide, scikit-image and tifffile see must agree with the truth."""

from __future__ import annotations

import csv
import hashlib
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, gaussian_filter, zoom
from skimage.color import rgb2hed, rgb2hsv
from skimage.filters import threshold_otsu

from pathgen.errors import ConfigError, DataError, StorageError
from pathgen.synthetic import (
    CLASSES,
    CohortConfig,
    SlideSpec,
    SlideTruth,
    isup,
    make_slide,
    make_slides,
)
from pathgen.synthetic.cohort import plan_cohort
from pathgen.synthetic.noise import box_mean, upsample
from pathgen.synthetic.optics import Renderer, draw_scanner, draw_stain
from pathgen.synthetic.tissue import draw_scene

SIDE = 1536


def small(**changes: object) -> SlideSpec:
    values = {"width": SIDE, "height": SIDE, "tissue_share": 0.5, "grade": 2, "seed": 5}
    return SlideSpec.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synthetic") / "one.svs"
    make_slide(path, small(jpeg_quality=95))
    return path


@pytest.fixture(scope="module")
def truth(slide: Path) -> SlideTruth:
    return SlideTruth.load(slide)


@pytest.fixture(scope="module")
def pixels(slide: Path) -> NDArray[np.uint8]:
    with openslide.OpenSlide(slide) as opened:
        return np.asarray(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB"))


def test_openslide_sees_an_aperio_slide(slide: Path) -> None:
    with openslide.OpenSlide(slide) as opened:
        facts = opened.properties
        assert facts["openslide.vendor"] == "aperio"
        assert float(facts["openslide.mpp-x"]) == float(facts["openslide.mpp-y"]) == 0.5
        assert float(facts["openslide.objective-power"]) == 20
        assert opened.level_dimensions == ((SIDE, SIDE), (SIDE // 4,) * 2, (SIDE // 16,) * 2)
        assert opened.level_downsamples == (1.0, 4.0, 16.0)
        assert list(opened.associated_images) == ["thumbnail"]


def test_pages_stand_where_aperio_has_them(slide: Path) -> None:
    with tifffile.TiffFile(slide) as tiff:
        assert tiff.is_svs
        assert [page.is_tiled for page in tiff.pages] == [True, False, True, True]
        assert {page.compression.name for page in tiff.pages} == {"JPEG"}
        assert {page.photometric.name for page in tiff.pages} == {"YCBCR"}
        written = {tag.name for page in tiff.pages for tag in page.tags}
        assert not written & {"DateTime", "Artist", "HostComputer", "Software", "Copyright"}
        for page in tiff.pages:
            keys = {part.split("=")[0].strip() for part in page.description.split("|")[1:]}
            assert keys == {"AppMag", "MPP", "Title"}


def test_colors_survive_the_file(slide: Path, pixels: NDArray[np.uint8]) -> None:
    rendered = Renderer(draw_scene(small(jpeg_quality=95))).block(0, 0, SIDE, SIDE)
    difference = pixels.astype(int) - rendered
    assert np.abs(difference.mean((0, 1))).max() < 1  # no color space is taken for another
    assert np.abs(difference).mean() < 4
    decoded = tifffile.imread(slide, key=0)  # a second decoder
    assert np.abs(decoded.astype(int) - pixels).mean() < 1.5


def test_levels_show_the_same_place(slide: Path, pixels: NDArray[np.uint8]) -> None:
    with openslide.OpenSlide(slide) as opened:
        for level, factor in ((1, 4), (2, 16)):
            size = opened.level_dimensions[level]
            seen = np.asarray(opened.read_region((0, 0), level, size).convert("RGB"), float)
            expected = pixels.reshape(SIDE // factor, factor, SIDE // factor, factor, 3)
            assert np.abs(seen - expected.mean((1, 3))).mean() < 4


def test_blocks_join_without_a_seam() -> None:
    renderer = Renderer(draw_scene(small(blur=True, pen=True, folds=True)))
    whole = renderer.block(512, 512, 512, 256).astype(int)
    parts = [renderer.block(x, 512, 128, 256) for x in range(512, 1024, 128)]
    assert np.abs(whole - np.concatenate(parts, axis=1)).max() <= 1


def test_same_spec_same_bytes(tmp_path: Path) -> None:
    spec = small(width=1024, height=1024, grade=0, pen=True, blur=True, fat=True, folds=True)
    other = spec.model_copy(update={"seed": 6})
    digests = []
    for name, wanted in (("a", spec), ("b", spec), ("c", other)):
        make_slide(tmp_path / f"{name}.svs", wanted)
        digests.append(hashlib.sha256((tmp_path / f"{name}.svs").read_bytes()).hexdigest())
    assert digests[0] == digests[1] != digests[2]
    truths = [(tmp_path / "truth" / name / "nuclei.npz").read_bytes() for name in "ab"]
    assert truths[0] == truths[1]


def test_tissue_agrees_with_otsu(slide: Path, truth: SlideTruth) -> None:
    """Otsu on saturation, lumens filled: the commonest tissue detector, made by others."""
    with openslide.OpenSlide(slide) as opened:
        size = opened.level_dimensions[1]
        image = np.asarray(opened.read_region((0, 0), 1, size).convert("RGB"))
    saturation = gaussian_filter(rgb2hsv(image)[..., 1], 1.5)
    found = binary_fill_holes(saturation > threshold_otsu(saturation))
    known = zoom(truth.tissue, size[1] / truth.tissue.shape[0], order=0)
    assert (found & known).sum() / (found | known).sum() > 0.8
    assert truth.tissue.mean() == pytest.approx(0.5, abs=0.06)


def test_nuclei_are_blue(truth: SlideTruth, pixels: NDArray[np.uint8]) -> None:
    hematoxylin = gaussian_filter(rgb2hed(pixels)[..., 0], 1.5)
    x, y = np.rint(truth.nuclei - 0.5).astype(int).T
    inside = (x > 30) & (y > 30) & (x < SIDE - 30) & (y < SIDE - 30)
    x, y = x[inside], y[inside]
    around = np.median(
        [hematoxylin[y + dy, x + dx] for dx, dy in ((25, 0), (-25, 0), (0, 25), (0, -25))], axis=0
    )
    assert len(x) > 200
    assert (hematoxylin[y, x] > around).mean() > 0.9


def _angle(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return float(np.degrees(np.arccos(min(cosine, 1))))


def _macenko(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Two stain vectors from the extreme angles in the plane of most variance (ISBI 2009)."""
    density = -np.log10((pixels.reshape(-1, 3) + 1.0) / 245)
    density = density[(density > 0.12).all(1)]
    _, axes = np.linalg.eigh(np.cov(density.T))
    plane = axes[:, [2, 1]] * np.sign(axes[:, [2, 1]].sum(0))
    angles = np.arctan2(*(density @ plane).T[::-1])
    ends = [plane @ (np.cos(a), np.sin(a)) for a in np.percentile(angles, (1, 99))]
    return np.array(sorted(ends, key=lambda vector: -vector[0] / vector[1]))  # H is redder in OD


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_stain_vectors_can_be_recovered(seed: int) -> None:
    renderer = Renderer(draw_scene(small(width=1024, height=1024, seed=seed, grade=4)))
    found = _macenko(renderer.block(0, 0, 1024, 1024))
    for vector, known in zip(found, renderer.stain.vectors, strict=True):
        assert _angle(vector, known) < 12


def test_stain_and_scanner_vary_but_not_with_the_grade() -> None:
    stains = [draw_stain(small(seed=seed)).vectors for seed in range(20)]
    spread = [_angle(a[0], b[0]) for a, b in itertools.combinations(stains, 2)]
    assert max(spread) > 4
    for grade in range(6):
        spec = small(grade=grade, seed=3)
        assert np.array_equal(draw_stain(spec).vectors, stains[3])
        assert draw_scanner(spec).contrast == draw_scanner(small(seed=3)).contrast
    still = [draw_stain(small(seed=s, stain_variation=0)).vectors for s in (0, 1)]
    assert np.allclose(*still)


# Grade groups by primary and secondary pattern: Epstein et al., Am J Surg Pathol 2016.
GROUPS = {(3, 3): 1, (3, 4): 2, (4, 3): 3, (4, 4): 4, (3, 5): 4, (5, 3): 4} | dict.fromkeys(
    [(4, 5), (5, 4), (5, 5)], 5
)


@given(pair=st.sampled_from(sorted(GROUPS)), tumor=st.floats(0.02, 0.9), rest=st.floats(0.06, 0.3))
def test_isup_follows_the_two_largest_patterns(
    pair: tuple[int, int], tumor: float, rest: float
) -> None:
    shares = dict.fromkeys((3, 4, 5), 0.0)
    shares[pair[0]] += (1 - rest) * tumor
    shares[pair[1]] += rest * tumor
    assert isup(shares) == GROUPS[pair]
    shares = {pattern: share * 0.4 / 100 for pattern, share in shares.items()}
    assert isup(shares) == 0  # a trace is not a tumor


@pytest.mark.parametrize("grade", range(6))
def test_the_label_follows_from_the_class_map(grade: int) -> None:
    scene = draw_scene(small(width=2048, height=2048, grade=grade, seed=40 + grade))
    counts = Counter(CLASSES[c] for c in scene.classes.ravel())
    tissue = sum(count for name, count in counts.items() if name != "background")
    shares = {p: counts[f"pattern {p}"] / tissue for p in (3, 4, 5)}
    assert isup(shares) == grade
    assert counts["benign"] > 0
    assert (sum(shares.values()) > 0.1) == (grade > 0)


def test_patch_labels_are_the_majority_of_the_middle(truth: SlideTruth) -> None:
    rng = np.random.default_rng(0)
    coords = rng.integers(0, SIDE - 256, (50, 2))
    labels = truth.patch_labels(coords, 256)
    quarter, half = 256 // 4 // truth.scale, 256 // 2 // truth.scale
    for (x, y), label in zip(coords, labels, strict=True):
        row, column = y // truth.scale + quarter, x // truth.scale + quarter
        middle = truth.classes[row : row + half, column : column + half]
        counts = np.bincount(middle.ravel(), minlength=len(CLASSES))
        if np.diff(np.sort(counts)[-2:])[0] > 0.05 * middle.size:  # clear of rounding
            assert label == (-1 if counts.argmax() == 0 else counts.argmax())
    assert truth.patch_labels(np.array([[-5000, -5000]]), 256).tolist() == [-1]
    assert len(set(labels.tolist())) > 2


def test_grid_points_lie_where_the_truth_says(tmp_path: Path) -> None:
    path = tmp_path / "points.svs"
    made = make_slide(path, small(grid_points=True, jpeg_quality=95))
    assert len(made.points) >= 9
    with openslide.OpenSlide(path) as opened:
        for x, y in made.points:
            corner = (int(x) - 28, int(y) - 28)
            patch = opened.read_region(corner, 0, (56, 56)).convert("L")
            dark = np.asarray(patch, float) < 100
            rows, columns = np.nonzero(dark)
            center = np.array([columns.mean(), rows.mean()]) + 0.5 + corner
            assert np.abs(center - (x, y)).max() < 0.15


@pytest.mark.parametrize("artifact", ["pen", "blur", "fat", "folds"])
def test_each_artifact_changes_the_slide_and_is_in_the_truth(artifact: str) -> None:
    plain, marked = (
        Renderer(draw_scene(small(width=1024, height=1024, grade=0, **{artifact: on})))
        for on in (False, True)
    )
    before, after = (r.block(0, 0, 1024, 1024).astype(int) for r in (plain, marked))
    changed = np.abs(before - after).max(2) > 25
    assert changed.mean() > 0.001
    known = SlideTruth.of(marked)
    if artifact == "fat":
        assert (known.classes == CLASSES.index("fat")).sum() > 100
        return
    bit = {"pen": 1, "blur": 2, "folds": 4}[artifact]
    mask = np.kron((known.artifacts & bit) > 0, np.ones((known.scale,) * 2, bool))[:1024, :1024]
    assert changed[mask].mean() > 5 * changed[~mask].mean()


def test_empty_slide_is_glass(tmp_path: Path) -> None:
    path = tmp_path / "empty.svs"
    made = make_slide(path, small(empty=True, grade=4))
    assert not made.tissue.any()
    assert not made.classes.any()
    assert len(made.nuclei) == 0
    assert made.grade == 0
    with openslide.OpenSlide(path) as opened:
        seen = np.asarray(opened.read_region((0, 0), 0, opened.dimensions).convert("RGB"))
    assert seen.min() > 200


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({"width": 1000, "height": 777, "tile": 240, "levels": (1, 2, 8), "grade": 0}, (500, 388)),
        ({"mpp": 0.25, "objective": 40.0, "levels": (1, 4), "grade": 0}, (384, 384)),
        ({"width": 1024, "height": 2048, "style": "biopsy", "grade": None}, (256, 512)),
    ],
)
def test_any_size_mpp_and_style(
    tmp_path: Path, changes: dict[str, object], size: tuple[int, int]
) -> None:
    spec = small(**changes)
    made = make_slide(tmp_path / "x.svs", spec)
    with openslide.OpenSlide(tmp_path / "x.svs") as opened:
        assert opened.properties["openslide.vendor"] == "aperio"
        assert opened.dimensions == (spec.width, spec.height)
        assert opened.level_dimensions[1] == size
        assert float(opened.properties["openslide.mpp-x"]) == spec.mpp
        assert float(opened.properties["openslide.objective-power"]) == spec.objective
    assert made.tissue.any()
    assert (made.nuclei < (spec.width, spec.height)).all()


def test_the_truth_is_read_back_as_it_was(tmp_path: Path) -> None:
    made = make_slide(tmp_path / "x.svs", small(width=1024, height=1024, grade=0, pen=True))
    read = SlideTruth.load(tmp_path / "x.svs")
    for name in ("tissue", "classes", "artifacts", "nuclei", "nuclei_kind", "stain_vectors"):
        assert np.array_equal(getattr(made, name), getattr(read, name)), name
    assert (made.spec, made.grade, made.shares) == (read.spec, read.grade, read.shares)
    with pytest.raises(DataError, match="PG-D10"):
        SlideTruth.load(tmp_path / "y.svs")


COHORT = CohortConfig(width=768, height=768, tile=128, grades=(0, 1), n_empty=1, pen=0.5)


def test_cohort_is_complete_and_kept(tmp_path: Path) -> None:
    out = make_slides(tmp_path / "slides", 5, seed=1, config=COHORT)
    with (out / "labels.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["slide", "label", "patient"]
    assert {row["slide"] for row in rows} | {"blank-001"} == {p.stem for p in out.glob("*.svs")}
    assert Counter(Counter(row["label"] for row in rows).values()) == {2: 1, 3: 1}
    for row in rows:
        assert row["slide"].startswith(row["patient"])
        assert SlideTruth.load(out / f"{row['slide']}.svs").grade == int(row["label"])
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.svs")}
    damaged = sorted(stamps)[-1]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:1000])
    make_slides(out, 5, seed=1, config=COHORT)
    assert damaged.read_bytes() == whole
    kept = {path: path.stat().st_mtime_ns for path in stamps if path != damaged}
    assert kept.items() <= stamps.items()
    with pytest.raises(StorageError, match="PG-O02"):
        make_slides(out, 5, seed=2, config=COHORT)
    assert not list(out.rglob(".pathgen-tmp-*"))


def test_workers_change_nothing(tmp_path: Path) -> None:
    tiny = COHORT.model_copy(update={"grades": (0,), "n_empty": 0})
    for workers in (1, 2):
        make_slides(tmp_path / str(workers), 2, seed=3, config=tiny, workers=workers)
    first, second = (
        {p.relative_to(tmp_path / w): p.read_bytes() for p in (tmp_path / w).rglob("*.*")}
        for w in ("1", "2")
    )
    assert first == second


def test_grades_are_even_and_apart_from_artifacts() -> None:
    plan = plan_cohort(60, 0, CohortConfig())
    grades = [spec.grade for spec in plan.values()]
    assert Counter(grades) == dict.fromkeys(range(6), 10)
    patients = Counter(name.rpartition("-")[0] for name in plan)
    assert set(patients.values()) == {1, 2}
    assert len({spec.seed for spec in plan.values()}) == 60
    assert abs(np.corrcoef(grades, [spec.pen for spec in plan.values()])[0, 1]) < 0.35


@pytest.mark.parametrize(
    "bad", [{"levels": (2, 4)}, {"levels": (1, 4, 6)}, {"grade": 6}, {"tile": 100}, {"colour": 1}]
)
def test_impossible_specs_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="SlideSpec"):
        small(**bad)


def test_a_grade_that_does_not_fit_says_so() -> None:
    with pytest.raises(ConfigError, match="larger"):
        draw_scene(small(width=256, height=256, grade=3, tissue_share=0.05))


@settings(max_examples=30, deadline=None)
@given(
    scale=st.integers(1, 5), x=st.integers(-7, 60), y=st.integers(-7, 60),
    width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 9),
)  # fmt: skip
def test_upsampling_is_the_same_wherever_the_block_lies(
    scale: int, x: int, y: int, width: int, height: int, seed: int
) -> None:
    field = np.random.default_rng(seed).standard_normal((30, 30)).astype(np.float32)
    whole = upsample(field, scale, -8, -8, 120, 120)
    part = upsample(field, scale, x, y, width, height)
    assert np.allclose(part, whole[y + 8 : y + 8 + height, x + 8 : x + 8 + width], atol=1e-5)


@given(factor=st.integers(1, 5), rows=st.integers(5, 12), columns=st.integers(5, 12))
def test_box_mean_is_the_rounded_mean(factor: int, rows: int, columns: int) -> None:
    image = np.random.default_rng(rows).integers(0, 256, (rows, columns, 3)).astype(np.uint8)
    cut = image[: rows // factor * factor, : columns // factor * factor].astype(float)
    expected = cut.reshape(rows // factor, factor, columns // factor, factor, 3).mean((1, 3))
    assert np.abs(box_mean(image, factor) - expected).max() <= 0.5
