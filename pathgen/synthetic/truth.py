"""What is known about a synthetic slide, kept beside it in ``truth/<stem>/``.

truth.json (spec, grade, stain, shares), tissue.png and classes.png (at `mpp`), artifacts.png
(bits: 1 pen, 2 blur, 4 fold), nuclei.npz (centers and kinds).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathgen import commit
from pathgen.errors import DataError
from pathgen.synthetic.nuclei import KINDS
from pathgen.synthetic.optics import Renderer
from pathgen.synthetic.spec import BACKGROUND, CLASSES, SlideSpec

VERSION = 1  # raised whenever the same spec gives other pixels
PEN_BIT, BLUR_BIT, FOLD_BIT = 1, 2, 4


@dataclass(frozen=True)
class SlideTruth:
    """The truth of one slide. Positions are level-0 pixels (x, y), pixel i spanning i to i + 1.

    grade: ISUP-like, 0..5; shares: of the tissue, by pattern "3", "4", "5".
    stain_vectors: (2, 3) unit OD vectors, hematoxylin then eosin, by R, G, B.
    tissue: (rows, columns) bool, holes of glands and fat included; classes: uint8, an index into
    `class_names`; artifacts: uint8 bits; all at `mpp`, `scale` level-0 pixels a side.
    nuclei: (n, 2) float64 centers; nuclei_kind: (n,) uint8, an index into `nuclei_names`.
    points: (k, 2) float64 centers of the grid crosses.
    """

    spec: SlideSpec
    grade: int
    shares: dict[str, float]
    stain_vectors: NDArray[np.float64]
    stain_amounts: NDArray[np.float64]
    scanner: dict[str, Any]
    mpp: float
    scale: int
    tissue: NDArray[np.bool_]
    classes: NDArray[np.uint8]
    artifacts: NDArray[np.uint8]
    nuclei: NDArray[np.float64]
    nuclei_kind: NDArray[np.uint8]
    points: NDArray[np.float64]
    class_names: tuple[str, ...] = CLASSES
    nuclei_names: tuple[str, ...] = KINDS

    @property
    def label(self) -> int:
        """The slide's label: its grade."""
        return self.grade

    @classmethod
    def of(cls, renderer: Renderer) -> SlideTruth:
        """Read the truth off the scene that is rendered."""
        scene, spec = renderer.scene, renderer.scene.spec
        rows, columns = (-(-side // scene.scale) for side in (spec.height, spec.width))
        artifacts = np.zeros((rows, columns), np.uint8)
        for bit, weights in ((PEN_BIT, scene.pen), (BLUR_BIT, scene.blur), (FOLD_BIT, scene.fold)):
            if weights is not None:
                artifacts[weights[:rows, :columns] > 0.5] |= bit
        centers = scene.nuclei.centers
        inside = ((centers >= 0) & (centers < (spec.width, spec.height))).all(1)
        scanner = renderer.scanner
        return cls(
            spec=spec,
            grade=scene.grade,
            shares={str(pattern): share for pattern, share in scene.shares.items()},
            stain_vectors=renderer.stain.vectors,
            stain_amounts=renderer.stain.amounts,
            scanner={
                "white": scanner.white.tolist(), "contrast": scanner.contrast,
                "blur_um": scanner.blur, "noise": scanner.noise,
            },
            mpp=scene.mpp,
            scale=scene.scale,
            tissue=scene.depth[:rows, :columns] > 0,
            classes=scene.classes[:rows, :columns],
            artifacts=artifacts,
            nuclei=centers[inside].astype(np.float64),
            nuclei_kind=scene.nuclei.kind[inside],
            points=scene.points.astype(np.float64),
        )  # fmt: skip

    @classmethod
    def load(cls, slide: Path) -> SlideTruth:
        """The truth of the slide at `slide`. Raises DataError (PG-D10) where there is none."""
        folder = truth_folder(Path(slide))
        facts = read_facts(folder)
        with np.load(folder / "nuclei.npz") as arrays:
            centers, kind = arrays["centers"], arrays["kind"]
        return cls(
            spec=SlideSpec.model_validate(facts["spec"]),
            grade=facts["grade"],
            shares=facts["shares"],
            stain_vectors=np.array(facts["stain_vectors"]),
            stain_amounts=np.array(facts["stain_amounts"]),
            scanner=facts["scanner"],
            mpp=facts["mpp"],
            scale=facts["scale"],
            tissue=_read(folder / "tissue.png") > 0,
            classes=_read(folder / "classes.png"),
            artifacts=_read(folder / "artifacts.png"),
            nuclei=centers,
            nuclei_kind=kind,
            points=np.array(facts["points"], np.float64).reshape(-1, 2),
            class_names=tuple(facts["class_names"]),
            nuclei_names=tuple(facts["nuclei_names"]),
        )

    def save(self, slide: Path, size: int) -> None:
        """Write the folder beside `slide`, whole or not at all; `size` is the slide's, in bytes."""
        folder = truth_folder(slide)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with commit.draft(folder) as draft:
            draft.mkdir()
            (draft / "truth.json").write_text(json.dumps(self._facts(size), indent=2) + "\n")
            Image.fromarray(self.tissue.astype(np.uint8) * 255).save(draft / "tissue.png")
            Image.fromarray(self.classes).save(draft / "classes.png")
            Image.fromarray(self.artifacts).save(draft / "artifacts.png")
            np.savez_compressed(draft / "nuclei.npz", centers=self.nuclei, kind=self.nuclei_kind)

    def _facts(self, size: int) -> dict[str, Any]:
        return {
            "version": VERSION,
            "spec": self.spec.model_dump(mode="json"),
            "grade": self.grade,
            "shares": self.shares,
            "class_names": list(self.class_names),
            "nuclei_names": list(self.nuclei_names),
            "stain_vectors": self.stain_vectors.tolist(),
            "stain_amounts": self.stain_amounts.tolist(),
            "scanner": self.scanner,
            "mpp": self.mpp,
            "scale": self.scale,
            "points": self.points.tolist(),
            "slide_bytes": size,
        }

    def patch_labels(self, coords: NDArray[np.integer], side: float) -> NDArray[np.int64]:
        """Class of each patch: the commonest in the middle half of its sides.

        coords: (n, 2) level-0 top left corners; side: level-0 pixels. (n,) indices into
        `class_names`, -1 where background is the commonest.
        """
        corners = np.asarray(coords, np.float64).reshape(-1, 2) / self.scale
        start = np.floor(corners + 0.25 * side / self.scale).astype(np.int64)
        end = np.maximum(np.ceil(corners + 0.75 * side / self.scale).astype(np.int64), start + 1)
        rows, columns = self.classes.shape
        x0, x1 = (np.clip(edge[:, 0], 0, columns) for edge in (start, end))
        y0, y1 = (np.clip(edge[:, 1], 0, rows) for edge in (start, end))
        counts = np.empty((len(corners), len(self.class_names)), np.int64)
        for index in range(len(self.class_names)):
            total = np.pad((self.classes == index).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
            counts[:, index] = total[y1, x1] - total[y0, x1] - total[y1, x0] + total[y0, x0]
        commonest = counts.argmax(1)
        return np.where(commonest == BACKGROUND, -1, commonest)


def truth_folder(slide: Path) -> Path:
    """Where the truth of a slide lies: ``truth/<stem>`` beside it."""
    return slide.parent / "truth" / slide.stem


def read_facts(folder: Path) -> dict[str, Any]:
    """truth.json. Raises DataError (PG-D10) where it is missing or not ours."""
    try:
        facts = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            "no truth for this slide", code="PG-D10", where=folder, why=str(error),
            hint="only slides made by pathgen demo-slides have one",
        ) from error  # fmt: skip
    if not isinstance(facts, dict) or facts.get("version") != VERSION:
        raise DataError(
            "truth of another version", code="PG-D10", where=folder,
            hint="make the slides again with --overwrite",
        )  # fmt: skip
    return facts


def _read(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)
