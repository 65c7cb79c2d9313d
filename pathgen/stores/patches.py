"""Patches of one slide: pixels, where each came from, and what was measured on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pathgen.config import Config
from pathgen.errors import StoreError
from pathgen.provenance import Provenance
from pathgen.stores.codec import decode_patches
from pathgen.stores.seal import damaged
from pathgen.stores.store import Store, create_table
from pathgen.stores.table import ALL, BYTES, Column, Rows, Table, TableWriter

#: What tiling measures on each patch, float32; see `pathgen.tiling.stain` and `.quality`.
MEASURES = (
    "tissue", "hematoxylin", "hematoxylin_mean", "eosin", "eosin_mean", "focus", "pen", "black",
    "white", "fold",
)  # fmt: skip


#: How the pixels of a patch came about, in its column `made`: the bytes of a tile of the slide as
#: they were; pixels of the slide, encoded; pixels at another scale than the slide has, encoded.
COPIED, NATIVE, RESAMPLED = range(3)


class PatchSpec(Config):
    """What one patch is: `size` pixels a side at `mpp` microns per pixel."""

    size: int = Field(256, ge=1, le=16384)
    """Side in pixels at the target resolution."""
    mpp: float | None = Field(0.5, gt=0)
    """Target microns per pixel; None = level 0 as it is."""
    overlap: int = 0
    """Target pixels that neighbors share; below 0, the gap between them."""

    @model_validator(mode="after")
    def _some_step(self) -> Self:
        if self.overlap >= self.size:
            raise ValueError(f"overlap {self.overlap} leaves no step for patches of {self.size}")
        return self


class PatchRef(NamedTuple):
    """One real patch, wherever it is spoken of: the id of its store and its row there."""

    store: str
    row: int


class SlideFacts(BaseModel):
    """All that a store keeps of a slide's properties: an allow-list, so no patient identifiers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Path below the input folder, without suffix."""
    identity: str
    """Digest of the slide file, by which it is known again."""
    width: int = Field(ge=0)
    height: int = Field(ge=0)
    """Level-0 pixels."""
    bounds: tuple[int, int, int, int] | None = None
    """Scanned part: x, y, width, height in level-0 pixels."""
    vendor: str | None = None
    objective: float | None = None
    """Magnification of the lens, as 20 or 40."""
    mpp_x: float | None = None
    mpp_y: float | None = None
    """Level-0 microns per pixel."""
    mpp_source: str | None = None
    """Where the resolution came from, as ``"file"`` or ``"given"``."""
    suffix: str | None = None
    """Of the slide file, as ``".svs"``: with it other tools find the file again."""
    file: str | None = None
    """Name of the slide file, as ``"S1.svs"``; `name` escapes what is odd in it."""
    level_sizes: tuple[tuple[int, int], ...] | None = None
    """Width and height of each pyramid level."""
    downsamples: tuple[float, ...] | None = None
    """Level-0 pixels per pixel of each level."""

    @field_validator("name", "file", mode="before")
    @classmethod
    def _printable(cls, name: Any) -> Any:
        # A file name that is not UTF-8 comes with lone surrogates, which no text attribute holds.
        if isinstance(name, str):
            return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return name


class PatchStore(Store):
    """The patches of one slide, in the order they were tiled. A `PatchSource` for training.

    Columns: ``image`` (one JPEG or PNG file a row), ``coords`` int64 (x, y) of the top left
    corner in level-0 pixels, ``grid`` int32 (row, column), and a float32 column per measure.
    """

    kind = "patches"
    #: One store is one slide: its patches have no labels of their own.
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()

    def __init__(self, table: Table) -> None:
        super().__init__(table)
        try:
            self.spec = PatchSpec.model_validate(_fields(PatchSpec, table.attrs["spec"]))
            self.slide = SlideFacts.model_validate(_fields(SlideFacts, table.attrs["slide"]))
        except (ValidationError, KeyError, AttributeError) as error:
            raise damaged(table.path, "its spec or slide facts cannot be read") from error

    @classmethod
    def create(
        cls,
        path: Path | str,
        spec: PatchSpec,
        provenance: Provenance,
        *,
        codec: str,
        slide: SlideFacts,
        geometry: Mapping[str, Any],
        label: str | None = None,
        patient: str | None = None,
        measures: Sequence[str] = MEASURES,
        class_names: Sequence[str] | None = None,
    ) -> TableWriter:
        """A writer for ``append(image=[bytes], coords=, grid=, tissue=, ...)``.

        Args:
            path: ends in ``.h5`` or ``.zarr``.
            codec: how `image` is encoded, ``"jpeg"`` or ``"png"``.
            geometry: patch_size_level0 (level-0 pixels, float), read_level, mpp_error (relative),
                level0_mpp (None when the slide has no resolution).
            label, patient: of the slide, when the input list gave them.
            measures: names of the float32 columns.
            class_names: of the column ``classes``, the share of each patch that a class covers;
                None: no mask was given.

        Raises:
            ValueError: `geometry` lacks a key or has an unknown one.
        """
        keys = ("patch_size_level0", "read_level", "mpp_error", "level0_mpp")
        if set(geometry) != set(keys):
            raise ValueError(f"geometry takes {', '.join(keys)}; got {', '.join(geometry)}")
        attrs = {
            "kind": cls.kind,
            "provenance": provenance,
            "spec": spec,
            "codec": codec,
            "slide": slide,
            "patch_size": spec.size,
            "target_mpp": spec.mpp if spec.mpp is not None else geometry["level0_mpp"],
            "overlap": spec.overlap,
            **geometry,
            **_known(label=label, patient=patient),
            **({} if class_names is None else {"class_names": list(class_names)}),
        }
        columns = {
            "image": BYTES,
            "coords": Column("int64", (2,)),
            "grid": Column("int32", (2,)),
            "made": Column("uint8"),
            **{name: Column("float32") for name in measures},
            **({"classes": Column("float32", (len(class_names),))} if class_names else {}),
        }
        return create_table(path, columns, attrs, notes=_notes(attrs, slide.name))

    def selected(self, path: Path | str, provenance: Provenance) -> TableWriter:
        """A writer for some rows of this store: same columns and attributes, other `provenance`.

        Args:
            path: ends as this store's does.
        """
        given = ("format", "format_version", "seal", "provenance")
        attrs = {name: value for name, value in self.attrs.items() if name not in given}
        attrs["provenance"] = provenance
        columns = {name: Column(c.dtype, c.shape) for name, c in self.table.columns.items()}
        return create_table(path, columns, attrs, notes=_notes(attrs, self.slide.name))

    @property
    def name(self) -> str:
        """Name of the slide."""
        return self.slide.name

    @property
    def label(self) -> str | None:
        """Label of the slide, when it was known at tiling."""
        return self.attrs.get("label")

    @property
    def patient(self) -> str | None:
        """Patient of the slide, when it was known at tiling."""
        return self.attrs.get("patient")

    @property
    def patch_size_level0(self) -> float:
        """Side of a patch in level-0 pixels."""
        return float(self.attrs["patch_size_level0"])

    def images(self, rows: Rows = ALL) -> NDArray[np.uint8]:
        """RGB, uint8 (n, size, size, 3), in the order of `rows`.

        Raises:
            StoreError: PG-O11, damaged; the message names the row.
        """
        encoded = self.encoded(rows)
        try:
            return decode_patches(encoded, self.spec.size)
        except StoreError as error:
            raise damaged(self.path, f"{error.what}: {error.why}") from error

    def encoded(self, rows: Rows = ALL) -> list[bytes]:
        """The image files as stored, in the order of `rows`."""
        return self.table.read_bytes("image", rows)

    def coords(self, rows: Rows = ALL) -> NDArray[np.int64]:
        """Top left corners, level-0 (x, y), int64 (n, 2), in the order of `rows`."""
        return self.table.read("coords", rows)

    def grid(self, rows: Rows = ALL) -> NDArray[np.int32]:
        """Place in the grid, (row, column), int32 (n, 2), in the order of `rows`."""
        return self.table.read("grid", rows)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes of the mask that was given at tiling; none without one."""
        return tuple(self.attrs.get("class_names", ()))

    def class_shares(self, rows: Rows = ALL) -> NDArray[np.float32]:
        """Share of each patch that each of `class_names` covers, float32 (n, k), 0..1.

        Classes may overlap, and need not cover a patch.

        Raises:
            StoreError: PG-O17, tiled without a mask.
        """
        if "class_names" in self.attrs and not self.class_names:  # a mask that names no class
            return np.zeros((len(self.table.read("coords", rows)), 0), np.float32)
        return self.table.read("classes", rows)

    @property
    def measures(self) -> tuple[str, ...]:
        """Names that `measure` knows."""
        return tuple(
            name
            for name, column in self.table.columns.items()
            if column.dtype == "float32" and column.shape == ()
        )

    def measure(self, name: str, rows: Rows = ALL) -> NDArray[np.float32]:
        """One number per patch, float32 (n,), such as ``"tissue"``, measured when it was tiled.

        Raises:
            StoreError: PG-O17, this store has no such measure.
        """
        return self.table.read(name, rows)


def _notes(attrs: Mapping[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """Plain attributes of `coords`, for other tools."""
    familiar = ("patch_size", "patch_size_level0", "target_mpp", "level0_mpp", "overlap")
    return {"coords": _known(**{key: attrs.get(key) for key in familiar}, name=name)}


def _fields(cls: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """What this version knows of `values`; a newer minor version may have added some."""
    return {name: value for name, value in values.items() if name in cls.model_fields}


def _known(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
