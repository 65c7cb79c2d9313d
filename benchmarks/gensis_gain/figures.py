"""Figures of a study: losses of all arms, and the sheets of synthetic images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from arms import ARMS, BASELINE, StudyConfig
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from pieces import Piece, Place
from PIL import Image

from pathgen.runs import Run

#: One hue an arm, so that it keeps its color from figure to figure.
COLORS = dict(zip(ARMS, plt.get_cmap("tab10").colors, strict=False))


def draw_figures(study: StudyConfig, place: Place) -> None:
    """curves.png, accuracy.png, and per set the sheets that the augment stage of seed one drew."""
    draw_curves(study, place)
    for name in study.sets:
        folder = place.base(Piece(name, study.seeds[0], "")) / "augment"
        for sheet in sorted(folder.glob("*.png")):
            shrink(sheet, place.out / f"{name}-{sheet.name}")


def shrink(picture: Path, out: Path) -> None:
    """A copy in 256 colors: a third of the bytes, and hardly to be told apart."""
    with Image.open(picture) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)


def draw_curves(study: StudyConfig, place: Place) -> None:
    """DINO's loss over the steps, smoothed, one panel a set, mean over seeds."""
    figure, axes = plt.subplots(
        1, len(study.sets), figsize=(4.5 * len(study.sets), 3.2), squeeze=False
    )
    for axis, name in zip(axes[0], study.sets, strict=True):
        for arm in study.arms:
            runs = [path for seed in study.seeds if (path := _run(name, seed, arm, place)).exists()]
            if not runs:
                continue
            steps, losses = zip(*(_curve(path) for path in runs), strict=True)
            axis.plot(
                steps[0], smooth(np.mean(losses, axis=0)), label=ARMS[arm].title, color=COLORS[arm],
                linewidth=1.2,
            )  # fmt: skip
        axis.set(title=name, xlabel="step", ylabel="DINO loss (nats)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][-1].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(place.out / "curves.png", dpi=120)
    plt.close(figure)


def smooth(values: NDArray[np.float64], window: int = 9) -> NDArray[np.float64]:
    """Moving mean with the ends repeated; equal length."""
    window = min(window, len(values)) | 1
    padded = np.pad(values, window // 2, mode="edge")
    return np.convolve(padded, np.full(window, 1 / window), mode="valid")


def _run(name: str, seed: int, arm: str, place: Place) -> Path:
    piece = Piece(name, seed, arm)
    return place.base(piece) / "dino" if arm == BASELINE else piece.marker(place.out).parent / "run"


def _curve(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    lines = Run.open(path).step_log()
    return (
        np.array([line["step"] for line in lines]),
        np.array([line["loss_dino"] for line in lines], np.float64),
    )
