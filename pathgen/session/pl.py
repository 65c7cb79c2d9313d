"""Pictures of tables: `pathgen.pl.pca(df, color="grade")`. Each is a matplotlib figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from pathgen.data.labels import as_number, class_order
from pathgen.errors import ConfigError, DataError
from pathgen.extras import need
from pathgen.session.canvas import axes_of
from pathgen.session.columns import texts, vectors

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Method = Literal["pca", "tsne", "umap"]
Points = NDArray[np.float64]
#: Classes that get a color and a line of the legend each; more numbers than these are a scale.
CLASSES = 12
GRAY = (0.75, 0.75, 0.75)


def embedding(
    table: pandas.DataFrame, color: str | None = None, method: Method = "pca", *,
    ax: Axes | None = None, seed: int = 0,
) -> Figure:  # fmt: skip
    """Rows of a table as points in the plane, by the columns of numbers, each scaled alike.

    PCA keeps distances as well as two axes can. t-SNE and UMAP keep neighborhoods: there, sizes of
    clusters and distances between them mean little.

    Args:
        table: one row a point.
        color: column to color by, which is then not among the numbers; gray where it is missing.
        method: ``pca``, ``tsne`` (both of scikit-learn), or ``umap``.
        seed: of t-SNE and UMAP.

    Raises:
        DataError: PG-N06, fewer than three rows, no numbers, or a missing one.
        ConfigError: PG-C01, no such method. MissingExtraError: PG-E01, umap-learn is not installed.
    """
    if method not in METHODS:
        raise ConfigError("no such method", where=method, why=f"known: {', '.join(METHODS)}")
    said = None if color is None else texts(table, color)
    values = vectors(table, (color,))
    if len(values) < 3:
        raise DataError("too few rows for a picture", why=f"{len(values)}; three are needed")
    spread = values.std(axis=0)
    scaled = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1)
    points, names = METHODS[method](scaled, seed)
    axes, figure = axes_of(ax)
    _scatter(axes, points, said)
    axes.set(xlabel=names[0], ylabel=names[1], title=f"{len(points):,} slides")
    legend = axes.get_legend()
    if legend is not None:
        legend.set_title(color or "")
    return figure


def pca(table: pandas.DataFrame, color: str | None = None, **options: Any) -> Figure:
    """`embedding` by the two principal axes."""
    return embedding(table, color, "pca", **options)


def tsne(table: pandas.DataFrame, color: str | None = None, **options: Any) -> Figure:
    """`embedding` by t-SNE."""
    return embedding(table, color, "tsne", **options)


def umap(table: pandas.DataFrame, color: str | None = None, **options: Any) -> Figure:
    """`embedding` by UMAP, which needs ``pip install "pathgen[umap]"``."""
    return embedding(table, color, "umap", **options)


def _pca(values: Points, seed: int) -> tuple[Points, tuple[str, str]]:
    centered = values - values.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centered, full_matrices=False)
    share = sizes**2 / max(float((sizes**2).sum()), np.finfo(float).tiny)
    points = np.zeros((len(values), 2))
    points[:, : min(2, len(sizes))] = (left * sizes)[:, :2]
    share = np.append(share, [0.0])
    # A sign is as good as the other: the largest share of each axis is positive.
    signs = np.sign(points[np.abs(points).argmax(axis=0), [0, 1]])
    names = [f"axis {i + 1} ({share[i]:.0%} of the variance)" for i in (0, 1)]
    return points * np.where(signs < 0, -1, 1), (names[0], names[1])


def _tsne(values: Points, seed: int) -> tuple[Points, tuple[str, str]]:
    from sklearn.manifold import TSNE

    near = min(30.0, (len(values) - 1) / 3)
    model = TSNE(2, perplexity=near, init="pca", random_state=seed)
    return np.asarray(model.fit_transform(values), np.float64), ("t-SNE 1", "t-SNE 2")


def _umap(values: Points, seed: int) -> tuple[Points, tuple[str, str]]:
    need("umap", "umap")
    import umap as umap_learn

    near = min(15, len(values) - 1)
    init = "spectral" if len(values) > 4 else "random"
    # One thread, as a seed asks for; saying so spares a warning.
    model = umap_learn.UMAP(n_neighbors=near, init=init, random_state=seed, n_jobs=1)
    return np.asarray(model.fit_transform(values), np.float64), ("UMAP 1", "UMAP 2")


METHODS = {"pca": _pca, "tsne": _tsne, "umap": _umap}


def _scatter(axes: Axes, points: Points, said: list[str | None] | None) -> None:
    if said is None:
        axes.scatter(points[:, 0], points[:, 1], s=18)
        return
    missing = np.array([text is None for text in said])
    if missing.any():
        axes.scatter(points[missing, 0], points[missing, 1], s=14, color=GRAY, label="unknown")
    known = [text for text in said if text is not None]
    numbers = [number for text in known if (number := as_number(text)) is not None]
    if len(set(known)) > CLASSES and len(numbers) == len(known):
        x, y = points[~missing].T
        drawn = axes.scatter(x, y, s=18, c=numbers, cmap="viridis")
        axes.figure.colorbar(drawn, ax=axes)
        return
    classes = class_order(known) if known else ()
    shades = _shades(classes)
    for name, shade in zip(classes, shades, strict=True):
        rows = np.array([text == name for text in said])
        axes.scatter(
            points[rows, 0], points[rows, 1], s=18, color=shade, label=f"{name} ({int(rows.sum())})"
        )
    if len(classes) <= 2 * CLASSES:
        axes.legend()


def _shades(classes: tuple[str, ...]) -> list[Any]:
    """Numbers have an order, and so have their colors; others are as unlike as can be."""
    from matplotlib import colormaps

    ordered = len(classes) > 2 and all(as_number(name) is not None for name in classes)
    if ordered:
        return [colormaps["viridis"](i / (len(classes) - 1)) for i in range(len(classes))]
    table = colormaps["tab10" if len(classes) <= 10 else "tab20"]
    return [table(i % table.N) for i in range(len(classes))]
