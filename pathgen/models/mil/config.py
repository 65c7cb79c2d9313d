"""What a head is."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pathgen.config import Config, WrongValue

HeadName = Literal[
    "abmil",
    "abmil-plain",
    "mean",
    "max",
    "instance-max",
    "clam-sb",
    "clam-mb",
    "transmil",
    "dsmil",
    "dtfd",
    "transformer",
]

Target = Literal["classes", "ordinal", "regression", "survival"]
"""What a slide is asked for: one of several classes, one of several that have an order (ISUP
grades), a number, or the time to an event."""


class CLAMConfig(Config):
    """Of `clam-sb` and `clam-mb`."""

    k_sample: int = Field(default=8, ge=1)
    """patches of highest and of lowest attention that the instance loss looks at; all when a bag
    has fewer"""
    subtyping: bool = False
    """classes exclude each other: the top patches of a class are negative for the others"""
    instance_loss: Literal["svm", "ce"] = "svm"
    """smooth top-1 SVM or cross-entropy"""
    instance_weight: float = Field(default=0.3, ge=0, le=1)
    """of the instance loss; the bag loss has the rest"""


class TransMILConfig(Config):
    """Of `transmil`."""

    heads: int = Field(default=8, ge=1)
    """divides `embed`"""
    landmarks: int = Field(default=128, ge=1)
    """of the Nystrom approximation; no longer bag is attended to exactly"""
    iterations: int = Field(default=6, ge=1)
    """towards the pseudo-inverse"""


class DTFDConfig(Config):
    """Of `dtfd`."""

    pseudo_bags: int = Field(default=5, ge=1)
    """parts of a bag; as many as it has patches when those are fewer"""
    distill: Literal["afs", "max", "max-min"] = "afs"
    """what stands for a pseudo-bag: its attention-weighted mean, its patch that speaks most for
    the class the pseudo-bag is given, or that one and the one that speaks least for it"""


class TransformerConfig(Config):
    """Of `transformer`."""

    layers: int = Field(default=2, ge=1)
    heads: int = Field(default=8, ge=1)
    """divides `embed`"""
    mlp_ratio: float = Field(default=2.0, gt=0)
    """width of the feed-forward layer, as a multiple of `embed`"""
    max_instances: int = Field(default=4096, ge=1)
    """patches that attend to each other; a larger bag is encoded in equal parts"""


class PoolingConfig(Config):
    """What a head is like, apart from what its data decide."""

    head: HeadName = "abmil"
    """see `pathgen.models.mil`"""
    embed: int = Field(default=256, ge=1)
    """length of a patch's vector after the first layer"""
    hidden: int = Field(default=128, ge=1)
    """width of the attention layers"""
    dropout: float = Field(default=0.25, ge=0, lt=1)
    """after the first layer, and after each layer of a transformer"""
    clam: CLAMConfig = Field(default_factory=CLAMConfig)
    transmil: TransMILConfig = Field(default_factory=TransMILConfig)
    dtfd: DTFDConfig = Field(default_factory=DTFDConfig)
    transformer: TransformerConfig = Field(default_factory=TransformerConfig)

    @model_validator(mode="after")
    def _heads_divide(self) -> PoolingConfig:
        if self.head in ("transmil", "transformer"):
            heads = (self.transmil if self.head == "transmil" else self.transformer).heads
            if self.embed % heads:
                raise WrongValue("embed", f"{self.embed} does not divide into {heads} heads")
        return self


class MILConfig(PoolingConfig):
    """A whole head."""

    dim: int = Field(ge=1)
    """length of a feature"""
    outputs: int = Field(ge=1)
    """logits; see `pathgen.models.mil.targets.outputs_of`"""
    target: Target = "classes"

    @model_validator(mode="after")
    def _outputs_fit(self) -> MILConfig:
        if self.target in ("regression", "survival") and self.outputs != 1:
            raise WrongValue("outputs", f"a {self.target} head has one, not {self.outputs}")
        return self
