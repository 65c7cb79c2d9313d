"""AnnData: features as the table of scanpy and squidpy, one row a patch.

Virshup I et al. anndata: access and store annotated data matrices. J Open Source Softw 2024;9:4371.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pathgen.exchange.entries import Entry, encoder_folders, folder_of, need_features
from pathgen.exchange.export import ExportConfig, Log
from pathgen.exchange.findings import Finding, over
from pathgen.extras import need
from pathgen.stores.features import FeatureStore

if TYPE_CHECKING:
    from anndata import AnnData

CONSUMER = "AnnData"
#: What each row is told to be, in this order.
COLUMNS = (
    "slide", "patient", "slide_label", "label", "x", "y", "x_um", "y_um", "side_um", "row", "col",
)  # fmt: skip


def write(entries: Sequence[Entry], folder: Path, config: ExportConfig, log: Log) -> None:
    """``<encoder>/<slide>.h5ad``, or ``<encoder>.h5ad`` with all slides.

    ``X`` (n, dim) float32 are the features. ``obs`` has a row a patch: its slide, corner in
    level-0 pixels and in um, place in the grid (-1 where there is none), side in um, labels.
    ``obsm["spatial"]`` (n, 2) float64 are the centers of the patches in level-0 pixels, which is
    what squidpy draws; ``uns["spatial"]`` has their side. ``uns["encoder"]`` is the encoder's card.
    """
    need("anndata", "anndata")
    import anndata

    encoders = encoder_folders(entries)
    together: dict[str, list[AnnData]] = {}
    for entry in log.each(entries):
        need_features(entry)
        if not len(entry):
            log.skipped[entry.id] = "no patches"
            continue
        for store in entry.features:
            name, table = folder_of(store, encoders), _table(entry, store)
            if config.one_file:
                together.setdefault(name, []).append(table)
            else:
                _save(table, folder / name / f"{entry.id}.h5ad")
    for name, tables in together.items():
        whole = anndata.concat(tables, join="inner", uns_merge="unique")
        whole.uns = {**tables[0].uns, "spatial": _joined(tables, "spatial"),
                     "pathgen": _joined(tables, "pathgen")}  # fmt: skip
        for column in ("slide", "patient", "slide_label", "label"):
            whole.obs[column] = whole.obs[column].astype("category")
        _save(whole, folder / f"{name}.h5ad")


def _table(entry: Entry, store: FeatureStore) -> AnnData:
    import pandas as pd
    from anndata import AnnData

    coords, grid, geometry = entry.coords, entry.grid, entry.geometry
    count, classes = len(entry), entry.classes
    mpp = np.asarray(geometry.mpp or (np.nan, np.nan), np.float64)
    labels = entry.patch_labels
    named = [None] * count if labels is None else [classes[i] if i >= 0 else None for i in labels]
    um = coords * mpp
    obs = pd.DataFrame(
        {
            "slide": _words([entry.id] * count), "patient": _words([entry.patient] * count),
            "slide_label": _words([entry.label] * count), "label": _words(named),
            "x": coords[:, 0], "y": coords[:, 1], "x_um": um[:, 0], "y_um": um[:, 1],
            "side_um": np.full(count, geometry.side[0] * mpp[0]),
            "row": grid[:, 0], "col": grid[:, 1],
        },
        columns=list(COLUMNS), index=pd.Index([f"{entry.id}:{i}" for i in range(count)], dtype=str),
    )  # fmt: skip
    values = store.features().astype(np.float32)
    var = pd.DataFrame(index=pd.Index([f"f{i}" for i in range(store.dim)], dtype=str))
    side = np.asarray(geometry.side, np.float64)
    facts = {"store": store.id, "patches": store.source["id"], "patch_size": geometry.size,
             "target_mpp": geometry.target_mpp, "level0_mpp": geometry.mpp and list(geometry.mpp),
             "side_level0": float(side[0])}  # fmt: skip
    scale = {"spot_diameter_fullres": float(side[0]), "tissue_hires_scalef": 1.0}
    return AnnData(
        X=values, obs=obs, var=var, obsm={"spatial": coords + side / 2},
        uns={
            "encoder": _plain(store.encoder), "pathgen": {entry.id: _plain(facts)},
            "spatial": {entry.id: {"scalefactors": scale}},
        },
    )  # fmt: skip


def _words(values: Sequence[str | None]) -> Any:
    import pandas as pd

    return pd.Categorical(values, categories=sorted({value for value in values if value}))


def _plain(value: Any) -> Any:
    """Without what the file has no type for: None, empty lists, and lists of mappings."""
    if isinstance(value, Mapping):
        inner = {str(key): _plain(part) for key, part in value.items()}
        return {key: part for key, part in inner.items() if part is not None}
    if isinstance(value, list | tuple):
        if any(isinstance(part, Mapping | list | tuple) for part in value):
            return {str(i): _plain(part) for i, part in enumerate(value)}
        return np.asarray(value) if value else None
    return value


def _joined(tables: Sequence[AnnData], key: str) -> dict[str, Any]:
    return {slide: facts for table in tables for slide, facts in table.uns[key].items()}


def _save(table: AnnData, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.write_h5ad(path)


def check(folder: Path) -> Iterator[Finding]:
    """Every file, read as scanpy does."""
    need("anndata", "anndata")
    yield from over(sorted(folder.rglob("*.h5ad")), CONSUMER, _check_file)


def _check_file(path: Path) -> Iterator[Finding]:
    import anndata

    try:
        table = anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError) as error:
        yield Finding.error(path, CONSUMER, "cannot be read", str(error).splitlines()[0])
        return
    values: NDArray[Any] = np.asarray(table.X)
    spatial = table.obsm.get("spatial")
    if values.ndim != 2 or not np.isfinite(values).all():
        yield Finding.error(path, CONSUMER, "X is not (n, dim) finite numbers", str(values.shape))
    elif spatial is None or spatial.shape != (len(values), 2):
        yield Finding.warning(
            path, CONSUMER, "no place of the patches",
            'obsm["spatial"] (n, 2) is what scanpy and squidpy draw by',
        )  # fmt: skip
    else:
        slides = table.obs["slide"].nunique() if "slide" in table.obs else 1
        yield Finding.good(
            path, CONSUMER, f"{values.shape[0]} x {values.shape[1]}, slides: {slides}"
        )
