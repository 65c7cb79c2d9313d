"""Charts of slide-level results, in the style of `pathgen.report.figures`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from pathgen.report.figures import BLUE, GRAY, INK, LINES, MANY, ORANGE, drawing, svg

#: A class: name, x, y.
Line = tuple[str, ArrayLike, ArrayLike]
#: A step curve with its band: name, time, survival, low, high.
Steps = tuple[str, ArrayLike, ArrayLike, ArrayLike, ArrayLike]


def roc_and_pr(roc: Sequence[Line], pr: Sequence[Line]) -> Markup:
    """ROC curves on the left, precision by recall on the right; a color a class."""
    names = list(dict.fromkeys(name for name, *_ in (*roc, *pr)))
    color = {name: MANY[i % len(MANY)] for i, name in enumerate(names)}
    dashes = {name: "-" if i < len(MANY) else "--" for i, name in enumerate(names)}
    with drawing(9.4, 4.1) as figure:
        for place, (title, lines, x_label, y_label) in enumerate(
            [
                ("ROC", roc, "false positive rate", "true positive rate"),
                ("precision and recall", pr, "recall", "precision"),
            ],
            1,
        ):
            axes = figure.add_subplot(1, 2, place)
            if place == 1:
                axes.plot((0, 1), (0, 1), color=GRAY, linewidth=0.8, linestyle=":")
            for name, x, y in lines:
                axes.plot(x, y, color=color[name], linestyle=dashes[name], linewidth=1.6,
                          label=name)  # fmt: skip
            axes.set(title=title, xlabel=x_label, ylabel=y_label)
            _unit_square(axes)
        handles, labels = figure.axes[0 if len(roc) >= len(pr) else 1].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside right center", fontsize=8.5, title="class",
            title_fontsize=8.5,
        )  # fmt: skip
        return svg(figure, f"ROC and precision-recall curves of {', '.join(names)}")


def reliability(
    confidence: ArrayLike, accuracy: ArrayLike, counts: ArrayLike, edges: ArrayLike
) -> Markup:
    """How often the prediction is right at each confidence, and how many slides have it.

    Args:
        confidence: (B,) mean confidence of each bin.
        accuracy: (B,) share of right answers in it.
        counts: (B,) slides in it.
        edges: (B, 2) low and high of it.
    """
    x, y, n = (np.asarray(values, float) for values in (confidence, accuracy, counts))
    low, high = np.asarray(edges, float).T
    with drawing(4.9, 5.0) as figure:
        grid = figure.add_gridspec(2, 1, height_ratios=(3.4, 1))
        axes = figure.add_subplot(grid[0])
        axes.plot((0, 1), (0, 1), color=GRAY, linewidth=0.8, linestyle=":")
        axes.vlines(x, np.minimum(x, y), np.maximum(x, y), color=ORANGE, linewidth=1.2)
        axes.plot(x, y, "o-", color=BLUE, linewidth=1.6, markersize=4.5)
        axes.set(title="reliability", ylabel="share that is right")
        _unit_square(axes, square=False)
        below = figure.add_subplot(grid[1], sharex=axes)
        below.bar((low + high) / 2, n, width=(high - low) * 0.92, color=BLUE, alpha=0.45)
        below.set(xlabel="highest probability", ylabel="slides", xlim=(0, 1))
        below.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        below.grid(axis="y")
        axes.tick_params(labelbottom=False)
        return svg(figure, "reliability diagram")


def differences(
    rows: Sequence[tuple[str, float, float | None, float | None]], label: str
) -> Markup:
    """Differences with their intervals around a line at zero: (name, difference, low, high).

    Those whose interval leaves zero out are blue, the others gray.
    """
    with drawing(8.2, 0.8 + 0.34 * len(rows)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=0.9)
        for place, (_, value, low, high) in enumerate(rows):
            clear = low is not None and high is not None and not low <= 0 <= high
            color = BLUE if clear else GRAY
            if low is not None and high is not None:
                axes.plot((low, high), (place, place), color=color, linewidth=1.6)
                axes.plot((low, high), (place, place), "|", color=color, markersize=7)
            axes.plot(value, place, "o", color=color, markersize=5.5)
        axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
        reach = max((abs(v) for row in rows for v in row[1:] if v is not None), default=0.0)
        axes.set(xlabel=label, xlim=(-1.1 * reach, 1.1 * reach) if reach else (-1, 1))
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        return svg(figure, f"{label} in {', '.join(name for name, *_ in rows)}")


def scatter(truth: ArrayLike, predicted: ArrayLike, unit: str) -> Markup:
    """Predicted by true value, with the line where they agree."""
    x, y = np.asarray(truth, float), np.asarray(predicted, float)
    ends = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
    margin = 0.04 * (ends[1] - ends[0]) or 1.0
    ends += (-margin, margin)
    with drawing(5.0, 4.6) as figure:
        axes = figure.add_subplot()
        axes.plot(ends, ends, color=GRAY, linewidth=0.8, linestyle=":")
        axes.plot(x, y, "o", color=BLUE, alpha=0.55, markersize=4.5, markeredgewidth=0)
        axes.set(xlabel=f"true {unit}", ylabel=f"predicted {unit}", xlim=ends, ylim=ends)
        axes.set_aspect("equal")
        axes.grid()
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        return svg(figure, f"predicted by true {unit}")


def survival_curves(groups: Sequence[Steps]) -> Markup:
    """Kaplan-Meier curves with their pointwise bands."""
    with drawing(7.0, 4.0) as figure:
        axes = figure.add_subplot()
        for (name, time, share, low, high), color in zip(groups, LINES, strict=False):
            t = np.asarray(time, float)
            axes.fill_between(
                t, np.asarray(low, float), np.asarray(high, float), step="post", color=color,
                alpha=0.14, linewidth=0,
            )  # fmt: skip
            axes.step(t, np.asarray(share, float), where="post", color=color, linewidth=1.8,
                      label=name)  # fmt: skip
        axes.set(xlabel="time", ylabel="share without an event", ylim=(0, 1.02))
        axes.set_xlim(left=0)
        axes.legend(fontsize=8.5, loc="best")
        axes.grid()
        return svg(figure, f"survival curves of {', '.join(name for name, *_ in groups)}")


def _unit_square(axes: Axes, square: bool = True) -> None:
    ticks: Any = (0, 0.25, 0.5, 0.75, 1)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), xticks=ticks, yticks=ticks)
    if square:
        axes.set_aspect("equal")
    axes.grid()
