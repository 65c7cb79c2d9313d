"""What `pathgen pretrain` is asked for: the stages, and a recipe's settings for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pathgen.augment import AugmentConfig
from pathgen.config import Config, merge, parse_overrides
from pathgen.config import build as build_config
from pathgen.errors import ConfigError
from pathgen.extract import ExtractConfig
from pathgen.recipes import read_recipe
from pathgen.train.autoencoder import AutoencoderTrainConfig
from pathgen.train.dino import DinoConfig
from pathgen.train.ldm import LDMTrainConfig

STAGES = ("dino", "autoencoder", "ldm", "augment", "gen-dino")


class PretrainConfig(Config):
    """A recipe: one group of settings a stage. `gen_dino` starts from `dino`."""

    name: str = "custom"
    note: str = ""
    from_encoder: str | None = None
    """a finished encoder in place of the dino stage, as for a second round: its embeddings
    condition the E-LDM. A run, a stage or model folder, or timm:NAME"""
    from_autoencoder: str | None = None
    """a run with a finished autoencoder, in place of the autoencoder stage"""
    from_augment: str | None = None
    """a run with synthetic images of the same patches, in place of all stages but gen-dino"""
    dino: DinoConfig = Field(default_factory=DinoConfig)
    features: ExtractConfig = Field(default_factory=ExtractConfig)
    autoencoder: AutoencoderTrainConfig = Field(default_factory=AutoencoderTrainConfig)
    ldm: LDMTrainConfig = Field(default_factory=LDMTrainConfig)
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    gen_dino: DinoConfig = Field(default_factory=DinoConfig)

    @model_validator(mode="before")
    @classmethod
    def _gen_dino_starts_from_dino(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        dino, own = (
            part.model_dump(exclude_unset=True) if isinstance(part, DinoConfig) else part or {}
            for part in (values.get("dino"), values.get("gen_dino"))
        )
        if isinstance(dino, Mapping) and isinstance(own, Mapping):
            return {**values, "gen_dino": merge(dino, own)}
        return values

    @property
    def given(self) -> tuple[str, ...]:
        """The stages that something finished elsewhere stands in for."""
        if self.from_augment:
            return STAGES[:-1]
        stands_in = {"dino": self.from_encoder, "autoencoder": self.from_autoencoder}
        return tuple(stage for stage, place in stands_in.items() if place)


def check_stages(stages: Sequence[str]) -> None:
    """Raise ConfigError (PG-C03) unless every name is one of `STAGES`."""
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise ConfigError(
            "unknown stage",
            code="PG-C03",
            where=", ".join(unknown) or "(none)",
            why=f"known stages: {', '.join(STAGES)}",
        )


def resolve(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    seed: int | None = None,
    device: str | None = None,
    workers: int | None = None,
    from_encoder: str | Path | None = None,
    from_autoencoder: str | Path | None = None,
    from_augment: str | Path | None = None,
) -> PretrainConfig:
    """A recipe by name or path, with ``key=value`` overrides and the common flags laid on top.

    `from_encoder` and the like are places of what is finished: see `PretrainConfig`. Raises
    ConfigError for an unknown recipe or setting, naming the nearest known one.
    """
    values = merge(read_recipe(recipe), parse_overrides(overrides))
    common: dict[str, Any] = {"seed": seed, "device": device, "workers": workers}
    common = {key: value for key, value in common.items() if value is not None}
    for stage in ("dino", "autoencoder", "ldm"):
        values = merge(values, {stage: {"run": common}})
    placed = {key: value for key, value in common.items() if key in ("device", "workers")}
    values = merge(values, {"features": placed})
    if seed is not None:
        values = merge(values, {"augment": {"seed": seed}})
    places = {
        "from_encoder": from_encoder, "from_autoencoder": from_autoencoder,
        "from_augment": from_augment,
    }  # fmt: skip
    values |= {key: str(place) for key, place in places.items() if place is not None}
    return build_config(PretrainConfig, values, where=str(recipe))
