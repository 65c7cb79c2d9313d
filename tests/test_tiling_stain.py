"""The hematoxylin score tells nuclei-rich patches from pink and white ones, whatever the stain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pathgen.synthetic.optics import Renderer
from pathgen.synthetic.spec import SlideSpec
from pathgen.synthetic.tissue import draw_scene
from pathgen.synthetic.truth import SlideTruth
from pathgen.tiling.stain import stain_scores
from pathgen.tiling.tissue import background

SIDE, MPP = 128, 0.5
#: Nuclei per mm2 of what is called rich, and most of what is called pink.
RICH, POOR = 2000, 250


def scored(seed: int, variation: float) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Of a slide's patches that are clearly one or the other: rich in nuclei, and the score."""
    spec = SlideSpec(
        width=2048, height=2048, mpp=MPP, seed=seed, grade=seed % 6, tissue_share=0.6,
        stain_variation=variation, scanner_variation=variation,
    )  # fmt: skip
    renderer = Renderer(draw_scene(spec))
    truth = SlideTruth.of(renderer)
    pixels = renderer.block(0, 0, spec.width, spec.height)
    cells = spec.width // SIDE
    patches = pixels.reshape(cells, SIDE, cells, SIDE, 3).swapaxes(1, 2).reshape(-1, SIDE, SIDE, 3)
    columns, rows = (truth.nuclei // SIDE).astype(int).T
    counts = np.bincount(rows * cells + columns, minlength=cells**2)[: cells**2]
    density = counts / (SIDE * MPP / 1000) ** 2
    glass = background(np.ascontiguousarray(pixels[::16, ::16]))
    score = stain_scores(np.ascontiguousarray(patches), 4, glass)["hematoxylin"]
    clear = (density >= RICH) | (density <= POOR)
    return density[clear] >= RICH, score[clear]


def area(variation: float, seeds: range) -> float:
    """Area under the ROC curve of the patches of all slides together, with one threshold."""
    found = [scored(seed, variation) for seed in seeds]
    truth, score = (np.concatenate(part) for part in zip(*found, strict=True))
    assert truth.sum() > 50
    assert (~truth).sum() > 50
    return float(roc_auc_score(truth, score))


def test_nuclei_come_apart_from_pink_and_white() -> None:
    assert area(0, range(40, 42)) > 0.99


def test_and_stay_apart_over_the_variations_of_stain_and_scanner() -> None:
    assert area(1.5, range(50, 54)) > 0.97
