"""How patches become vectors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pathgen.config import Config
from pathgen.tiling.normalize import NormalizeConfig, content


class ExtractConfig(Config):
    """How to run the encoders. `dtype`, `precision` and `normalize` change what is stored."""

    batch_size: int = Field(default=256, ge=1)
    """patches that go through an encoder together; they are always of one slide"""
    workers: int = Field(default=0, ge=0)
    """processes that read and decode patches ahead of the encoder; 0 does so in a thread"""
    device: str = "auto"
    """of encoders given by name; one passed in stays where it is"""
    dtype: Literal["float32", "float16"] = "float32"
    """of the stored vectors"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """what encoders compute in; auto: bf16 on a CUDA device that has it, else fp32"""
    normalize: NormalizeConfig = NormalizeConfig()
    """stain normalization, one fit a slide, before patches are encoded"""

    def changes(self) -> dict[str, Any]:
        """Of the settings that change the pixels, those that are not at rest; for provenance.

        Raises:
            ConfigError: PG-C01, the target image cannot be read.
        """
        if self.normalize.method == "none":
            return {}
        values = self.normalize.model_dump(mode="json")
        if self.normalize.target is not None:  # what is in it counts, not where it lies
            values["target"] = content(self.normalize.target)
        return {"normalize": values}
