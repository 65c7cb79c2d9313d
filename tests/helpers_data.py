"""Small patch, augmentation and image-folder inputs for the tests of data and views."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pathgen.provenance import Provenance
from pathgen.stores import (
    PatchSpec,
    PatchStore,
    Recipe,
    SelfAugmentationStore,
    SlideFacts,
    encode_patch,
    recipe_columns,
)
from pathgen.stores.patches import MEASURES


def noise(rng: np.random.Generator, n: int, size: int) -> NDArray[np.uint8]:
    """Smooth random color fields, (n, size, size, 3) uint8."""
    result = np.empty((n, size, size, 3), np.uint8)
    for image, seed in zip(result, rng.integers(0, 256, (n, 5, 5, 3), dtype=np.uint8), strict=True):
        image[:] = Image.fromarray(seed).resize((size, size), Image.Resampling.BICUBIC)
    return result


def make_patches(
    path: Path,
    images: NDArray[np.uint8],
    name: str = "slide",
    label: str | None = None,
    patient: str | None = None,
    places: Sequence[tuple[int, int]] | None = None,
) -> PatchStore:
    """A lossless patch store of these images, at grid places (x, y) or in a row along x."""
    n, size = images.shape[:2]
    slide = SlideFacts(name=name, identity=f"id of {name}", width=10_000, height=10_000)
    provenance = Provenance(stage="tile", config={"n": n}, inputs={"slide": slide.identity})
    geometry = {
        "patch_size_level0": float(size), "read_level": 0, "mpp_error": 0.0, "level0_mpp": 0.5
    }  # fmt: skip
    with PatchStore.create(
        path, PatchSpec(size=size), provenance, codec="png", slide=slide, geometry=geometry,
        label=label, patient=patient,
    ) as writer:  # fmt: skip
        if n:
            x, y = np.array(places or [(i, 0) for i in range(n)], np.int64).T * size
            writer.append(
                image=[encode_patch(image, "png") for image in images],
                coords=np.stack([x, y], 1),
                grid=np.stack([y // size, x // size], 1).astype(np.int32),
                made=np.ones(n, np.uint8),
                **{measure: np.ones(n, np.float32) for measure in MEASURES},
            )
    return PatchStore.open(path)


def make_augmentations(
    path: Path,
    images: NDArray[np.uint8],
    recipes: Sequence[Recipe],
    sources: Sequence[str],
    mixed: int = 2,
) -> SelfAugmentationStore:
    provenance = Provenance(
        stage="augment", config={"mixed": mixed}, inputs={"patches": ",".join(sources)}
    )
    with SelfAugmentationStore.create(
        path,
        images.shape[1],
        provenance,
        sources=sources,
        facts={"guidance": 2.0},
        mixed=mixed,
    ) as writer:
        writer.append(
            image=[encode_patch(image, "png") for image in images],
            **recipe_columns(recipes, sources, mixed=mixed),
            cosine=np.full(len(recipes), np.nan, np.float32),
        )
    return SelfAugmentationStore.open(path)


def make_folder(path: Path, images: dict[str, NDArray[np.uint8]]) -> Path:
    """Image files by relative name."""
    for name, image in images.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path / name)
    return path
