"""How the slides of a training were cut, so that a new one is cut alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pathgen.config import build
from pathgen.errors import DataError
from pathgen.heatmap.heads import Heads

if TYPE_CHECKING:
    from pathgen.tiling.task import TileConfig


def training_tiling(heads: Heads) -> TileConfig:
    """As the run says: all settings of features that were made straight from slides; else size,
    scale and overlap of the patches, with the filters of `tile`.

    Raises:
        DataError: PG-H01, the run does not say.
    """
    facts = heads.facts.get("patches") or {}
    if heads.facts.get("tile"):
        return _whole(heads.facts["tile"])
    if facts.get("patch_size") is None:
        raise DataError(
            "how the slides of the training were cut is not known", code="PG-H01",
            why="the run does not say it",
            hint="give --patch-size and --mpp, or --features with the slide's feature store",
        )  # fmt: skip
    return as_tiling(facts)


def _whole(settings: Mapping[str, Any]) -> TileConfig:
    """Of one slide's settings, those that go for all."""
    from pathgen.tiling.task import TileConfig

    if (settings.get("normalize") or {}).get("target") is not None:
        raise DataError(
            "stain of the training was normalized to an image of its own", code="PG-H01",
            why="the run knows that image by its digest only",
            hint="extract the slide's features as the training's were, and give --features",
        )  # fmt: skip
    known = {name: value for name, value in settings.items() if name in TileConfig.model_fields}
    return build(TileConfig, known | {"slide_mpp": None})


def cut_as(heads: Heads, mpp: float | None, patch_size: int | None) -> TileConfig:
    """With another scale or size than the training's; both are needed where it does not say.

    Raises:
        DataError: PG-H01, one is missing.
    """
    facts = dict(heads.facts.get("patches") or {})
    facts |= {"patch_size": patch_size} if patch_size is not None else {}
    facts |= {"target_mpp": mpp} if mpp is not None else {}
    if None in (facts.get("patch_size"), facts.get("target_mpp")):
        return training_tiling(Heads(heads.heads))
    return as_tiling(facts)


def as_tiling(facts: Mapping[str, Any]) -> TileConfig:
    """From what a feature store says of its patches."""
    from pathgen.tiling.task import TileConfig

    values: dict[str, Any] = {"patch_size": facts["patch_size"], "mpp": facts.get("target_mpp")}
    if facts.get("overlap"):
        values["overlap"] = facts["overlap"]
    return build(TileConfig, values)
