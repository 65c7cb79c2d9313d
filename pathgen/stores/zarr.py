"""Tables in zarr v3: one folder, one sharded array per array."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec
from zarr.storage import LocalStore

from pathgen.stores.reading import FlatArray, SealedTable
from pathgen.stores.seal import Array, damaged
from pathgen.stores.writing import SealedWriter

#: Most bytes one shard file holds; it is kept in memory and written once.
SHARD = 64 * 1024 * 1024
#: Most chunks in a shard of a column with short rows.
_CHUNKS = 64


class ZarrTable(SealedTable):
    """Reads a zarr store. It keeps no file open between reads."""

    def _read_attrs(self) -> dict[str, Any]:
        return read_attrs(self.path)

    def _open_array(self, name: str) -> FlatArray:
        store = LocalStore(self.path, read_only=True)
        array = zarr.open_array(store, path=name, mode="r", zarr_format=3)
        # To zarr a shard that is not there is a shard of zeros; to us it was lost in a copy.
        unit = (array.shards or array.chunks)[0]
        for shard in range(-(-array.shape[0] // unit)):
            parts = [str(shard)] + ["0"] * (array.ndim - 1)
            if not self.path.joinpath(name, "c", *parts).is_file():
                raise damaged(self.path, f"file {name}/c/{'/'.join(parts)} is missing")
        return array


def read_attrs(path: Path) -> dict[str, Any]:
    """Root attributes, unchecked; {} where there is no zarr v3 group."""
    head = path / "zarr.json"
    if not head.is_file():
        return {}
    attrs = json.loads(head.read_bytes()).get("attributes", {})
    return dict(attrs)


class ZarrWriter(SealedWriter):
    """Writes a zarr store, each shard once."""

    def _start(self, draft: Path, attrs: Mapping[str, Any]) -> None:
        self._group = zarr.create_group(
            LocalStore(draft), zarr_format=3, attributes=dict(attrs), overwrite=False
        )

    def _unit(self, array: Array) -> int:
        chunk_bytes = max(1, array.chunk * array.row_bytes)
        if array.name.endswith("/data"):
            return array.chunk * (SHARD // chunk_bytes)
        return array.chunk * max(1, min(_CHUNKS, SHARD // chunk_bytes))

    def _create_array(
        self, array: Array, chunk: int, unit: int, length: int, notes: Mapping[str, Any]
    ) -> Any:
        return self._group.create_array(
            array.name,
            shape=(length, *array.shape),
            dtype=array.dtype,
            chunks=(chunk, *array.shape),
            shards=(unit, *array.shape),
            filters=None,
            compressors=[Crc32cCodec()],
            fill_value=0,
            attributes={name: notes[name] for name in sorted(notes)},
            # A chunk of zeros is written too: one that is missing is then a lost one.
            config={"write_empty_chunks": True},
        )

    def _write(self, flat: Any, start: int, values: NDArray[Any]) -> None:
        stop = start + len(values)
        if flat.shape[0] != stop:
            flat.resize((stop, *flat.shape[1:]))
        flat[start:stop] = values

    def _finish(self, attrs: Mapping[str, Any]) -> None:
        self._group.attrs.put(dict(attrs))

    def _abandon(self) -> None:
        """Nothing is held open."""

    def _reopen(self, draft: Path) -> ZarrTable:
        return ZarrTable(draft)
