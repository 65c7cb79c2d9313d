"""Small stores for the tests of exchange, made without the tiler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.provenance import Provenance, digest
from pathgen.stores.codec import encode_patch
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import NATIVE, PatchSpec, PatchStore, SlideFacts
from pathgen.tiling.maskattr import mask_attribute
from pathgen.tiling.tissue import TissueMask

#: The cells of a 4 x 4 block without one corner, (row, column).
BLOCK = [(r, c) for r in range(4) for c in range(4) if (r, c) != (0, 3)]


def write_patches(
    path: Path, name: str = "S1", cells: Sequence[tuple[int, int]] = BLOCK, *, size: int = 32,
    level0_mpp: float = 0.25, mpp: float = 0.5, downsamples: Sequence[float] = (1.0, 2.0, 4.0),
    bounds: tuple[int, int, int, int] = (100, 60, 1600, 1200), codec: str = "png",
    overlap: int = 0, mpp_y: float | None = None, side: float | None = None,
    mask: TissueMask | None = None, **known: Any,
) -> Path:  # fmt: skip
    """A patch store of `cells`, (row, column), on the grid over the bounds of a slide."""
    rng = np.random.default_rng(len(name))
    side = size * mpp / level0_mpp if side is None else side
    stride = side * (size - overlap) / size
    grid = np.array(cells, np.int32).reshape(-1, 2)
    coords = np.rint(grid[:, ::-1] * stride).astype(np.int64) + bounds[:2]
    facts = SlideFacts(
        name=name, identity=digest(name), width=2000, height=1500, bounds=bounds, vendor="aperio",
        objective=40.0, mpp_x=level0_mpp, mpp_y=mpp_y or level0_mpp, mpp_source="vendor",
        suffix=".svs", downsamples=tuple(downsamples),
        level_sizes=tuple((int(2000 / d), int(1500 / d)) for d in downsamples),
    )  # fmt: skip
    geometry = {
        "patch_size_level0": side, "read_level": 0, "mpp_error": 0.0, "level0_mpp": level0_mpp,
    }  # fmt: skip
    origin = Provenance(stage="tile", config={"size": size, "mpp": mpp}, inputs={"slide": name})
    images = rng.integers(0, 256, (len(grid), size, size, 3), dtype=np.uint8)
    with PatchStore.create(
        path, PatchSpec(size=size, mpp=mpp, overlap=overlap), origin, codec=codec, slide=facts,
        geometry=geometry, measures=("tissue", "hematoxylin"), **known,
    ) as writer:  # fmt: skip
        if mask is not None:
            writer.set_attr("tissue_mask", mask_attribute(mask))
        if len(grid):
            writer.append(
                image=[encode_patch(image, codec) for image in images], coords=coords, grid=grid,
                made=np.full(len(grid), NATIVE, np.uint8),
                tissue=rng.random(len(grid), np.float32),
                hematoxylin=rng.random(len(grid), np.float32),
            )  # fmt: skip
    return path


def write_features(
    path: Path, patches: Path, dim: int = 6, encoder: str = "vit", *, labeled: bool = False
) -> Path:
    """A feature store of the patches."""
    with PatchStore.open(patches) as source:
        keys = ("label", "patient", "patch_size", "patch_size_level0", "target_mpp", "level0_mpp",
                "overlap", "slide")  # fmt: skip
        facts = {key: source.attrs[key] for key in keys if source.attrs.get(key) is not None}
        features = vectors(len(source), dim, encoder)
        labels = np.arange(len(source), dtype=np.int32) % 3 - 1 if labeled else -1
        with FeatureStore.create(
            path, dim, Provenance(stage="extract", config={}, inputs={"patches": source.id}),
            encoder={"name": encoder, "id": digest(encoder), "dim": dim},
            source={"id": source.id, "name": source.name, **facts},
            classes=("stroma", "tumor") if labeled else (),
        ) as writer:  # fmt: skip
            if len(source):
                writer.append(
                    features=features, coords=source.coords(),
                    label=np.broadcast_to(np.int32(labels), len(source)),
                )  # fmt: skip
    return path


def vectors(count: int, dim: int = 6, encoder: str = "vit") -> NDArray[np.float32]:
    """What `write_features` stores."""
    rng = np.random.default_rng(len(encoder))
    return rng.normal(size=(count, dim)).astype(np.float32)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip
