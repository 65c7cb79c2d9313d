"""From one patch to another: how the embedding of what is drawn moves with alpha."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pathgen.augment.paint import Painter, cosines
from pathgen.augment.plan import CURVES, chance_for
from pathgen.commit import draft
from pathgen.stores.augmentations import Recipe
from pathgen.stores.patches import PatchRef

#: Shares of the primary at which each pair is drawn.
ALPHAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
BANDS = (0.1, 0.25, 0.75, 0.9)


def interpolation_curves(painter: Painter) -> dict[str, Any] | None:
    """Cosines of images, drawn at six alphas from equal noise, to the two patches they blend.

    As alpha grows, the cosine to the primary should rise and that to the secondary fall. Each is
    drawn once: no filter has a say.

    Returns:
        alphas, pairs; primary and secondary: mean, q10, q25, q75, q90 at each alpha;
        monotone_share: of pairs whose difference of the two cosines rises at every step;
        steps_up: share of all steps that do; mean_is_monotone: whether the mean difference does;
        spearman: mean rank correlation of difference and alpha. None without encoder or pairs.
    """
    first, second = _cosines(painter)
    if not len(first):
        return None
    difference = first - second
    steps = np.diff(difference, axis=1) > 0
    return {
        "alphas": list(ALPHAS),
        "pairs": len(first),
        "primary": _bands(first),
        "secondary": _bands(second),
        "monotone_share": float(steps.all(1).mean()),
        "steps_up": float(steps.mean()),
        "mean_is_monotone": bool((np.diff(difference.mean(0)) > 0).all()),
        "spearman": float(_rank_correlation(difference).mean()),
    }


def draw_curves(path: Path, curves: Mapping[str, Any]) -> None:
    """The mean cosines over alpha with their quantile bands, as a PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.add_subplot()
        for role, color in (("primary", "#0072B2"), ("secondary", "#D55E00")):
            values = curves[role]
            axes.plot(curves["alphas"], values["mean"], "o-", color=color, label=f"to the {role}")
            for low, high, alpha in (("q10", "q90", 0.12), ("q25", "q75", 0.25)):
                axes.fill_between(
                    curves["alphas"], values[low], values[high], color=color, alpha=alpha,
                    linewidth=0,
                )  # fmt: skip
        axes.set(
            xlabel="alpha, the primary's share", ylabel="cosine",
            title=f"pairs: {curves['pairs']}; bands: half and four fifths of them",
        )  # fmt: skip
        axes.legend(frameon=False)
        with draft(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})


def _cosines(painter: Painter) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """To the primary and to the secondary, (pairs, alphas) each."""
    count, config = len(painter.conditions.vectors), painter.config
    pairs = 0 if count < 2 or painter.encoder is None else config.check.pairs
    chance = chance_for(config, CURVES)
    first = chance.integers(count, size=pairs)
    second = (first + 1 + chance.integers(max(count - 1, 1), size=pairs)) % count
    seeds = chance.integers(2**63 - 1, size=pairs)
    recipes = [
        Recipe(painter.conditions.patch(one), painter.conditions.patch(two), alpha, seed)
        for one, two, seed in zip(first.tolist(), second.tolist(), seeds.tolist(), strict=True)
        for alpha in ALPHAS
    ]
    own = [
        painter.embed(painter.draw(recipes[start : start + config.batch_size]))
        for start in range(0, len(recipes), config.batch_size)
    ]
    embedded = np.concatenate(own) if own else np.empty((0, 1), np.float32)

    def to(patches: list[PatchRef]) -> NDArray[np.float64]:
        asked = painter.conditions.at(patches).numpy()
        return cosines(embedded, asked).astype(np.float64).reshape(-1, len(ALPHAS))

    if not recipes:
        return np.empty((0, len(ALPHAS))), np.empty((0, len(ALPHAS)))
    return to([r.primary for r in recipes]), to([r.secondary for r in recipes])


def _bands(values: NDArray[np.float64]) -> dict[str, list[float]]:
    bands = {f"q{q * 100:.0f}": np.quantile(values, q, axis=0).tolist() for q in BANDS}
    return {"mean": values.mean(0).tolist(), **bands}


def _rank_correlation(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's rho of each row with 0, 1, 2 ..., (n, k) -> (n,); values without ties."""
    ranks = values.argsort(1).argsort(1).astype(np.float64)
    count = values.shape[1]
    squares = ((ranks - np.arange(count)) ** 2).sum(1)
    return np.asarray(1 - 6 * squares / (count * (count**2 - 1)))
