"""A network of two numbers, its config, and a run to train it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from pathgen.config import Config
from pathgen.runs import Run, RunConfig


class NetConfig(Config):
    width: int = 3


class Net(nn.Module):
    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(config.width, 2)


class StageConfig(Config):
    net: NetConfig = NetConfig()
    rate: float = 0.1
    run: RunConfig = Field(default_factory=RunConfig)


def begin(path: Path, config: StageConfig | None = None, **kwargs: Any) -> Run:
    return Run.start(path / "run", "stage", config or StageConfig(), {"a": "1"}, **kwargs)
