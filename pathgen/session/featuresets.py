"""Features of many slides as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import DataError, NoInputError
from pathgen.extras import need
from pathgen.progress import counted
from pathgen.session.shown import Shown, html_table, joined
from pathgen.session.tables import frame
from pathgen.stores.features import FeatureStore
from pathgen.stores.store import find_stores

if TYPE_CHECKING:
    import pandas
    from anndata import AnnData

#: Vectors that are read at once.
BATCH = 16384
COLUMNS = ("slide", "patches", "label", "patient", "dim", "encoder", "id")


class Entry(NamedTuple):
    """What is known of one store without its vectors."""

    slide: str
    patches: int
    label: str | None
    patient: str | None
    dim: int
    encoder: str
    id: str
    """of the encoder"""
    path: Path


class Features(Shown):
    """Feature stores of one encoder, by slide, in the order of names.

    Args:
        path: feature stores, or folders of them.

    Raises:
        NoInputError: PG-N01, there are none. StoreError: one is damaged.
        DataError: PG-N06, two stores of one slide, or features of different encoders.
    """

    def __init__(self, path: str | Path | Sequence[str | Path]) -> None:
        self.path = path
        entries = sorted(_entries(find_stores(path, "features")), key=lambda one: one.slide)
        for one, following in pairwise(entries):
            if one.slide == following.slide:
                raise DataError(
                    "two feature stores of one slide", where=one.slide,
                    why=f"{one.path} and {following.path}", hint="give the features of one encoder",
                )  # fmt: skip
        first = entries[0]
        for one in entries:
            if (one.dim, one.id) != (first.dim, first.id):
                raise DataError(
                    "features of different encoders", where=one.slide,
                    why=f"{first.slide} has {first.encoder} ({first.dim} numbers), this one "
                    f"{one.encoder} ({one.dim})", hint="give the features of one encoder",
                )  # fmt: skip
        self.entries = tuple(entries)

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.entries[0].dim

    @property
    def names(self) -> tuple[str, ...]:
        """Ids of the slides."""
        return tuple(one.slide for one in self.entries)

    @property
    def empty(self) -> tuple[str, ...]:
        """Slides without a single patch, which no table of slides has."""
        return tuple(one.slide for one in self.entries if not one.patches)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, slide: str) -> FeatureStore:
        """The store of a slide. Raises NoInputError (PG-N01) where there is none."""
        for one in self.entries:
            if one.slide == slide:
                return FeatureStore.open(one.path)
        raise NoInputError(
            "no features of this slide", where=slide, why=f"there are {self.line}",
            hint="see .names; ids are those of the stores, without .h5",
        )  # fmt: skip

    @property
    def line(self) -> str:
        """``12 slides · 3,401 patches · 384 numbers each · encoder dino-tiny``."""
        bare = f"{counted(len(self.empty), 'slide')} without patches" if self.empty else ""
        total = sum(one.patches for one in self.entries)
        return joined([
            counted(len(self), "slide"), counted(total, "patch", "patches"),
            f"{self.dim:,} numbers each", f"encoder {self.entries[0].encoder}", bare,
        ])  # fmt: skip

    def html(self) -> str:
        return html_table(COLUMNS[:4], [one[:4] for one in self.entries])

    def table(self) -> pandas.DataFrame:
        """One row a slide, indexed by its id, without vectors."""
        rows = (dict(zip(COLUMNS, one, strict=False)) for one in self.entries)
        return frame(rows, COLUMNS, index="slide")

    def to_csv(self, path: str | Path) -> Path:
        """Write `slide_means` as CSV, whole or not at all; returns where it is."""
        from pathgen import commit

        path = Path(path)
        commit.write_text(path, self.slide_means().to_csv(lineterminator="\n"))
        return path

    def slide_means(self) -> pandas.DataFrame:
        """The mean vector of each slide: one row a slide, columns ``f0``, ``f1``, ..., float32.

        Slides without patches have no mean and no row; `empty` names them.

        Raises:
            DataError: PG-D06, a vector holds nan or infinity.
            MissingExtraError: PG-E01, pandas is not installed.
        """
        need("pandas", "tables")
        import pandas

        names = [one.slide for one in self.entries if one.patches]
        return pandas.DataFrame(
            self._means, pandas.Index(names, name="slide", dtype="object"),
            [f"f{i}" for i in range(self.dim)],
        )  # fmt: skip

    @cached_property
    def _means(self) -> NDArray[np.float32]:
        means = [_mean(one) for one in self.entries if one.patches]
        return np.stack(means) if means else np.zeros((0, self.dim), np.float32)

    def to_anndata(self, labels: str | Path | None = None) -> AnnData:
        """All patches as one table of scanpy and squidpy, as the export to AnnData has it.

        ``obs`` has slide, patient, x, y, x_um, y_um and more of each patch, ``obsm["spatial"]``
        the centers in level-0 pixels, ``X`` the vectors.

        Args:
            labels: CSV of slide labels; default: those known when the slides were tiled.

        Raises:
            MissingExtraError: PG-E01, anndata is not installed.
            DataError: PG-F02, no slide has a patch. Others as `pathgen.export_stores`.
        """
        need("anndata", "anndata")
        import anndata

        from pathgen.exchange import ExportConfig, export_stores

        stores = [one.path for one in self.entries if one.patches]
        if not stores:
            raise DataError("no patches to put in a table", code="PG-F02", where=self.line)
        with TemporaryDirectory() as folder:
            out = Path(folder) / "anndata"
            export_stores(stores, out, "anndata", ExportConfig(one_file=True), labels=labels)
            (file,) = out.rglob("*.h5ad")
            return anndata.read_h5ad(file)


def features(path: str | Path | Sequence[str | Path]) -> Features:
    """A handle on feature stores; errors as `Features`."""
    return Features(path)


def _entries(paths: Sequence[Path]) -> Iterator[Entry]:
    for path in paths:
        with FeatureStore.open(path) as store:
            encoder = str(store.encoder.get("name", "unknown"))
            yield Entry(
                store.name, len(store), store.label, store.patient, store.dim, encoder,
                str(store.encoder.get("id", "")), path,
            )  # fmt: skip


def _mean(entry: Entry) -> NDArray[np.float32]:
    """Of all vectors, summed in double precision."""
    total = np.zeros(entry.dim)
    with FeatureStore.open(entry.path) as store:
        for start in range(0, len(store), BATCH):
            vectors = store.features(slice(start, start + BATCH)).astype(np.float64)
            if not np.isfinite(vectors).all():
                raise DataError(
                    "features with nan or infinity", code="PG-D06", where=entry.slide,
                    why="a mean of them would be none",
                    hint="extract the features of this slide again",
                )  # fmt: skip
            total += vectors.sum(axis=0)
    return (total / entry.patches).astype(np.float32)
