"""The re-embedding filter: what is drawn again, what stays, and that it all adds up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers_augment import CONFIG, Ideal, Parts, make_parts, stores

from pathgen.augment import AugmentConfig, FilterConfig, plan_recipes
from pathgen.augment.filter import Rule, make_rule, random_pairs, seed_of, settle, would_fail
from pathgen.data.counterparts import Counterparts
from pathgen.data.patches import PatchDataset
from pathgen.errors import ConfigError, RunError
from pathgen.stores import PatchRef, Recipe, SelfAugmentationStore

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return make_parts(tmp_path_factory.getbasetemp())


#: Some images pass it at once, some later, some never.
LIMIT = 0.85


def noisy(batch: int = 4) -> tuple[Ideal, list[Recipe]]:
    config = CONFIG.model_copy(update={"batch_size": batch})
    painter = Ideal(stores([12, 13]), config, noise=0.25)
    return painter, plan_recipes(stores([12, 13]), config)


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("batch", [1, 4, 100])
def test_the_first_draw_that_passes_stays_else_the_best(batch: int, drop: bool) -> None:
    painter, recipes = noisy(batch)
    rule = Rule(LIMIT, retries=2, drop=drop)
    found = [one for ready in settle(painter, recipes, rule) for one in ready]  # type: ignore[arg-type]
    assert len(found) == len(recipes)
    outcomes = set()
    for planned, one in zip(recipes, found, strict=True):  # in the order of the plan
        tried = [
            planned._replace(seed=seed_of(painter.config, planned, attempt))
            for attempt in (1, 2, 3)
        ]
        cosines = [float(painter.likeness(painter.draw([r]), [r])[0]) for r in tried]
        passing = [i for i, cosine in enumerate(cosines) if cosine >= LIMIT]
        chosen = passing[0] if passing else int(np.argmax(cosines))
        assert one.recipe == tried[chosen]
        assert one.cosine == pytest.approx(cosines[chosen], abs=1e-6)
        assert one.attempts == (passing[0] + 1 if passing else 3)
        assert one.kept == (bool(passing) or not drop)
        np.testing.assert_allclose(one.image, painter.draw([tried[chosen]])[0], atol=1e-6)
        outcomes.add((one.attempts, bool(passing)))
    assert outcomes == {(1, True), (2, True), (3, True), (3, False)}  # each of them occurs


def test_batches_stay_full_while_images_are_drawn_again() -> None:
    painter, recipes = noisy(batch=4)
    found = [one for ready in settle(painter, recipes, Rule(LIMIT, 2, False)) for one in ready]  # type: ignore[arg-type]
    draws = sum(one.attempts for one in found)
    assert sum(painter.batches) == draws > len(recipes)
    assert len(painter.batches) <= -(-draws // 4) + 2  # but for what comes back at the end


def test_other_attempts_have_other_seeds_and_the_first_is_the_planned_one() -> None:
    recipes = plan_recipes(stores([6, 7]), CONFIG)
    seeds = {seed_of(CONFIG, recipe, attempt) for recipe in recipes for attempt in range(1, 5)}
    assert len(seeds) == 4 * len(recipes)
    assert [seed_of(CONFIG, recipe, 1) for recipe in recipes] == [r.seed for r in recipes]
    other = CONFIG.model_copy(update={"seed": 1})
    assert seed_of(other, recipes[0], 2) != seed_of(CONFIG, recipes[0], 2)


def test_a_limit_by_quantile_is_that_of_random_pairs() -> None:
    features = stores([40, 30])
    vectors = np.concatenate([store.vectors for store in features])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = (vectors @ vectors.T)[~np.eye(70, dtype=bool)]
    config = CONFIG.model_copy(update={"filter": FilterConfig(min_quantile=0.9)})
    rule = make_rule(Ideal(features, config), config, None)  # type: ignore[arg-type]
    assert rule is not None
    assert rule.min_cosine == pytest.approx(np.quantile(pairs, 0.9), abs=0.05)
    assert make_rule(Ideal(features), CONFIG, None) is None  # type: ignore[arg-type]
    reference = {"random_pairs": random_pairs(Ideal(features))}  # type: ignore[arg-type]
    told = would_fail(np.array([0.0, 0.1, 0.99, 1.0], np.float32), reference)
    assert [row["quantile"] for row in told] == [0.5, 0.9, 0.95, 0.99]
    assert told[-1]["share"] == 0.5
    asked = config.model_copy(
        update={"filter": FilterConfig(min_quantile=0.1, of="reconstructions")}
    )
    with pytest.raises(ConfigError, match="real patches"):
        make_rule(Ideal(features, asked), asked, None)  # type: ignore[arg-type]


def filtered(parts: Parts, out: Path, **settings: object) -> AugmentConfig:
    config = CONFIG.model_copy(update={"filter": FilterConfig(**settings)})  # type: ignore[arg-type]
    needed = parts.sources if config.filter.of == "reconstructions" else None
    parts.augment(out, config, sources=needed)
    return config


def test_a_filter_that_all_pass_changes_nothing(parts: Parts, tmp_path: Path) -> None:
    plain = [SelfAugmentationStore.open(path) for path in parts.augment(tmp_path / "plain")]
    filtered(parts, tmp_path / "filter", min_cosine=-1.0, on_fail="drop")
    for store in plain:
        other = SelfAugmentationStore.open(tmp_path / "filter" / store.path.name)
        assert other.encoded() == store.encoded()
        assert other.recipes() == store.recipes()
        assert other.attrs["min_cosine"] == -1.0
        assert "min_cosine" not in store.attrs


def test_what_is_dropped_is_counted_and_shown_real_in_training(
    parts: Parts, tmp_path: Path
) -> None:
    before = parts.augment(tmp_path / "plain")
    cosines = np.concatenate([SelfAugmentationStore.open(path).cosine() for path in before])
    limit = float(np.median(cosines))
    filtered(parts, tmp_path / "out", min_cosine=limit, retries=1, on_fail="drop")
    found = [SelfAugmentationStore.open(tmp_path / "out" / name) for name in ("a.h5", "b.h5")]
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    counts = metrics["counts"]
    assert counts["planned"] == 16 == counts["kept"] + counts["dropped"]
    assert counts["kept"] == metrics["images"] == sum(map(len, found)) < 16
    assert counts["resampled"] == 8  # those below the median of the first draws
    assert counts["attempts"] == 16 + 8  # and one retry each
    assert min(store.cosine().min() for store in found) >= limit
    assert metrics["filter"]["min_cosine"] == limit

    plan = plan_recipes(parts.features, CONFIG)
    lost = [row for store in found for row in dropped(store)]
    kept = [recipe for store in found for recipe in store.recipes()]
    attempts = np.concatenate([store.attempts() for store in found])
    assert sorted(places(plan)) == sorted(places(kept) + places(r for r, _ in lost))
    assert all(cosine < limit for _, cosine in lost)
    seeds = {recipe.seed for recipe in plan}
    again = [r for r, tries in zip(kept, attempts, strict=True) if r.seed not in seeds]
    assert [tries for r, tries in zip(kept, attempts, strict=True) if r in again] == [2] * len(
        again
    )

    patches = PatchDataset(parts.sources)
    counterparts = Counterparts(patches, found)
    items = np.arange(8)
    picked = counterparts.generative.pick(items, np.zeros(8))
    there = {patches.index_of(r.primary) for r in kept if r.primary == r.secondary}
    assert {int(item) for item in items[picked >= 0]} == there
    assert 0 < len(there) < 8  # the others keep their real view


def dropped(store: SelfAugmentationStore) -> list[tuple[Recipe, float]]:
    table = store.attrs["dropped"]
    names = ("primary_store", "primary_row", "secondary_store", "secondary_row")
    rows = zip(*(table[n] for n in (*names, "alpha", "seed", "cosine")), strict=True)
    return [
        (Recipe(PatchRef(store.sources[a], b), PatchRef(store.sources[c], d), alpha, seed), cosine)
        for a, b, c, d, alpha, seed, cosine in rows
    ]


def places(recipes: object) -> list[tuple[object, ...]]:
    return [(r.primary, r.secondary, round(r.alpha, 4)) for r in recipes]  # type: ignore[attr-defined]


def test_reconstructions_bound_what_can_be_reached(parts: Parts, tmp_path: Path) -> None:
    filtered(parts, tmp_path, min_quantile=0.5, of="reconstructions", retries=0)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    values = metrics["reconstruction"]
    assert values["count"] == 8
    assert metrics["filter"]["min_cosine"] == pytest.approx(values["q50"], abs=1e-4)
    assert metrics["counts"]["kept"] == 16  # on_fail: keep
    told = {(row["of"], row["quantile"]): row for row in metrics["filter"]["would_fail"]}
    assert ("reconstructions", 0.05) in told


def test_a_filter_that_none_pass_is_an_error_that_says_so(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="PG-T10"):
        filtered(parts, tmp_path, min_cosine=1.0, retries=0, on_fail="drop")
    assert json.loads((tmp_path / "metrics.json").read_text())["counts"]["dropped"] == 16
    assert not (tmp_path / "done.json").exists()
    with pytest.raises(ConfigError, match="needs the encoder"):
        parts.augment(
            tmp_path / "blind",
            CONFIG.model_copy(update={"filter": FilterConfig(min_cosine=0.5)}),
            encoder=None,
        )
