"""The settings of a run that no method depends on, and how two configs are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field

from pathgen.config import Config


class RunConfig(Config):
    """What every training stage needs and no method depends on."""

    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """``auto``: bf16 on a CUDA device that has it, else fp32"""
    workers: int = Field(default=0, ge=0)
    compile: bool | Literal["auto"] = "auto"
    """torch.compile the networks; ``auto``: on CUDA, where it works"""
    recompute: bool = False
    """keep no activations within blocks and compute them again in backward: less memory"""
    accumulate: int = Field(default=1, ge=1)
    """passes that a process does its share of a batch in: less memory, the same step"""
    save_every: int = Field(default=1000, ge=1)
    """steps between checkpoints"""
    keep_checkpoints: int = Field(default=2, ge=1)
    """how many of them stay; two let a damaged one give way"""
    log_every: int = Field(default=10, ge=1)
    """steps between log lines"""
    pictures_every: int | Literal["auto"] = "auto"
    """steps between pictures in the run's `pictures/`; ``auto``: ten times, 100 steps apart at
    least; 0: none"""
    tensorboard: bool = True
    """write the log, and the pictures, for TensorBoard too: into the run's `tensorboard/`"""


#: Settings of how a result is computed, not which: they may change between start and resume.
FREE = frozenset({
    "device", "workers", "compile", "recompute", "accumulate", "tensorboard", "save_every",
    "keep_checkpoints", "log_every", "pictures_every",
})  # fmt: skip


def comparable(config: BaseModel) -> dict[str, Any]:
    """The config as plain values, without the settings that may change on a resume."""
    values = config.model_dump(mode="json")
    if isinstance(config, RunConfig):
        return {name: value for name, value in values.items() if name not in FREE}
    for name in type(config).model_fields:
        nested = getattr(config, name)
        if isinstance(nested, BaseModel):
            values[name] = comparable(nested)
    return values


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Name, value before and value after of every leaf that is not the same."""
    for key in sorted({*old, *new}):
        name = f"{prefix}{key}"
        before, after = old.get(key, "nothing"), new.get(key, "nothing")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from differences(before, after, f"{name}.")
        elif before != after:
            yield name, before, after
