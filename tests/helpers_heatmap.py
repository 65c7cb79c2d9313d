"""A slide whose tumor is known and told apart by color, and heads that see it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import shapely
import tifffile
import torch
from helpers_tiling import write_svs
from numpy.typing import NDArray

from pathgen.modelfiles import save_model
from pathgen.models.mil import MILConfig, MILHead, build_head

#: The slide, the tumor in it (L-shaped, so that no turn or flip of it is itself), its scale.
WIDTH, HEIGHT, MPP = 1800, 1400, 0.5
TUMOR = shapely.Polygon(
    [(310, 250), (760, 250), (760, 700), (1390, 700), (1390, 1110), (310, 1110)]
)
TISSUE = shapely.box(120, 130, 1690, 1290)
#: Where the scanned part begins on the canvas of a slide with bounds.
CORNER = (2600, 3300)


def tumor_image() -> NDArray[np.uint8]:
    """Glass, pink tissue, and in it a tumor in the colors of nuclei."""
    rng = np.random.default_rng(5)
    image = np.full((HEIGHT, WIDTH, 3), 243, np.float32)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    image[shapely.contains_xy(TISSUE, columns, rows)] = (224, 140, 190)
    image[shapely.contains_xy(TUMOR, columns, rows)] = (120, 70, 160)
    image += rng.normal(0, 3, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def write_slides(folder: Path) -> dict[str, Path]:
    """The same pixels without bounds (SVS) and with them (Leica SCN)."""
    image = tumor_image()
    plain = write_svs(folder / "plain.svs", image, mpp=MPP, levels=(1, 4))
    return {"plain": plain, "bounded": write_scn(folder / "bounded.scn", image)}


def write_scn(path: Path, image: NDArray[np.uint8]) -> Path:
    """A BigTIFF that OpenSlide opens as Leica: a small scanned part of a large canvas."""
    height, width = image.shape[:2]
    nm, full = int(MPP * 1000), (6000, 7000)
    macro = np.full((64, 48, 3), (255, 0, 0), np.uint8)  # never to be shown
    images = [
        _scn_image(width, height, nm, CORNER, "20", [(width, height), (width // 4, height // 4)]),
        _scn_image(*full, nm, (0, 0), "0.6", [(48, 64)], first=2),
    ]
    text = (
        '<?xml version="1.0" encoding="utf-8"?>'
        '<scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01" uuid="urn:uuid:0">'
        f'<collection name="c" sizeX="{full[0] * nm}" sizeY="{full[1] * nm}">{"".join(images)}'
        "</collection></scn>"
    )
    small = image[: height // 4 * 4, : width // 4 * 4]
    small = small.reshape(height // 4, 4, width // 4, 4, 3).mean((1, 3))
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for number, level in enumerate((image, np.asarray(small + 0.5, np.uint8), macro)):
            tiff.write(
                level, tile=(64, 64) if level is macro else (256, 256), photometric="rgb",
                compression="jpeg", compressionargs={"level": 95}, metadata=None,
                resolution=(1e4 / MPP, 1e4 / MPP), resolutionunit="CENTIMETER",
                description=text if number == 0 else None, software=False,
            )  # fmt: skip
    return path


def _scn_image(
    width: int, height: int, nm: int, corner: tuple[int, int], objective: str,
    levels: list[tuple[int, int]], first: int = 0,
) -> str:  # fmt: skip
    dimensions = "".join(
        f'<dimension sizeX="{w}" sizeY="{h}" r="{i}" ifd="{first + i}"/>'
        for i, (w, h) in enumerate(levels)
    )
    return (
        '<image name="i"><creationDate>2024-01-01T00:00:00Z</creationDate>'
        '<device model="Leica SCN400" version="1"/>'
        f'<pixels sizeX="{levels[0][0]}" sizeY="{levels[0][1]}">{dimensions}</pixels>'
        f'<view sizeX="{width * nm}" sizeY="{height * nm}" offsetX="{corner[0] * nm}" '
        f'offsetY="{corner[1] * nm}" spacingZ="0"/><scanSettings><objectiveSettings>'
        f"<objective>{objective}</objective></objectiveSettings><illuminationSettings>"
        "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield"
        "</illuminationSource></illuminationSettings></scanSettings></image>"
    )


class MeanColor:
    """An encoder: the mean of red, green and blue, in 0..1."""

    dim = 3
    id = "mean-color"

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(patches.mean((1, 2)) / 255, np.float32)


def tumor_head(classes: int = 2) -> MILHead:
    """Plain attention on the share of tumor in a patch, read off its green; class 1 is tumor.

    Attention is softmax(3 tanh(d)) with d = relu(2.2 - 4 green); see `expected_attention`.
    """
    head = build_head(MILConfig(
        dim=3, outputs=classes, head="abmil-plain", embed=4, hidden=1, dropout=0
    ))  # fmt: skip
    state = {name: torch.zeros_like(value) for name, value in head.state_dict().items()}
    state["scale"] += 1
    state["embed.weight"][0, 1] = -4.0  # 4 (0.55 - green): about 0 in stroma, 1.1 in tumor
    state["embed.bias"][0] = 2.2
    for name in state:
        if name.endswith("content.weight"):
            state[name][0, 0] = 1.0
        if name.endswith("pool.weight.weight"):
            state[name][0, 0] = 3.0
    state["classify.weight"][1, 0] = 6.0
    state["classify.bias"][1] = -3.0
    head.load_state_dict(state)
    return head.eval()


def expected_attention(polygons: list[shapely.Polygon]) -> NDArray[np.float64]:
    """What `tumor_head` weighs of patches with these outlines, from the drawing alone."""
    tumor = shapely.area(shapely.intersection(polygons, TUMOR))
    tissue = shapely.area(shapely.intersection(polygons, TISSUE)) - tumor
    area = shapely.area(polygons)
    green = (70 * tumor + 140 * tissue + 243 * (area - tumor - tissue)) / area / 255
    weight = np.exp(3 * np.tanh(np.maximum(2.2 - 4 * green, 0)))
    return np.asarray(weight / weight.sum())


def write_run(folder: Path, heads: list[MILHead], splits: list[dict[str, list[str]]]) -> Path:
    """A folder as `train-mil` leaves it, as far as heatmaps read it."""
    folder.mkdir(parents=True)
    provenance = {"stage": "mil", "config": {}, "inputs": {"encoder": MeanColor.id}}
    (folder / "provenance.json").write_text(json.dumps(provenance))
    (folder / "splits.json").write_text(json.dumps(splits))
    for number, head in enumerate(heads):
        fold = folder / f"fold-{number}"
        save_model(fold / "model", head)
        (fold / "metrics.json").write_text(json.dumps({"classes": ["benign", "tumor"]}))
    return folder
