"""Retrieval, copies and video: scores by independent arithmetic, data as they are laid out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage.morphology import dilation, disk
from sklearn.decomposition import PCA

torch = pytest.importorskip("torch")

from pathgen.cli import main  # noqa: E402
from pathgen.errors import DataError, NoInputError  # noqa: E402
from pathgen.evaluate.natural.copies import copy_features, copy_map, evaluate_copies  # noqa: E402
from pathgen.evaluate.natural.outlines import contour_accuracy, region_similarity  # noqa: E402
from pathgen.evaluate.natural.ranking import (  # noqa: E402
    Whitening,
    average_precision,
    places_without,
)
from pathgen.evaluate.natural.retrieval import (  # noqa: E402
    Query,
    evaluate_retrieval,
    read_buildings,
    retrieval_scores,
)
from pathgen.evaluate.natural.video import (  # noqa: E402
    Propagation,
    evaluate_video,
    frame_size,
    neighborhood,
    propagate,
)
from pathgen.models.encoder import Encoder, EncoderConfig  # noqa: E402
from pathgen.progress import Silent  # noqa: E402
from pathgen.runs import save_model  # noqa: E402

SMALL = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(name="vit_tiny_patch16_224", image_size=64, drop_path=0.0, kwargs=SMALL)
    return Encoder(config).eval()


def picture(seed: int, height: int = 96, width: int = 128) -> np.ndarray:
    """Blurred blobs of a color of their own, so that likeness has a meaning."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, image: np.ndarray, **options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)


# --- scores --------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 5))
def test_average_precision_is_the_area_under_the_curve(relevant: list[bool], never: int) -> None:
    positives = sum(relevant) + never
    if not positives:
        return
    area, recall, precision, hits = 0.0, 0.0, 1.0, 0
    for place, good in enumerate(relevant):  # walk the curve point by point
        hits += good
        new_recall, new_precision = hits / positives, hits / (place + 1)
        area += (new_recall - recall) * (precision + new_precision) / 2
        recall, precision = new_recall, new_precision
    ranks = [place for place, good in enumerate(relevant) if good]
    assert average_precision(ranks, positives) == pytest.approx(area)


def test_what_is_ignored_moves_the_others_up() -> None:
    assert places_without([4, 7, 1, 9, 3], {1, 3}, {7, 4}) == [0, 2]


def test_hard_ignores_easy_and_counts_only_queries_with_something_to_find() -> None:
    order = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    truth = [
        Query(easy=frozenset({1}), hard=frozenset({2}), junk=frozenset({0})),
        Query(easy=frozenset({3}), hard=frozenset(), junk=frozenset()),
    ]
    scores = retrieval_scores(order, truth)
    assert scores == {"map_medium": 1.0, "map_hard": 1.0, "queries_medium": 2, "queries_hard": 1}
    worse = retrieval_scores(order[:1], [truth[0]._replace(junk=frozenset())])
    assert worse["map_hard"] == pytest.approx((0 + 1 / 2) / 2)  # second of 0, 2, 3


def test_whitening_of_centered_vectors_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(500, 6)) @ rng.normal(size=(6, 6))
    mixed -= mixed.mean(0)  # only then is the second moment the covariance
    ours = Whitening(mixed)(mixed)
    theirs = PCA(whiten=True).fit_transform(mixed)
    gram = ours @ ours.T
    np.testing.assert_allclose(gram, theirs @ theirs.T * 500 / 499, atol=1e-8 * np.abs(gram).max())


# --- masks ---------------------------------------------------------------------------------


def by_dilation(found: np.ndarray, truth: np.ndarray) -> float:
    """F written out with footprints in place of distances."""

    def edge(mask: np.ndarray) -> np.ndarray:
        height, width = mask.shape
        out = np.zeros_like(mask)
        for y in range(height):
            for x in range(width):
                others = [(min(y + dy, height - 1), min(x + dx, width - 1))
                          for dy, dx in ((0, 1), (1, 0), (1, 1))]  # fmt: skip
                out[y, x] = any(mask[y, x] != mask[other] for other in others)
        return out

    footprint = disk(int(np.ceil(0.008 * np.hypot(*truth.shape))))
    own, other = edge(found), edge(truth)
    precision = (own & dilation(other, footprint)).sum() / own.sum()
    recall = (other & dilation(own, footprint)).sum() / other.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(4))
def test_contours_agree_with_dilation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:60, :200]
    masks = []
    for _ in range(2):
        cy, cx, r = rng.uniform(10, 50), rng.uniform(60, 140), rng.uniform(8, 25)
        masks.append((y - cy) ** 2 + (x - cx) ** 2 < r**2)
    assert contour_accuracy(*masks) == pytest.approx(by_dilation(*masks))
    union, inner = masks[0] | masks[1], masks[0] & masks[1]
    assert region_similarity(*masks) == inner.sum() / union.sum()


def test_empty_masks_agree_with_each_other_alone() -> None:
    empty, full = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    full[3:6, 3:6] = True
    assert (region_similarity(empty, empty), contour_accuracy(empty, empty)) == (1, 1)
    assert (region_similarity(full, empty), contour_accuracy(full, empty)) == (0, 0)
    assert (region_similarity(full, full), contour_accuracy(full, full)) == (1, 1)


# --- passing labels on ---------------------------------------------------------------------


def test_labels_come_from_the_most_similar_near_places() -> None:
    grid, radius, k, temperature = (4, 5), 1, 3, 0.1
    n = grid[0] * grid[1]
    torch.manual_seed(0)
    now, *before = torch.nn.functional.normalize(torch.randn(3, n, 8), dim=-1).double()
    labels = [torch.rand(n, 2).double() for _ in before]
    got = propagate(
        now, list(zip(before, labels, strict=True)), neighborhood(grid, radius),
        Propagation(radius=radius, neighbors=k, temperature=temperature),
    )  # fmt: skip
    for i in range(n):
        row, column = divmod(i, grid[1])
        votes = sorted(
            (
                (float((now[i] @ vectors[j] / temperature).exp()), values[j].numpy())
                for vectors, values in zip(before, labels, strict=True)
                for j in range(n)
                if abs(j // grid[1] - row) <= radius and abs(j % grid[1] - column) <= radius
            ),
            key=lambda vote: -vote[0],
        )[:k]
        total = sum(weight for weight, _ in votes)
        expected = sum(weight / total * label for weight, label in votes)
        np.testing.assert_allclose(got[i], expected, atol=1e-12)


def test_frames_keep_their_short_side_and_lose_a_rest_of_the_long_one() -> None:
    assert frame_size(480, 854) == (480, 832)
    assert frame_size(1920, 1080) == (832, 480)


# --- whole protocols on made-up data -------------------------------------------------------


def buildings(root: Path) -> Path:
    """Six views of three things; a query is another rendering of one of them."""
    names = [f"thing{i % 3}_{i}" for i in range(6)]
    for i, name in enumerate(names):
        save(root / "jpg" / f"{name}.jpg", picture(i % 3), quality=95 - 10 * (i // 3))
    save(root / "jpg" / "query.jpg", picture(1), quality=90)
    truth = {
        "easy": np.array([1]),
        "hard": [4],
        "junk": np.array([], np.int64),
        "bbx": [0, 0, 9, 9],
    }
    table = {"imlist": names, "qimlist": ["query"], "gnd": [truth]}
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(table))
    return root


@pytest.mark.parametrize("multiscale", [False, True])
def test_retrieval_finds_the_same_thing(tmp_path: Path, encoder: Encoder, multiscale: bool) -> None:
    values = evaluate_retrieval(encoder, buildings(tmp_path), image_size=80, multiscale=multiscale)
    assert values["map_medium"] == values["map_hard"] == 1.0
    assert values["scales"] == (3 if multiscale else 1)


def test_a_truth_file_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit",))

    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps({"gnd": [Bad()]}))
    with pytest.raises(DataError, match=r"PG-D20.*builtins\.exec"):
        read_buildings(tmp_path)


def test_a_folder_of_something_else_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="gnd_"):
        read_buildings(tmp_path)


def copydays(root: Path) -> Path:
    for i in range(4):
        image = picture(i)
        save(root / "original" / f"{200 + i:04d}00.jpg", image)
        save(root / "strong" / f"{200 + i:04d}07.jpg", image[8:-8, 8:-8], quality=30)
        save(root / "jpegqual" / "5" / f"{200 + i:04d}00.jpg", image, quality=5)
        save(root / "other" / f"{i}.jpg", picture(50 + i))
    return root


def test_copies_are_found_among_distractors(tmp_path: Path, encoder: Encoder) -> None:
    root = copydays(tmp_path)
    values = evaluate_copies(encoder, root, distractors=root / "other", image_size=64)
    assert list(values["map"]) == ["strong", "jpegqual/5"]
    assert values["database"] == 8
    assert values["dim"] == 2 * encoder.dim
    assert values["map"]["jpegqual/5"] == 1.0
    assert values["map"]["strong"] > 0.5
    whitened = evaluate_copies(encoder, root, whitening=root / "other", image_size=64)
    assert whitened["whitened"]
    assert set(whitened["map"]) == set(values["map"])


def test_only_the_first_twenty_places_count() -> None:
    order = np.arange(40)[None]
    assert copy_map(order, [[19]]) == pytest.approx((0 + 1 / 20) / 2)
    assert copy_map(order, [[20]]) == 0.0


def test_the_copy_vector_is_class_token_and_generalized_mean(
    tmp_path: Path, encoder: Encoder
) -> None:
    save(tmp_path / "a.png", picture(3, 64, 64))
    (vector,) = copy_features(encoder, [tmp_path / "a.png"], 64, 1, "", Silent())
    image = torch.from_numpy(picture(3, 64, 64).copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        tokens = encoder.tokens(image)[0].double().numpy()
        token = encoder(image)[0].double().numpy()
    pooled = (np.maximum(tokens, 1e-6) ** 4).mean(0) ** 0.25
    np.testing.assert_allclose(vector, np.concatenate([token, pooled]), rtol=1e-4, atol=1e-6)


def test_unpaired_copies_are_refused(tmp_path: Path, encoder: Encoder) -> None:
    root = copydays(tmp_path)
    (root / "strong" / "999900.jpg").write_bytes((root / "strong" / "020007.jpg").read_bytes())
    with pytest.raises(DataError, match=r"PG-D20.*999900"):
        evaluate_copies(encoder, root, image_size=64)


def davis(root: Path, frames: int = 4) -> Path:
    """A red square that moves over a blue ground by one patch a frame."""
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("square\n")
    for t in range(frames):
        image = np.full((480, 640, 3), (20, 40, 200), np.uint8)
        mask = np.zeros((480, 640), np.uint8)
        place = np.s_[160:320, 160 + 16 * t : 320 + 16 * t]
        image[place], mask[place] = (220, 30, 30), 1
        save(root / "JPEGImages" / "480p" / "square" / f"{t:05d}.jpg", image)
        save(root / "Annotations" / "480p" / "square" / f"{t:05d}.png", mask)
    return root


def test_a_square_is_followed(tmp_path: Path, encoder: Encoder) -> None:
    values = evaluate_video(encoder, davis(tmp_path))
    assert values["objects"] == 1
    assert values["j_mean"] > 0.8  # standing still would give 0.82, then 0.67
    assert values["jf_mean"] == pytest.approx((values["j_mean"] + values["f_mean"]) / 2)


def test_missing_annotations_are_named(tmp_path: Path, encoder: Encoder) -> None:
    root = davis(tmp_path)
    next((root / "Annotations" / "480p" / "square").glob("*.png")).unlink()
    with pytest.raises(DataError, match=r"PG-D20.*square"):
        evaluate_video(encoder, root)


# --- commands ------------------------------------------------------------------------------


def test_the_command_writes_what_it_says(
    tmp_path: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "encoder", encoder)
    root = buildings(tmp_path / "roxford5k")
    given = ["--encoder", str(tmp_path / "encoder"), "--device", "cpu"]
    result = ["--image-size", "64", "-o", str(tmp_path / "r.json")]
    main_exit(["evaluate", "retrieval", str(root), *given, *result])
    assert "mAP Medium 1.000, Hard 1.000 on roxford5k" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["queries_hard"] == 1


def test_a_wrong_folder_ends_with_code_four(
    tmp_path: Path, encoder: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "encoder", encoder)
    for command in ("retrieval", "copies", "video"):
        code = main_exit(["evaluate", command, str(tmp_path), "--encoder",
                          str(tmp_path / "encoder"), "--device", "cpu"])  # fmt: skip
        assert code == 4
        assert "PG-N01" in capsys.readouterr().err


def main_exit(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)
