"""What slide-level metrics are called on a page, and which of them stand first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pathgen.report.text import as_float

#: Key -> name, by what is predicted, in the order of the page.
CLASSES = {
    "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy", "macro_f1": "macro F1",
    "weighted_f1": "weighted F1", "auc": "AUC", "auprc": "area under precision-recall",
    "qwk": "quadratic kappa", "linear_kappa": "linear kappa", "brier": "Brier score",
    "brier_skill": "Brier skill", "log_loss": "log loss", "ece": "calibration error (ECE)",
    "mce": "largest calibration gap",
}  # fmt: skip
REGRESSION = {
    "mae": "mean absolute error", "rmse": "root mean squared error", "r2": "R\N{SUPERSCRIPT TWO}",
    "pearson": "Pearson correlation", "spearman": "rank correlation (Spearman)",
    "bias": "bias (predicted - truth)",
}  # fmt: skip
SURVIVAL = {"c_index": "concordance (C-index)"}
NAMES: Mapping[str, Mapping[str, str]] = {
    "classes": CLASSES,
    "regression": REGRESSION,
    "survival": SURVIVAL,
}
#: Smaller is better.
LOWER = frozenset({"brier", "log_loss", "ece", "mce", "mae", "rmse"})
#: In large type.
SHOWN: Mapping[str, tuple[str, ...]] = {
    "classes": ("accuracy", "balanced_accuracy", "auc", "qwk"),
    "regression": ("mae", "r2", "spearman"),
    "survival": ("c_index",),
}
#: Of a fold, a repeat or a site: a table is only so wide.
SHORT: Mapping[str, tuple[str, ...]] = {
    "classes": ("accuracy", "balanced_accuracy", "macro_f1", "auc", "qwk"),
    "regression": ("mae", "r2", "spearman", "bias"),
    "survival": ("c_index",),
}
#: Heads of such a table, where the name is long.
BRIEF = {"mae": "MAE", "spearman": "Spearman", "bias": "bias", "c_index": "C-index"}
#: What baselines and sites are drawn by: the first that is defined.
MAIN: Mapping[str, tuple[str, ...]] = {
    "classes": ("qwk", "auc", "balanced_accuracy"),
    "regression": ("r2", "mae"),
    "survival": ("c_index",),
}
#: What the trivial baseline in a metrics file is.
TRIVIAL: Mapping[str, tuple[str, str]] = {
    "classes": ("majority", "largest class"),
    "regression": ("mean", "always the mean"),
    "survival": ("none", "no knowledge"),
}


def kind_of(values: Mapping[str, Any]) -> str:
    """classes, regression or survival; results of older versions are classes."""
    kind = values.get("kind")
    return kind if isinstance(kind, str) and kind in NAMES else "classes"


def title(kind: str, name: str) -> str:
    """With a word on the direction where smaller is better."""
    return NAMES[kind].get(name, name) + (" (lower is better)" if name in LOWER else "")


def brief(kind: str, name: str) -> str:
    """For the head of a table of many columns."""
    return BRIEF.get(name, NAMES[kind][name])


def main_metric(values: Mapping[str, Any]) -> str | None:
    """The metric that a result is drawn by; None when none of them is defined."""
    names = MAIN[kind_of(values)]
    return next((name for name in names if as_float(values.get(name)) is not None), None)
