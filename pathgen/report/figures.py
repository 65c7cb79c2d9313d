"""Figures as inline SVG or data URIs: nothing a page would have to fetch.

Colors are those of Okabe and Ito (Color Universal Design, 2008), which people with any common
form of color blindness can tell apart. Text in an SVG stays text.
"""

from __future__ import annotations

import base64
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from PIL import Image as Pillow
from PIL import ImageOps

from pathgen.report.blocks import Image

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
LINES = (BLUE, ORANGE, GREEN, PURPLE)
#: For up to eight classes.
MANY = (*LINES, "#56B4E9", "#E69F00", "#444444", "#8c564b")
INK, GRAY = "#222222", "#6b7280"
#: Inches across the page.
WIDTH = 10.6
#: Points a curve is drawn with; more cannot be told apart at this size.
_POINTS = 400
_STYLE: Any = {
    "font.size": 9.0, "font.family": "sans-serif", "text.color": INK, "text.parse_math": False,
    "axes.edgecolor": GRAY, "axes.labelcolor": INK, "axes.linewidth": 0.7,
    "axes.titlesize": 9.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "axes.unicode_minus": False, "xtick.color": GRAY, "ytick.color": GRAY,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "xtick.labelsize": 8, "ytick.labelsize": 8,
    "grid.color": "#e5e7eb", "grid.linewidth": 0.6, "legend.frameon": False,
    "svg.fonttype": "none", "svg.hashsalt": "pathgen", "path.simplify": True,
}  # fmt: skip


class BadImage(Exception):
    """A picture file cannot be decoded."""


# --- charts ----------------------------------------------------------------------------------


Curve = tuple[ArrayLike, ArrayLike]


def loss_curves(
    panels: Mapping[str, Curve | Mapping[str, Curve]],
    columns: int = 3,
    label: str = "loss",
    unit: str = "step",
) -> Markup:
    """Small multiples: one panel a name, each with (steps, values) as they are and smoothed.

    Values that are not finite are gaps. The smooth line is a moving mean over a twentieth of the
    logged steps. A panel may hold several named curves, which a legend tells apart.
    """
    columns = max(1, min(columns, len(panels)))
    rows = -(-len(panels) // columns)
    with drawing(WIDTH * min(columns, 2) / 2, rows * 2.2) as figure:
        for place, (name, content) in enumerate(panels.items(), 1):
            axes = figure.add_subplot(rows, columns, place)
            curves = content if isinstance(content, Mapping) else {"": content}
            for (title, (steps, values)), color in zip(curves.items(), LINES, strict=False):
                x, y = np.asarray(steps, float), np.asarray(values, float)
                axes.plot(*_thin(x, y), color=color, alpha=0.3, linewidth=0.8)
                axes.plot(*_thin(x, smooth(y)), color=color, linewidth=1.6, label=title)
                if np.isfinite(y).sum() == 1:
                    axes.plot(x, y, "o", color=color, markersize=4)
            if len(curves) > 1:
                axes.legend(fontsize=8)
            axes.set(title=name, xlabel=unit)
            if (place - 1) % columns == 0:
                axes.set_ylabel(label)
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
        return svg(figure, f"{label} of {', '.join(panels)} by {unit}")


def histograms(
    values: Mapping[str, ArrayLike],
    thresholds: Mapping[str, float] | None = None,
    label: str = "share of pixels",
    limits: tuple[float, float] = (0.0, 1.0),
    bins: int = 40,
) -> Markup:
    """One panel a name, side by side; a dashed line where `thresholds` has that name."""
    thresholds = thresholds or {}
    with drawing(WIDTH * min(len(values), 2) / 2, 2.3) as figure:
        for place, (name, one) in enumerate(values.items(), 1):
            axes = figure.add_subplot(1, len(values), place)
            one = np.asarray(one, float)
            axes.hist(one[np.isfinite(one)], bins=bins, range=limits, color=_stain(name))
            axes.set(title=name, xlabel=label, xlim=limits)
            if place == 1:
                axes.set_ylabel("patches")
            if name in thresholds:
                axes.axvline(thresholds[name], color=INK, linestyle="--", linewidth=1)
                axes.annotate(
                    f"least {thresholds[name]:g}", (thresholds[name], 1), (4, -1), fontsize=8,
                    xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
                )  # fmt: skip
            axes.grid(axis="y")
            axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        return svg(figure, f"histograms of {', '.join(values)}")


def confusion(matrix: ArrayLike, classes: Sequence[str]) -> Markup:
    """Truth by row, prediction by column; color is the share of the row, numbers are counts."""
    counts = np.asarray(matrix, float)
    if counts.shape != (len(classes), len(classes)):
        raise ValueError(f"matrix {counts.shape} for {len(classes)} classes")
    total = counts.sum(1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    n = len(classes)
    side = min(6.5, max(2.2, 0.55 * n + 0.8))
    names = [_short(str(name), 18) for name in classes]
    with drawing(side + 1.2, side + 0.4) as figure:
        axes = figure.add_subplot()
        cells = axes.pcolormesh(share, cmap="Blues", vmin=0, vmax=1, edgecolor="white")
        axes.set_aspect("equal")
        axes.invert_yaxis()
        slanted = max(map(len, names)) > 4
        axes.set_xticks(np.arange(n) + 0.5, names, rotation=40 if slanted else 0,
                        ha="right" if slanted else "center")  # fmt: skip
        axes.set_yticks(np.arange(n) + 0.5, names)
        axes.set(xlabel="predicted", ylabel="truth")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for row, column in np.ndindex(n, n) if n <= 16 else ():
            axes.text(column + 0.5, row + 0.5, f"{counts[row, column]:g}", ha="center", va="center",
                      color="white" if share[row, column] > 0.55 else INK)  # fmt: skip
        bar = figure.colorbar(cells, ax=axes, shrink=0.8, ticks=(0, 0.5, 1))
        bar.set_label("share of the true class")
        bar.outline.set_visible(False)  # type: ignore[operator]
        return svg(figure, f"confusion matrix of {', '.join(names)}")


def bars(
    rows: Sequence[tuple[str, float, float | None, float | None]],
    label: str,
    reference: tuple[str, float] | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
    colors: Sequence[str] = (),
) -> Markup:
    """Horizontal bars: (name, value, low, high); low and high draw an interval.

    `reference` is a named dashed line, as chance; `colors` are of the first bars, then blue.
    """
    with drawing(7.2, 0.75 + 0.36 * len(rows)) as figure:
        axes = figure.add_subplot()
        for place, (_, value, low, high) in enumerate(rows):
            color = colors[place] if place < len(colors) else BLUE
            axes.barh(place, value, height=0.62, color=color, alpha=0.85)
            if low is not None and high is not None:
                axes.plot((low, high), (place, place), color=INK, linewidth=1.2)
                axes.plot((low, high), (place, place), "|", color=INK, markersize=7)
            end = max(value, 0.0 if high is None else high)
            axes.annotate(f"{value:.3f}", (end, place), (5, 0), va="center", fontsize=8.5,
                          textcoords="offset points")  # fmt: skip
        if reference:
            axes.axvline(reference[1], color=ORANGE, linestyle="--", linewidth=1.1)
            axes.annotate(f"{reference[0]} {reference[1]:.3f}", (reference[1], 1), (0, 3),
                          xycoords=("data", "axes fraction"), textcoords="offset points",
                          color=ORANGE, ha="center", fontsize=8.5)  # fmt: skip
        axes.set_yticks(range(len(rows)), [_short(name, 32) for name, *_ in rows])
        axes.set(xlabel=label, xlim=limits)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        return svg(figure, f"{label} of {', '.join(name for name, *_ in rows)}")


def smooth(values: ArrayLike) -> NDArray[np.float64]:
    """Centered moving mean over a twentieth of the values, (n,); not finite ones are left out."""
    y = np.asarray(values, float)
    half = len(y) // 40
    good = np.isfinite(y)
    sums = np.concatenate([[0.0], np.cumsum(np.where(good, y, 0.0))])
    counts = np.concatenate([[0], np.cumsum(good)])
    place = np.arange(len(y))
    first, last = np.maximum(place - half, 0), np.minimum(place + half + 1, len(y))
    count = counts[last] - counts[first]
    mean = np.full(len(y), math.nan)
    np.divide(sums[last] - sums[first], count, out=mean, where=count > 0)
    return mean


# --- pictures --------------------------------------------------------------------------------


def contact_sheet(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    columns: int = 12,
    side: int = 96,
    gap: int = 3,
    quality: int = 82,
) -> Image:
    """Images (n, H, W, 3) in rows of `columns`, each `side` pixels, as one JPEG."""
    if not len(images):
        raise ValueError("no images")
    columns = min(columns, len(images))
    rows, step = -(-len(images) // columns), side + gap
    sheet = Pillow.new("RGB", (columns * step - gap, rows * step - gap), "white")
    for place, pixels in enumerate(images):
        small = Pillow.fromarray(pixels).resize((side, side), Pillow.Resampling.LANCZOS)
        sheet.paste(small, (place % columns * step, place // columns * step))
    return jpeg(sheet, quality)


def thumbnail(path: Path, width: int = 360, height: int = 360, quality: int = 80) -> Image:
    """A picture file within `width` x `height`, as JPEG. Raises `BadImage`."""
    picture = _open(path, draft=(2 * width, 2 * height))
    picture.thumbnail((width, height), Pillow.Resampling.LANCZOS)
    return jpeg(picture, quality)


def picture(path: Path, width: int = 1100, quality: int = 90, sharp_below: int = 500_000) -> Image:
    """A sheet up to `width` across: a PNG when that is below `sharp_below` bytes, else JPEG.

    It is encoded anew, so that no text chunk of the file comes along. Raises `BadImage`.
    """
    content = _open(path)
    content.thumbnail((width, 8 * width), Pillow.Resampling.LANCZOS)
    data = io.BytesIO()
    content.save(data, "PNG")
    if data.tell() <= sharp_below:
        return _embed(content, "png", data)
    return jpeg(content, quality)


def jpeg(content: Pillow.Image, quality: int) -> Image:
    """An RGB image as a JPEG data URI."""
    data = io.BytesIO()
    content.save(data, "JPEG", quality=quality, optimize=True)
    return _embed(content, "jpeg", data)


def _embed(content: Pillow.Image, kind: str, data: io.BytesIO) -> Image:
    text = base64.b64encode(data.getvalue()).decode()
    return Image(Markup(f"data:image/{kind};base64,{text}"), *content.size)


def _open(path: Path, draft: tuple[int, int] | None = None) -> Pillow.Image:
    """An RGB image of a JPEG or PNG file, decoded in full."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            with Pillow.open(path, formats=("JPEG", "PNG")) as content:
                if draft:
                    content.draft("RGB", draft)
                return ImageOps.exif_transpose(content.convert("RGB"))
    except FileNotFoundError as error:
        raise BadImage("is missing") from error
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise BadImage("is too large to show") from error
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's ways to say broken
        raise BadImage("cannot be decoded") from error


# --- helpers ---------------------------------------------------------------------------------


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """A figure of `width` x `height` inches in the page's style; no pyplot, no window."""
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Names in other scripts: the browser has the glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield Figure(figsize=(width, height), layout="constrained")


def svg(figure: Figure, alt: str) -> Markup:
    """The figure as an SVG element that scales down with the page."""
    data = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(data, format="svg", metadata=nothing, transparent=True)
    text = data.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    # A style element would reach the whole page, and numbered ids would repeat in it.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    # In attributes alone: a class may be called "font: 9px".
    text = re.sub(r'style="[^"]*"', _page_font, text)
    width, height = figure.get_size_inches()
    opening = (
        f'<svg viewBox="0 0 {width * 72:g} {height * 72:g}" role="img" aria-label="{escape(alt)}" '
        f'style="width:100%;max-width:{round(width * 96)}px;height:auto;stroke-linejoin:round">'
    )
    body = re.sub(r"\s*\n\s*", "\n", text[text.index(">") + 1 :]).strip()
    return Markup(opening + body)  # matplotlib escapes the names in it


def _page_font(style: re.Match[str]) -> str:
    """A style attribute with the page's font in place of matplotlib's."""
    text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", style[0])
    return re.sub(r"(font: [^;\"]*?[\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", text)


def _thin(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A curve with at most `_POINTS` points, evenly spaced; the last one stays."""
    if len(x) <= _POINTS:
        return x, y
    keep = np.unique(np.linspace(0, len(x) - 1, _POINTS).round().astype(int))
    return x[keep], y[keep]


def _stain(name: str) -> str:
    return {"hematoxylin": BLUE, "eosin": PURPLE}.get(name, GREEN)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
