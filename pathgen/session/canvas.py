"""Figures that no global state knows of, and that Jupyter shows once."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Plot(Figure):
    """A figure made without pyplot: nothing to close, and none piles up."""

    def _repr_png_(self) -> bytes:
        data = io.BytesIO()
        self.savefig(data, format="png", bbox_inches="tight")
        return data.getvalue()


def axes_of(ax: Axes | None, size: tuple[float, float] = (6.4, 4.8)) -> tuple[Axes, Figure]:
    """The given axes and their figure, or those of a new one of `size` inches."""
    if ax is None:
        figure = Plot(figsize=size, layout="constrained")
        return figure.subplots(), figure
    found = ax.get_figure(root=True)
    assert found is not None
    return ax, found
