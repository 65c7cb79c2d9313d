"""How slide heads are trained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pathgen.config import Config, WrongValue
from pathgen.data.truth import Target
from pathgen.models.mil import PoolingConfig
from pathgen.train.milmonitor import FOR_TARGET, Monitor

#: Most bags a step where the config leaves it open, and the steps an epoch then has at least.
BATCH, STEPS = 8, 64
#: Cox's loss compares the bags of one step.
BATCH_SURVIVAL = 32
#: Settings of how a result is computed, not which: no run depends on them.
FREE = frozenset({"device", "cache_gb"})


class MILTrainConfig(Config):
    """How a head is trained, and how a cross-validation divides its slides.

    `device` and `cache_gb` change nothing that is written. `fit_mil` trains one head on bags that
    are given: it does not read `folds`, `repeats`, `valid_share`, `stratify` or `shuffle_labels`,
    and goes by the bags' own target.
    """

    model: PoolingConfig = Field(default_factory=PoolingConfig)
    target: Target = "classes"
    """``classes``; ``ordinal``: classes with an order, whose names are numbers; ``regression``: a
    number; ``survival``: a time and an event"""
    lr: float = Field(default=2e-4, gt=0)
    optimizer: Literal["adamw", "adam"] = "adamw"
    """adam adds `weight_decay` to the gradient, as L2; adamw takes it off the weights"""
    weight_decay: float = Field(default=1e-4, ge=0)
    epochs: int = Field(default=100, ge=1)
    patience: int = Field(default=20, ge=1)
    """epochs without a better validation part before stopping"""
    monitor: Monitor = "loss"
    """what is better: a lower validation loss; or, each of its targets, a higher accuracy,
    balanced_accuracy, f1_macro, auc, qwk (quadratic weighted kappa), r2, c_index, a lower mae. Of
    equals the one of lower loss"""
    batch_size: int | Literal["auto"] = "auto"
    """bags a step, of about equal length; auto: 8, or as few as leave 64 steps an epoch; of
    survival 32, for its loss compares the bags of a step"""
    accumulate: int = Field(default=1, ge=1)
    """batches whose gradients make one step; of survival each batch is compared within itself"""
    clip_norm: float | None = Field(default=None, gt=0)
    """longest gradient of a step; longer ones are shortened"""
    max_instances: int = Field(default=4096, ge=1)
    """patches drawn from a bag in each training step, when it has more; all are used otherwise"""
    instance_dropout: float = Field(default=0.0, ge=0, lt=1)
    """share of a bag's patches left out of a training step"""
    class_weights: Literal["none", "balanced"] = "balanced"
    """balanced: each class counts the same in the loss, however rare"""
    standardize: bool = True
    """to mean 0 and deviation 1 over the training slides, each slide counting the same"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """of the products; auto: bf16 on a CUDA device that has it, else fp32"""
    folds: int = Field(default=5, ge=2)
    repeats: int = Field(default=1, ge=1)
    """whole cross-validations, with seeds `seed`, `seed` + 1, ...: each divides the slides anew;
    splits that are given stay, and only the training's seed changes"""
    valid_share: float = Field(default=0.2, ge=0, lt=1)
    """of the slides that do not test; 0 trains for all epochs"""
    stratify: Literal["label", "label-site"] = "label"
    """what a split's parts have equal shares of; label-site: also of each label at each site"""
    shuffle_labels: int | None = Field(default=None, ge=0)
    """a seed: training and validation labels are dealt out anew among patients, and the test
    labels stay, so that the result shows what this cohort gives without anything to learn"""
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    cache_gb: float = Field(default=4.0, ge=0)
    """1e9 bytes of vectors kept in memory; beyond, slides are read again in each epoch"""

    def bags_a_step(self, bags: int) -> int:
        """`batch_size`, decided for so many training bags."""
        if self.batch_size != "auto":
            return self.batch_size
        if self.target == "survival":
            return BATCH_SURVIVAL
        return min(BATCH, max(1, bags // STEPS))

    @model_validator(mode="after")
    def _settings_fit(self) -> MILTrainConfig:
        if self.batch_size != "auto" and self.batch_size < 1:
            raise WrongValue("batch_size", f"at least 1, or auto (got {self.batch_size})")
        if self.target == "survival" and self.batch_size == 1:
            raise WrongValue("batch_size", "the loss of survival compares bags: at least 2 a step")
        if self.monitor != "loss" and self.monitor not in FOR_TARGET[self.target]:
            allowed = ", ".join(("loss", *FOR_TARGET[self.target]))
            raise WrongValue("monitor", f"of {self.target} it is {allowed} (got {self.monitor!r})")
        return self
