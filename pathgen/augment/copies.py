"""Does the E-LDM draw its training patches anew? Nearest real patches of synthetic images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pathgen.augment.looks import SIDE, Look, shrink, spread
from pathgen.augment.paint import Painter
from pathgen.augment.plan import CHECK, chance_for
from pathgen.data.patches import PatchDataset
from pathgen.data.sources import PatchSource
from pathgen.evaluate.knn import unit_length
from pathgen.train.autoencoder import load_images
from pathgen.train.sheets import Picture, to_pixels, write_sheet

#: A synthetic image nearer to a real patch than this share of real patches to their nearest.
RARE = 0.01
#: Pairs on the sheet, so many a line.
SHOWN, A_LINE = 12, 4
#: Squared distances held at a time: 256 MiB.
DISTANCES = 64 * 2**20


class Nearest(NamedTuple):
    """The reference nearest to each query."""

    distance: NDArray[np.float64]
    row: NDArray[np.int64]


def find_copies(
    path: Path, looks: Mapping[str, Look], painter: Painter, sources: Sequence[PatchSource]
) -> dict[str, Any]:
    """Nearest real patches of the images in `looks`, by pixels and by embedding; and a sheet.

    Pixels: the root mean square difference, 0 to 1, of both at 32 px. Embedding: the distance of
    unit vectors. An image is suspect when it is as near to a real patch as only 1 % of real
    patches are to their nearest other one; of images no more like a patch than patches are like
    each other, about 1 % are. A generative image is meant to be near its own source, hence the
    two counts; one that is suspect by pixels, and of another patch, is a memory.

    The real patches are the sources of the images and others up to `check.real`; the 12 pairs
    nearest by pixels are on the sheet.

    Returns:
        images (of each kind), real, reference (real patches whose nearest was looked for), and
        for pixels and embedding: threshold, real (spread of nearest distances), and for each kind
        nearest (spread), nearest_is_source, suspects, suspects_of_source, suspects_of_others
        (shares of the images; the latter two sum to suspects).
    """
    check = painter.config.check
    chance = chance_for(painter.config, CHECK)
    rows = _real_rows(looks, painter, chance)
    patches = PatchDataset(list(sources))
    small = _shrunk(patches, rows, painter)
    asked = np.sort(chance.permutation(len(rows))[: max(1, check.images)])
    embedded = painter.encoder is not None
    spaces = {"pixels": small / np.float32(small.shape[1] ** 0.5)}
    if embedded:
        spaces["embedding"] = unit_length(painter.conditions.vectors[rows].numpy())
    result: dict[str, Any] = {
        "images": {kind: len(seen.recipes) for kind, seen in looks.items()},
        "real": len(rows), "reference": len(asked), "side": SIDE,
    }  # fmt: skip
    pairs: list[_Pair] = []
    for space, real in spaces.items():
        among = nearest(real[asked], real, painter.device, itself=asked)
        threshold = float(np.quantile(among.distance, RARE)) if len(rows) > 1 else 0.0
        result[space] = {"threshold": threshold, "real": spread(among.distance)}
        for kind, seen in looks.items():
            queries = (
                seen.small / np.float32(seen.small.shape[1] ** 0.5)
                if space == "pixels"
                else unit_length(seen.embeddings)
            )
            found = nearest(queries, real, painter.device)
            own = _is_source(seen, rows[found.row], painter)
            result[space][kind] = _shares(found, own, threshold)
            if space == "pixels":
                pairs += _pairs(kind, seen, found, own, rows)
    closest = sorted(pairs, key=lambda pair: pair.distance)[:SHOWN]
    _sheet(path, closest, patches, painter)
    return result


def nearest(
    queries: NDArray[np.float32],
    reference: NDArray[np.float32],
    device: torch.device,
    itself: NDArray[np.int64] | None = None,
) -> Nearest:
    """By Euclidean distance: (Q, D), (R, D) -> (Q,) each, a part of the queries at a time.

    `itself`: the place of each query among the references, which does not count.
    """
    there = torch.from_numpy(np.ascontiguousarray(reference)).to(device)
    squares = there.square().sum(1)
    step = max(1, DISTANCES // len(reference))
    distances, indices = [], []
    for start in range(0, len(queries), step):
        part = torch.from_numpy(np.ascontiguousarray(queries[start : start + step])).to(device)
        values = squares - 2 * part @ there.T  # but for the query's own square, which is no matter
        if itself is not None:
            places = torch.from_numpy(itself[start : start + step]).to(device)
            values[torch.arange(len(part), device=device), places] = torch.inf
        index = values.argmin(1)
        # Anew, as the difference of large squares has few digits where it is small.
        exact = (part.cpu().double() - there[index].cpu().double()).norm(dim=1)
        distances.append(exact.numpy())
        indices.append(index.cpu().numpy())
    return Nearest(np.concatenate(distances), np.concatenate(indices))


class _Pair(NamedTuple):
    """A synthetic image and the real patch nearest to it."""

    distance: float
    kind: str
    seen: Look
    place: int
    """among the images of `seen`"""
    real: int
    own: bool


def _real_rows(
    looks: Mapping[str, Look], painter: Painter, chance: np.random.Generator
) -> NDArray[np.int64]:
    """Numbers of the real patches to compare with, rising: all sources, and others at random."""
    named = {
        painter.conditions.index(patch)
        for seen in looks.values()
        for recipe in seen.recipes
        for patch in recipe.patches
    }
    sources = np.array(sorted(named), np.int64)
    others = chance.permutation(len(painter.conditions.vectors))
    others = others[~np.isin(others, sources)]
    more = max(0, painter.config.check.real - len(sources))
    return np.sort(np.concatenate([sources, others[:more]]))


def _shrunk(
    patches: PatchDataset, rows: NDArray[np.int64], painter: Painter
) -> NDArray[np.float32]:
    """Real patches as the E-LDM was shown them, small: (R, 3 SIDE SIDE)."""
    size, batch = painter.autoencoder.config.image_size, painter.config.batch_size
    parts = [
        shrink(load_images(patches, rows[start : start + batch].tolist(), size).to(painter.device))
        for start in range(0, len(rows), batch)
    ]
    return np.concatenate(parts)


def _is_source(seen: Look, real: NDArray[np.int64], painter: Painter) -> NDArray[np.bool_]:
    """Whether the patch found is one of those that the image was drawn from, (n,)."""
    return np.array([
        index in {painter.conditions.index(patch) for patch in recipe.patches}
        for index, recipe in zip(real.tolist(), seen.recipes, strict=True)
    ])  # fmt: skip


def _shares(found: Nearest, own: NDArray[np.bool_], threshold: float) -> dict[str, Any]:
    suspect = found.distance <= threshold
    return {
        "nearest": spread(found.distance),
        "nearest_is_source": float(own.mean()),
        "suspects": float(suspect.mean()),
        "suspects_of_source": float((suspect & own).mean()),
        "suspects_of_others": float((suspect & ~own).mean()),
    }


def _pairs(
    kind: str, seen: Look, found: Nearest, own: NDArray[np.bool_], rows: NDArray[np.int64]
) -> list[_Pair]:
    places = np.argsort(found.distance, kind="stable")[:SHOWN].tolist()
    return [
        _Pair(float(found.distance[i]), kind, seen, i, int(rows[found.row[i]]), bool(own[i]))
        for i in places
    ]


def _sheet(path: Path, pairs: Sequence[_Pair], patches: PatchDataset, painter: Painter) -> None:
    """Each synthetic image beside the real patch nearest to it by pixels."""
    size = painter.autoencoder.config.image_size
    cells: list[list[Picture]] = []
    for pair in pairs:
        item = [int(pair.seen.items[pair.place])]
        real = to_pixels(load_images(patches, [pair.real], size))[0]
        cells.append([
            Picture(f"{pair.kind} {pair.distance:.3f}", pair.seen.images.images(item)[0]),
            Picture("its source" if pair.own else "another patch", real),
        ])  # fmt: skip
    lines = [
        [picture for cell in cells[i : i + A_LINE] for picture in cell]
        for i in range(0, len(cells), A_LINE)
    ]
    write_sheet(path, lines)
