"""What is compared, and the settings of everything, fixed before the first run.

A study is sets x seeds x arms. All trained arms share one recipe, `cpu.yaml` or `gpu.yaml`, which
`pathgen pretrain` reads too; an arm is the settings it lays over it, as `--set` would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from pathgen.config import Config
from pathgen.plan import plan_pretrain
from pathgen.pretraining import PretrainConfig, resolve
from pathgen.provenance import digest
from pathgen.train.dino import DinoConfig

HERE = Path(__file__).resolve().parent
#: Stages of `pathgen pretrain` that the arms of one seed share.
STAGES = ("dino", "autoencoder", "ldm", "augment")
#: What the others are compared with.
BASELINE = "dino"


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        settings: laid over the recipe.
        group: whose training it is: that of `dino` without synthetic images, or `gen_dino` with
            them. Empty: nothing is trained for it.
        matched: takes as many more steps as a step of Gen-DINO costs more.
    """

    title: str
    group: str = ""
    settings: tuple[str, ...] = ()
    matched: bool = False


ARMS: Mapping[str, Arm] = {
    "color": Arm("color histogram"),
    "untrained": Arm("untrained"),
    BASELINE: Arm("DINO"),
    "dino-matched": Arm("DINO, as much compute as Gen-DINO", "dino", matched=True),
    "generative": Arm("+ generative", "gen_dino", ("gen_dino.views.blend=off",)),
    "positives": Arm(
        "+ generative, interpolated as positives", "gen_dino", ("gen_dino.blend_as=positive",)
    ),
    "gen-dino": Arm("Gen-DINO", "gen_dino"),
    "pixel-mix": Arm("Gen-DINO, mixed in pixels", "gen_dino", ("gen_dino.views.blend=pixel",)),
}


class StudyConfig(Config):
    """What a study is, beside its recipe."""

    recipe: Path = HERE / "cpu.yaml"
    settings: tuple[str, ...] = ()
    """laid over the recipe of every arm, as ``key=value``"""
    sets: tuple[str, ...] = ("colon5_112", "atlas_organs_112")
    seeds: tuple[int, ...] = (0, 1, 2)
    arms: tuple[str, ...] = tuple(ARMS)
    patches: int | None = Field(default=None, ge=2)
    """unlabelled training patches, a random sample; None: all. Judging uses all, always"""
    k: int = Field(default=20, ge=1)
    resamples: int = Field(default=10_000, ge=1)
    device: str = "auto"
    workers: int = Field(default=0, ge=0)


#: What differs between the sizes besides their recipes.
SIZES: Mapping[str, StudyConfig] = {
    "cpu": StudyConfig(patches=1000, device="cpu"),
    "gpu": StudyConfig(recipe=HERE / "gpu.yaml", device="cuda", workers=8),
}


def resolved(study: StudyConfig, seed: int, extra: tuple[str, ...] = ()) -> PretrainConfig:
    """The recipe for one seed. Raises ConfigError for a setting that does not exist."""
    return resolve(
        study.recipe, [*study.settings, *extra], seed=seed, device=study.device,
        workers=study.workers,
    )  # fmt: skip


def compute_factor(study: StudyConfig) -> float:
    """FLOPs of a Gen-DINO step in those of a DINO step, by the formula of `pathgen.plan`."""
    images = study.patches or 1000  # the number of steps cancels
    dino, gen = plan_pretrain(resolved(study, 0), images, ["dino", "gen-dino"])
    return (gen.flops / gen.steps) / (dino.flops / dino.steps)


def arm_config(study: StudyConfig, arm: str, seed: int) -> DinoConfig:
    """How an arm is trained. Raises KeyError for one that trains nothing."""
    spec = ARMS[arm]
    if not spec.group:
        raise KeyError(arm)
    extra = spec.settings
    if spec.matched:
        steps = resolved(study, seed).dino.optim.steps
        assert steps is not None, "the recipes of this study count in steps"
        extra = (*extra, f"dino.optim.steps={round(compute_factor(study) * steps)}")
    config: DinoConfig = getattr(resolved(study, seed, extra), spec.group)
    return config


def settings(study: StudyConfig) -> dict[str, Any]:
    """Everything that is fixed, as plain values with a digest; where it computes is no part."""
    asked = study.model_dump(mode="json", exclude={"recipe", "device", "workers"})
    trained = [name for name in study.arms if ARMS[name].group]
    plain = study.model_copy(update={"device": "auto", "workers": 0})
    values: dict[str, Any] = {
        "study": asked,
        "recipe": resolved(plain, 0).model_dump(mode="json"),
        "arms": {name: arm_config(plain, name, 0).model_dump(mode="json") for name in trained},
        "compute_of_gen_dino_in_dino": compute_factor(study),
    }
    return {**values, "digest": digest(values)}
