"""Are probabilities meant? Brier score, log loss, and how far confidence is from accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pathgen.evaluate.resampling import Floats, Ints, ratio

#: Equal bins of the highest probability, from 0 to 1.
BINS = 10
#: How far from 1 the probabilities of a slide may sum, as the BRIGHT challenge allows.
TOLERANCE = 0.05
SCALE = (
    f"Brier score: the squared error summed over classes, 0 (best) to 2; Brier skill: 1 - Brier / "
    f"Brier of always forecasting the class frequencies of these slides, 1 (best), 0 (no better); "
    f"ECE and MCE: mean and largest gap between the highest probability and how often its class is "
    f"right, in {BINS} equal bins; log loss in nats, probabilities clipped at 2.2e-16"
)
METRICS = ("brier", "brier_skill", "log_loss", "ece", "mce")


def no_probabilities(scores: Floats) -> str:
    """Why (N, C) scores are no probabilities; empty when they are."""
    if scores.min() < 0 or scores.max() > 1 + TOLERANCE:
        return "the scores are no probabilities: some are outside 0 to 1"
    if np.abs(scores.sum(1) - 1).max() > TOLERANCE:
        return "the scores are no probabilities: they do not sum to 1"
    return ""


def calibration(truth: Ints, scores: Floats, weights: Floats) -> dict[str, Floats]:
    """(B,) of each of `METRICS`, for (B, N) row weights; nan: undefined.

    The Brier score is the multi-class sum (Brier 1950); its skill is against the frequencies of
    the classes among the weighted rows themselves, as in the BRIGHT challenge. ECE and MCE are
    those of Naeini et al. 2015 and Guo et al. 2017 for the class with the highest probability.

    Args:
        truth: (N,) index of a class.
        scores: (N, C) probabilities.
    """
    rows = np.arange(len(truth))
    one_hot = np.zeros_like(scores)
    one_hot[rows, truth] = 1
    squared = ((scores - one_hot) ** 2).sum(1)
    surprise = -np.log(np.clip(scores[rows, truth], np.finfo(np.float64).eps, 1))
    total = weights.sum(1)
    brier = ratio(weights @ squared, total)
    frequency = ratio(weights @ one_hot, total[:, None])
    reference = 1 - (frequency**2).sum(1)
    # A class alone leaves a reference of 0, give or take a rounding error.
    reference = np.where(reference > 1e-12, reference, 0)
    count, confidence, right = _bins(truth, scores, weights)
    gap = np.abs(right - confidence)  # (B, bins), times the count
    return {
        "brier": brier,
        "brier_skill": 1 - ratio(brier, reference),
        "log_loss": ratio(weights @ surprise, total),
        "ece": ratio(gap.sum(1), total),
        "mce": np.where(total > 0, np.nan_to_num(ratio(gap, count)).max(1), np.nan),
    }


def reliability(truth: Ints, scores: Floats) -> list[dict[str, Any]]:
    """The bins that hold slides: how sure they are on average, and how often they are right."""
    count, confidence, right = (
        values[0] for values in _bins(truth, scores, np.ones((1, len(truth))))
    )
    return [
        {
            "low": i / BINS,
            "high": (i + 1) / BINS,
            "n": int(count[i]),
            "confidence": float(confidence[i] / count[i]),
            "accuracy": float(right[i] / count[i]),
        }
        for i in np.flatnonzero(count)
    ]


def _bins(truth: Ints, scores: Floats, weights: Floats) -> Sequence[Floats]:
    """(B, BINS) weight, summed confidence and summed right answers of each bin [low, high)."""
    confidence = scores.max(1)
    right = scores.argmax(1) == truth
    # The edges are those that are written down: i / BINS; 1 itself falls into the last bin.
    edges = np.arange(1, BINS) / BINS
    place = np.searchsorted(edges, confidence, side="right")
    inside = np.zeros((len(truth), BINS))
    inside[np.arange(len(truth)), place] = 1
    return [
        weights @ (inside * value[:, None]) for value in (np.ones(len(truth)), confidence, right)
    ]
