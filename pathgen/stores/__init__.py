"""Tables of patches, features, latents and self-augmentations. h5py and zarr load on first use."""

from __future__ import annotations

from pathgen.stores.augmentations import Recipe, SelfAugmentationStore, recipe_columns
from pathgen.stores.codec import decode_patch, encode_patch
from pathgen.stores.features import FeatureStore
from pathgen.stores.latents import LatentStore
from pathgen.stores.patches import MEASURES, PatchRef, PatchSpec, PatchStore, SlideFacts
from pathgen.stores.store import (
    FORMAT,
    FORMAT_VERSION,
    Store,
    create_table,
    find_stores,
    open_store,
    open_table,
)
from pathgen.stores.table import ALL, BYTES, Column, Table, TableWriter

__all__ = [
    "ALL",
    "BYTES",
    "FORMAT",
    "FORMAT_VERSION",
    "MEASURES",
    "Column",
    "FeatureStore",
    "LatentStore",
    "PatchRef",
    "PatchSpec",
    "PatchStore",
    "Recipe",
    "SelfAugmentationStore",
    "SlideFacts",
    "Store",
    "Table",
    "TableWriter",
    "create_table",
    "decode_patch",
    "encode_patch",
    "find_stores",
    "open_store",
    "open_table",
    "recipe_columns",
]
