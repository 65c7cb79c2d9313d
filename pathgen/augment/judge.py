"""How good the drawn patches are: numbers for the computer, sheets for the eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.augment.copies import find_copies
from pathgen.augment.curves import draw_curves, interpolation_curves
from pathgen.augment.filter import make_rule, random_pairs, reconstructions, would_fail
from pathgen.augment.looks import Look, look, spread
from pathgen.augment.paint import Painter, cosines
from pathgen.augment.plan import CHECK, SHEET, chance_for
from pathgen.data.patches import PatchDataset
from pathgen.data.sources import PatchSource
from pathgen.evaluate.generation import compare_sets, doubt
from pathgen.stores.augmentations import Recipe, SelfAugmentationStore
from pathgen.stores.features import FeatureStore
from pathgen.train.autoencoder import load_images
from pathgen.train.ldm import check_alignment
from pathgen.train.sheets import Picture, to_pixels, write_sheet

#: Random other patches that each image is compared with.
OTHERS = 16
#: Least images a side for FID and its kin.
FEWEST = 8


def measure(
    out: Path,
    paths: Sequence[Path],
    painter: Painter,
    features: Sequence[FeatureStore],
    sources: Sequence[PatchSource] | None,
) -> dict[str, Any]:
    """What `metrics.json` holds; writes the pictures.

    counts: planned = kept + dropped, resampled, attempts. generative, interpolated: cosines of
    re-embedded images with their conditions. random_pair, reconstruction: the same cosine for what
    bounds them, see `pathgen.augment.filter`. filter: the least cosine that was asked for, and
    what other limits would drop. closer_to_source, sets, copies and interpolation: see
    `closer_to_source`, `compare_kinds`, `copies.find_copies`, `curves.interpolation_curves`. None
    where something was not measured.
    """
    stores = [SelfAugmentationStore.open(path) for path in paths]
    config = painter.config
    cosine = np.concatenate([store.cosine() for store in stores])
    alpha = np.concatenate([store.table.read("alpha") for store in stores])
    judged = painter.encoder is not None
    references = {"random_pairs": random_pairs(painter)}
    if judged and sources is not None:
        references["reconstructions"] = reconstructions(painter, sources)
    rule = make_rule(painter, config, sources)
    metrics: dict[str, Any] = {
        "images": len(cosine),
        "counts": _counts(stores),
        "generative": spread(cosine[alpha == 1]),
        "interpolated": spread(cosine[alpha < 1]),
        "random_pair": spread(references["random_pairs"]),
        "reconstruction": spread(references.get("reconstructions", cosine[:0])),
        "filter": {
            "min_cosine": None if rule is None else rule.min_cosine,
            "would_fail": would_fail(cosine, references) if judged and len(cosine) else None,
        },
    }
    looks = look(stores, painter)
    metrics |= {
        "closer_to_source": closer_to_source(looks, painter) if judged else None,
        "sets": compare_kinds(looks, painter) if judged else None,
        "copies": None,
        "interpolation": interpolation_curves(painter) if judged else None,
    }
    if metrics["interpolation"] is not None:
        draw_curves(out / "interpolation.png", metrics["interpolation"])
    if sources is not None:
        check_alignment(sources, features)
        if looks:
            metrics["copies"] = find_copies(out / "memorization.png", looks, painter, sources)
        draw_sheet(out / "sheet.png", painter, features, sources)
    return metrics


def _counts(stores: Sequence[SelfAugmentationStore]) -> dict[str, int]:
    """Sums over the stores; planned = kept + dropped."""
    names = ("planned", "kept", "dropped", "resampled", "attempts")
    return {name: sum(int(store.attrs["counts"][name]) for store in stores) for name in names}


def closer_to_source(looks: Mapping[str, Look], painter: Painter) -> dict[str, Any] | None:
    """Share of comparisons in which an image's embedding is nearer to its source than to a random
    other patch, by cosine; 0.5 is what an E-LDM that ignores its condition gets.

    Of generative images: to the source. Of interpolated ones: to the primary, to the secondary,
    and to the nearer of the two. Each image is compared with 16 others, its sources left out.
    A filter has chosen the images by the same embedding, so with one the share is of what stayed.
    """
    result: dict[str, Any] = {}
    vectors = painter.conditions.vectors.numpy()
    chance = chance_for(painter.config, CHECK)
    for kind, seen in looks.items():
        own = [[painter.conditions.index(p) for p in recipe.patches] for recipe in seen.recipes]
        others = chance.integers(len(vectors), size=(len(own), OTHERS))
        fair = np.array([[o not in s for o in row] for row, s in zip(others, own, strict=True)])
        if not fair.any():
            continue
        to_others = np.stack([cosines(seen.embeddings, vectors[c]) for c in others.T], 1)
        to_own = [
            cosines(seen.embeddings, vectors[[row[place] for row in own]]) for place in (0, 1)
        ]
        asked = {"source": to_own[0]}
        if kind == "interpolated":
            asked = {"primary": to_own[0], "secondary": to_own[1], "nearer": np.maximum(*to_own)}
        result[kind] = {
            "images": len(own),
            **{to: float((c[:, None] > to_others)[fair].mean()) for to, c in asked.items()},
        }
    return result or None


def compare_kinds(looks: Mapping[str, Look], painter: Painter) -> dict[str, Any] | None:
    """FID, KID, precision and recall of each kind against real patches, in the encoder's space.

    Real patches are drawn at random in two halves without a patch in common. One is the real side
    of every comparison, the other one is compared as if it were synthetic: `real`, the floor. All
    have equal sizes, as FID depends on them. None where that leaves fewer than 8 a side.
    """
    vectors = painter.conditions.vectors
    fewest = min((len(seen.recipes) for seen in looks.values()), default=0)
    size = min(painter.config.check.images, len(vectors) // 2, fewest)
    if size < FEWEST:
        return None
    chosen = chance_for(painter.config, CHECK).permutation(len(vectors))[: 2 * size]
    real, other = (vectors[half].numpy() for half in (chosen[:size], chosen[size:]))
    asked = {"real": other} | {kind: seen.embeddings[:size] for kind, seen in looks.items()}
    values = {
        name: compare_sets(real, one, subsets=50, seed=painter.config.seed)
        for name, one in asked.items()
    }
    return {"images": size, "warning": doubt(size, size, vectors.shape[1]), **values}


def draw_sheet(
    path: Path,
    painter: Painter,
    features: Sequence[FeatureStore],
    sources: Sequence[PatchSource],
    rows: int = 4,
) -> None:
    """A picture to judge by: real patches beside their variations, and pairs with their blends.

    `rows` rows of one patch and five variations, then `rows` rows from one patch to another over
    blends with alpha 0.8, 0.6, 0.4, 0.2 that start from the same noise. Captions have the cosine
    of what was drawn to each real patch of its row.
    """
    check_alignment(sources, features)
    patches, size = PatchDataset(list(sources)), painter.autoencoder.config.image_size
    chance = chance_for(painter.config, SHEET)

    def real(index: int) -> NDArray[np.uint8]:
        pixels: NDArray[np.uint8] = to_pixels(load_images(patches, [index], size))[0]
        return pixels

    def drawn(titles: Sequence[str], recipes: Sequence[Recipe], to: Sequence[int]) -> list[Picture]:
        images = painter.draw(recipes)
        found = [_cosine(painter, images, index) for index in to]
        captions = [
            " ".join([title, "/".join(f"{v[i]:.2f}" for v in found if np.isfinite(v[i]))])
            for i, title in enumerate(titles)
        ]
        return [Picture(*cell) for cell in zip(captions, images, strict=True)]

    lines: list[list[Picture]] = []
    for index in chance.choice(len(patches), min(rows, len(patches)), replace=False).tolist():
        seeds = chance.integers(2**63 - 1, size=5).tolist()
        recipes = [Recipe.generative(patches.locate(index), seed) for seed in seeds]
        views = drawn([f"view {i}:" for i in range(1, 6)], recipes, [index])
        lines.append([Picture("real", real(index)), *views])
    for _ in range(rows if len(patches) > 1 else 0):
        first, second = chance.choice(len(patches), 2, replace=False).tolist()
        seed, alphas = int(chance.integers(2**63 - 1)), (0.8, 0.6, 0.4, 0.2)
        pair = patches.locate(first), patches.locate(second)
        recipes = [Recipe(*pair, alpha, seed) for alpha in alphas]
        blends = drawn([f"alpha {alpha}:" for alpha in alphas], recipes, [first, second])
        lines.append([Picture("real 1", real(first)), *blends, Picture("real 2", real(second))])
    write_sheet(path, lines)


def _cosine(painter: Painter, images: NDArray[np.uint8], index: int) -> NDArray[np.float32]:
    asked = painter.conditions.vectors[[index] * len(images)].numpy()
    return cosines(painter.embed(images), asked)
