"""The stores to make of each origin, and those that are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pathgen.errors import DataError, PathgenError
from pathgen.extract.encoding import Encoding, folder_names
from pathgen.extract.items import Block, Feed
from pathgen.extract.origins import Origin, Stored, Unread
from pathgen.extract.outputs import Material, Output, Writing, row_of
from pathgen.progress import Task
from pathgen.tiling.ledger import LedgerRow


@dataclass
class Piece:
    """One origin: a store by each encoder, and the rows of those that are settled."""

    origin: Origin
    outputs: Sequence[Output]
    rows: dict[int, LedgerRow] = field(default_factory=dict)
    errors: list[PathgenError] = field(default_factory=list)

    @property
    def is_settled(self) -> bool:
        return len(self.rows) == len(self.outputs)

    @property
    def left(self) -> list[int]:
        """Numbers of the outputs that are to be made."""
        return [i for i in range(len(self.outputs)) if i not in self.rows]

    def fail(self, error: PathgenError) -> None:
        """The end of all that is left."""
        for i in self.left:
            self.rows[i] = self.origin.failed(error)
        self.errors.append(error)

    def look(self, overwrite: bool) -> None:
        """Settle what an earlier run finished.

        Raises:
            StoreError: PG-O18, a store with other settings is there and not to be replaced;
                PG-O16 and others, something else is in its place.
        """
        for i in self.left:
            store = self.outputs[i].found()
            if store is None:
                continue
            with store:
                if overwrite:
                    continue
                try:
                    material = self.origin.material(store)
                except PathgenError as error:
                    row = self.origin.failed(error)
                    kept = f"{row.message} The store of an earlier run was kept."
                    self.rows[i] = replace(row, message=kept)
                    self.errors.append(error)
                    continue
                asked = self.outputs[i].provenance(material)
                whole = not isinstance(self.origin, Stored) or len(store) == self.origin.weight
                if store.id != asked.id or not whole:
                    raise self.outputs[i].refuse(store.provenance, asked)
                self.rows[i] = row_of(self.outputs[i], store, self.origin.name, self.origin.file)
        if isinstance(self.origin, Unread) and self.left:
            self.fail(self.origin.error)

    def note(self) -> dict[str, Any]:
        """JSON-ready, for other processes."""
        return {str(i): asdict(row) for i, row in self.rows.items()}

    def take_note(self, rows: Mapping[str, Any]) -> None:
        """Settled by another process."""
        self.rows = {int(i): LedgerRow(**values) for i, values in rows.items()}
        for row in self.rows.values():
            if row.state == "failed":
                self.errors.append(failure_of(row))


def failure_of(row: LedgerRow) -> DataError:
    """The error of a row that another process made."""
    return DataError("no features were made", code=row.reason, where=row.slide, why=row.message)


class Bench:
    """The encoders, each with its folder below `out`: `out` itself when there is one."""

    def __init__(self, encodings: Sequence[Encoding], out: Path) -> None:
        self.encodings = encodings
        names = folder_names([one.facts for one in encodings])
        self.folders = [out] if len(names) == 1 else [out / name for name in names]

    def piece(self, origin: Origin) -> Piece:
        """Raises DataError (PG-D11): its name leads out of the folder."""
        pairs = zip(self.folders, self.encodings, strict=True)
        outputs = [Output(origin.name, folder, one) for folder, one in pairs]
        if not isinstance(origin, Unread):
            for output in outputs:
                output.check()
        return Piece(origin, outputs)

    @property
    def heads(self) -> list[tuple[str, int, Path]]:
        """Name, length of a vector and folder of each encoder."""
        names = [folder.name for folder in self.folders]
        if len(names) == 1:
            names = [str(self.encodings[0].facts["name"])]
        dims = [one.encoder.dim for one in self.encodings]
        return list(zip(names, dims, self.folders, strict=True))

    @property
    def on_gpu(self) -> bool:
        """Whether pixels go to a CUDA device."""
        return any(getattr(one.device, "type", "") == "cuda" for one in self.encodings)


class _Desk:
    """The stores of one piece that are being written."""

    def __init__(self, piece: Piece, material: Material) -> None:
        self.piece = piece
        self.writings: dict[int, Writing] = {}
        try:
            for i in piece.left:
                self.writings[i] = Writing(piece.outputs[i], material)
        except BaseException:
            self.drop()
            raise

    def take(self, block: Block) -> None:
        """Encode patches by every encoder. One that fails is given up, the others go on."""
        for i, writing in list(self.writings.items()):
            try:
                features = writing.output.encoding.encode(block.images)
            except DataError as error:
                self.writings.pop(i).drop()
                self.piece.rows[i] = self.piece.origin.failed(error)
                self.piece.errors.append(error)
            else:
                writing.append(features, coords=block.coords, grid=block.grid, label=block.label)

    def finish(self, row: LedgerRow) -> None:
        for i in list(self.writings):
            self.piece.rows[i] = self.writings[i].finish(row)
            del self.writings[i]

    def drop(self) -> None:
        while self.writings:
            self.writings.popitem()[1].drop()


def work(feed: Feed, pieces: Sequence[Piece], bar: Task) -> Iterator[int]:
    """Encode what the feed gives and write it; the numbers of the pieces, as they are settled.

    Raises:
        StorageError: the disk is full, or the like; what is not finished leaves nothing.
        ConfigError: PG-C05, a batch does not fit the device.
    """
    desks: dict[int, _Desk] = {}
    done: dict[int, int] = {}
    try:
        for number, item in feed:
            piece = pieces[number]
            by_patch = isinstance(piece.origin, Stored)
            if isinstance(item, Material):
                if number in desks:  # its drive was away: from the beginning
                    desks.pop(number).drop()
                done[number] = 0
                desks[number] = _Desk(piece, item)
            elif isinstance(item, Block):
                desks[number].take(item)
                done[number] = done.get(number, 0) + len(item.label)
                note = f"{piece.origin.name}: {done[number]:,} patches"
                bar.advance(len(item.label) if by_patch else 0, note=note)
            else:
                desk = desks.pop(number, None)
                if isinstance(item, PathgenError):
                    if desk is not None:
                        desk.drop()
                    piece.fail(item)
                elif desk is None:  # a slide that was not opened
                    piece.rows |= dict.fromkeys(piece.left, replace(item, store=None))
                else:
                    desk.finish(item)
                failed = any(row.state == "failed" for row in piece.rows.values())
                bar.advance(
                    piece.origin.weight - (done.get(number, 0) if by_patch else 0),
                    note=piece.origin.name + (": failed" if failed else ""),
                )
                yield number
    finally:
        for desk in desks.values():
            desk.drop()
