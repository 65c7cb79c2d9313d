"""The named protocols: what is predicted, on which slides, who trains and who tests, which metrics.

A protocol is fixed: when what it does has to change, its version grows.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pathgen.errors import DataError

Pretraining = Literal["inductive", "transductive"]


@dataclass(frozen=True)
class Protocol:
    """How a result of this name is made."""

    name: str
    version: int
    dataset: str
    """of `pathgen datasets`"""
    text: str
    """one sentence for people"""
    classes: tuple[str, ...]
    """in order; a label outside of them is an error"""
    label_column: str = "label"
    site_column: str = "site"
    patient_column: str = "patient"
    target: Literal["classes", "ordinal"] = "classes"
    """what a head is trained for unless asked otherwise"""
    design: Literal["folds", "shares", "official"] = "folds"
    """``folds``: each slide is in one test part; ``shares``: one division a seed; ``official``: the
    data set's own test part, a new validation part a seed where it has none"""
    folds: int = 1
    """test parts of the design ``folds``"""
    shares: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """train, valid, test; of ``official``, valid is the share of the official training part"""
    seeds: tuple[int, ...] = (0,)
    """one repeat each"""
    stratify: tuple[str, ...] = ("label",)
    """columns whose combinations are in equal shares in every part; ``label`` is the protocol's"""
    official_test: str = "test"
    """part of the data set that is tested on"""
    leave_out: str = ""
    """slides with this flag are in no part; that some have it is demanded"""
    pretraining: Pretraining = "inductive"
    """whether the encoder may see, without labels, the slides that are tested on"""
    metrics: tuple[str, ...] = ("accuracy", "macro_f1", "auc")
    """the first is the headline"""


ISUP = ("0", "1", "2", "3", "4", "5")
BRIGHT3 = ("Noncancerous", "Precancerous", "Cancerous")
BRIGHT6 = ("PB", "UDH", "FEA", "ADH", "DCIS", "IC")
BRACS3 = ("benign", "atypical", "malignant")
GRADE_BY_SITE = ("label", "site")

_ALL = (
    Protocol(
        "panda-gensis", 1, "panda",
        "ISUP grade 0 to 5, 5 folds stratified on grade x provider, all slides; the mean of the "
        "folds' accuracy, macro F1 and AUROC, as Gen-SIS reports.",
        ISUP, folds=5, stratify=GRADE_BY_SITE,
    ),
    Protocol(
        "panda-clean-80-10-10", 1, "panda",
        "ISUP grade 0 to 5 on the slides left when noisy labels are removed, one division "
        "80/10/10; quadratic weighted kappa.",
        ISUP, design="shares", shares=(0.8, 0.1, 0.1), stratify=GRADE_BY_SITE, leave_out="noisy",
        metrics=("qwk", "accuracy", "balanced_accuracy"),
    ),
    Protocol(
        "panda-full-5fold", 1, "panda",
        "ISUP grade 0 to 5 as ordered grades, 5 folds stratified on grade x provider, all slides; "
        "quadratic weighted kappa, over all and by provider.",
        ISUP, target="ordinal", folds=5, stratify=GRADE_BY_SITE,
        metrics=("qwk", "accuracy", "balanced_accuracy"),
    ),
    Protocol(
        "bright3-gensis", 1, "bright",
        "Three classes, tested on the official validation slides (the test labels are hidden), "
        "three seeds of training and of a fifth of the training slides for validation; the mean "
        "of accuracy, macro F1 and AUROC, as Gen-SIS reports.",
        BRIGHT3, design="official", shares=(0.8, 0.2, 0.0), seeds=(0, 1, 2),
        official_test="valid",
    ),
    Protocol(
        "bright6", 1, "bright",
        "Six subtypes, tested on the official validation slides, three seeds; macro F1, which "
        "ranks the challenge.",
        BRIGHT6, label_column="subtype", design="official", shares=(0.8, 0.2, 0.0),
        seeds=(0, 1, 2), stratify=("subtype",), official_test="valid",
        metrics=("macro_f1", "brier_skill", "weighted_f1", "accuracy"),
    ),
    Protocol(
        "bracs3", 1, "bracs",
        "Benign, atypical and malignant on the official parts, three seeds of training.",
        BRACS3, design="official", seeds=(0, 1, 2),
        metrics=("macro_f1", "weighted_f1", "accuracy", "auc"),
    ),
)  # fmt: skip
PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in _ALL}


def protocol_named(name: str) -> Protocol:
    """Raises DataError (PG-D21) for a name that is none."""
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    close = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.3)
    raise DataError(
        "no such protocol", code="PG-D21", where=name, why=f"there are: {', '.join(PROTOCOLS)}",
        hint=f"did you mean {close[0]!r}?" if close else None,
    )  # fmt: skip
