"""The re-embedding filter: draw, embed what was drawn, and draw again what strayed too far."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathgen.augment.paint import Painter, cosines
from pathgen.augment.plan import PAIRS, RECONSTRUCTIONS, RETRIES, AugmentConfig, chance_for
from pathgen.data.patches import PatchDataset
from pathgen.data.sources import PatchSource
from pathgen.errors import ConfigError
from pathgen.stores.augmentations import Recipe
from pathgen.train.autoencoder import load_images

#: Real patches whose reconstructions are embedded.
RECONSTRUCTED = 512


class Rule(NamedTuple):
    """Which images stay."""

    min_cosine: float
    retries: int
    drop: bool


@dataclass(frozen=True)
class Drawn:
    """One image of the plan, after its last draw."""

    recipe: Recipe
    """with the seed that it came from"""
    image: NDArray[np.uint8]
    """(S, S, 3)"""
    cosine: float
    attempts: int
    kept: bool


def make_rule(
    painter: Painter, config: AugmentConfig, sources: Sequence[PatchSource] | None
) -> Rule | None:
    """The filter that `config` asks for; None without one.

    A limit by quantile has four decimals, so that another machine comes to the same.

    Raises:
        ConfigError: there is no encoder to judge by, or no real patches to reconstruct.
    """
    asked = config.filter
    if not asked.active:
        return None
    if painter.encoder is None:
        raise ConfigError(
            "a filter by cosine needs the encoder", where="augment.filter",
            hint="give the encoder that made the features",
        )  # fmt: skip
    limit = asked.min_cosine
    if asked.min_quantile is not None:
        values = random_pairs(painter)
        if asked.of == "reconstructions":
            if sources is None:
                raise ConfigError(
                    "cosines of reconstructions need the real patches", where="augment.filter.of",
                    hint="give sources, or of=random_pairs",
                )  # fmt: skip
            values = reconstructions(painter, sources)
        limit = round(float(np.quantile(values, asked.min_quantile)), 4)
    assert limit is not None
    return Rule(limit, asked.retries, asked.on_fail == "drop")


def random_pairs(painter: Painter) -> NDArray[np.float32]:
    """Cosines of up to 10,000 pairs of real patches, (n,): what ignoring the condition gives."""
    chance, count = chance_for(painter.config, PAIRS), len(painter.conditions.vectors)
    first = chance.integers(count, size=min(10_000, 20 * count))
    second = (first + 1 + chance.integers(max(count - 1, 1), size=len(first))) % count
    vectors = painter.conditions.vectors.numpy()
    return cosines(vectors[first], vectors[second])


def reconstructions(painter: Painter, sources: Sequence[PatchSource]) -> NDArray[np.float32]:
    """Cosines of real patches with what the autoencoder gives back of them, (n,), n up to 512.

    About the best an E-LDM could reach: it draws latents, and the decoder is what it is.
    """
    patches, batch = PatchDataset(list(sources)), painter.config.batch_size
    count = min(RECONSTRUCTED, len(patches))
    chosen = chance_for(painter.config, RECONSTRUCTIONS).choice(len(patches), count, replace=False)
    size = painter.autoencoder.config.image_size
    found = []
    for start in range(0, count, batch):
        rows = np.sort(chosen)[start : start + batch].tolist()
        own = painter.embed(painter.reconstruct(load_images(patches, rows, size)))
        found.append(cosines(own, painter.conditions.vectors[rows].numpy()))
    return np.concatenate(found)


class _Try(NamedTuple):
    """An image that is to be drawn, for the `attempt`-th time."""

    place: int
    attempt: int
    best: Drawn | None


def settle(painter: Painter, recipes: Sequence[Recipe], rule: Rule | None) -> Iterator[list[Drawn]]:
    """Draw all, batch by batch; after each, those that are settled, in the order of `recipes`.

    What is to be drawn again comes first in the next batch, which is then filled up, so that
    batches stay full and few images wait.
    """
    again: deque[_Try] = deque()
    settled: dict[int, Drawn] = {}
    given = asked = 0  # images that were given out, and that were drawn once or more
    while given < len(recipes):
        tries = [again.popleft() for _ in range(min(len(again), painter.config.batch_size))]
        fresh = range(asked, min(len(recipes), asked + painter.config.batch_size - len(tries)))
        asked = fresh.stop
        tries += [_Try(place, 1, None) for place in fresh]
        drawn = _draw(painter, recipes, tries)
        for (place, attempt, before), new in zip(tries, drawn, strict=True):
            best = _better(new, before)
            passed = rule is None or best.cosine >= rule.min_cosine
            if rule is None or passed or attempt > rule.retries:
                kept = rule is None or passed or not rule.drop
                settled[place] = replace(best, attempts=attempt, kept=kept)
            else:
                again.append(_Try(place, attempt + 1, best))
        ready = []
        while given in settled:
            ready.append(settled.pop(given))
            given += 1
        yield ready


def _draw(painter: Painter, recipes: Sequence[Recipe], tries: Sequence[_Try]) -> list[Drawn]:
    seeded = [
        recipes[place]._replace(seed=seed_of(painter.config, recipes[place], attempt))
        for place, attempt, _ in tries
    ]
    images = painter.draw(seeded)
    return [
        Drawn(recipe, image, float(cosine), attempt, kept=True)
        for recipe, image, cosine, (_, attempt, _) in zip(
            seeded, images, painter.likeness(images, seeded), tries, strict=True
        )
    ]


def seed_of(config: AugmentConfig, planned: Recipe, attempt: int) -> int:
    """The planned seed at the first attempt, then one of (seed, planned seed, attempt) alone."""
    if attempt == 1:
        return planned.seed
    chance = np.random.default_rng([config.seed, RETRIES, planned.seed, attempt])
    return int(chance.integers(2**63 - 1))


def _better(new: Drawn, old: Drawn | None) -> Drawn:
    return new if old is None or not old.cosine >= new.cosine else old


def would_fail(
    cosine: NDArray[np.float32], references: dict[str, NDArray[np.float32]]
) -> list[dict[str, Any]]:
    """For limits that suggest themselves, the share of images below: a help in choosing one."""
    quantiles = {"random_pairs": (0.5, 0.9, 0.95, 0.99), "reconstructions": (0.01, 0.05)}
    return [
        {
            "of": name, "quantile": quantile,
            "min_cosine": (limit := round(float(np.quantile(values, quantile)), 4)),
            "share": float((cosine < limit).mean()),
        }
        for name, values in references.items()
        for quantile in quantiles[name]
    ]  # fmt: skip
