"""On a synthetic H&E slide whose tumor is known to 2 um, with and without bounds: the attention of
a head that knows each patch by its pixels alone lies on the tumor, as shapely has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import shapely
from helpers_heatmap import CORNER, MPP, tumor_head, write_run, write_scn
from numpy.typing import NDArray
from shapely import affinity
from shapely.geometry import shape
from sklearn.neighbors import NearestNeighbors

torch = pytest.importorskip("torch")

from pathgen.heatmap import HeatmapConfig, load_model  # noqa: E402
from pathgen.synthetic import SlideSpec, SlideTruth, make_slide  # noqa: E402
from pathgen.tiling import TileConfig, tile  # noqa: E402

SIZE, STEP, SHRINK = 96, 24, 8
TUMOR_CLASSES = (3, 4, 5)  # the patterns


class Recognizer:
    """Finds a patch's pixels among those of the whole slide, and says how much tumor is there.

    It never learns where a patch was cut; its pictures were read by OpenSlide, on a grid of its
    own, of which that of tiling is a part. Vector: what `tumor_head` reads as that share, in the
    place of green.
    """

    dim = 3
    id = "mean-color"  # what the run was trained on

    def __init__(self, image: NDArray[np.uint8], truth: SlideTruth) -> None:
        tumor = np.isin(truth.classes, TUMOR_CLASSES).astype(np.float64)
        rows = np.arange(0, image.shape[0] - SIZE + 1, STEP)
        columns = np.arange(0, image.shape[1] - SIZE + 1, STEP)
        places = np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2)
        patches = np.stack([image[y : y + SIZE, x : x + SIZE] for x, y in places])
        side = SIZE // truth.scale
        self.shares = np.array([
            tumor[y : y + side, x : x + side].mean() for x, y in places // truth.scale
        ])  # fmt: skip
        self.known = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(self._small(patches))

    @staticmethod
    def _small(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        blocks = patches.reshape(len(patches), SIZE // SHRINK, SHRINK, SIZE // SHRINK, SHRINK, 3)
        return np.asarray(blocks.mean((2, 4)), np.float32).reshape(len(patches), -1)

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        found = self.known.kneighbors(self._small(patches), return_distance=False)[:, 0]
        vectors = np.zeros((len(patches), 3), np.float32)
        vectors[:, 1] = 0.55 - 0.275 * self.shares[found]
        return vectors


def outline(truth: SlideTruth) -> Any:
    """The tumor as an area of level-0 pixels: its cells, run by run."""
    tumor = np.isin(truth.classes, TUMOR_CLASSES)

    def runs() -> Iterator[Any]:
        for row, cells in enumerate(tumor):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], cells.astype(int), [0]])))
            for start, end in edges.reshape(-1, 2):
                yield shapely.box(start, row, end, row + 1)

    return affinity.scale(shapely.union_all(list(runs())), truth.scale, truth.scale, origin=(0, 0))


def test_attention_lies_on_the_tumor_of_a_synthetic_slide(tmp_path: Path) -> None:
    spec = SlideSpec(width=1152, height=1152, grade=4, seed=3, tissue_share=0.6, levels=(1, 4))
    plain = tmp_path / "slides/plain.svs"
    truth = make_slide(plain, spec)
    with openslide.OpenSlide(plain) as slide:
        image = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))
    bounded = write_scn(tmp_path / "slides/bounded.scn", image)
    with openslide.OpenSlide(bounded) as slide:
        assert int(slide.properties["openslide.bounds-x"]) == CORNER[0]
    tumor, encoder = outline(truth), Recognizer(image, truth)
    config = TileConfig(patch_size=SIZE, mpp=MPP, overlap=24, min_hematoxylin=0, min_tissue=0.3)
    report = tile([plain, bounded], tmp_path / "tiles", config, workers=0)
    assert not report.failed
    run = write_run(tmp_path / "run", [tumor_head()], [{"train": [], "valid": [], "test": []}])
    model = load_model(
        run, patches=tmp_path / "tiles", encoder=encoder, config=HeatmapConfig(), device="cpu"
    )
    for path in (plain, bounded):
        found = model.heatmap(path).to_qupath(tmp_path / f"{path.stem}.geojson")
        features = json.loads(found.read_text())["features"]
        tiles = [shape(feature["geometry"]) for feature in features]
        attention = np.array([f["properties"]["measurements"]["attention"] for f in features])
        share = np.array([one.intersection(tumor).area / one.area for one in tiles])
        seen = np.log(attention / attention.min())
        # Tile by tile the share of tumor, which `tumor_head` makes 3 tanh(1.1 share).
        assert np.abs(np.arctanh(seen / 3) / 1.1 - share).max() < 0.02
        # As near to the outline as tiles can come, which are in it or not.
        middle = 3 * np.tanh(1.1 * 0.5)
        hot, best = (
            shapely.union_all([one for one, yes in zip(tiles, where, strict=True) if yes])
            for where in (seen > middle, share > 0.5)
        )
        overlap, possible = (
            area.intersection(tumor).area / area.union(tumor).area for area in (hot, best)
        )
        assert possible > 0.6
        assert overlap > possible - 0.02
        # A tenth of a patch aside it would not be so.
        moved = affinity.translate(tumor, SIZE / 10, 0)
        share = np.array([one.intersection(moved).area / one.area for one in tiles])
        assert np.abs(np.arctanh(seen / 3) / 1.1 - share).max() > 0.05
