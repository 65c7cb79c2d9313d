"""Several processes on one output folder share the work: each claims an origin at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from pathgen.claims import Claims
from pathgen.extract.bench import Piece
from pathgen.progress import Task

#: Seconds between two looks at what others have finished, at first and at most.
LOOK_AGAIN = (0.2, 5.0)


def share(
    pieces: Sequence[Piece],
    claims: Claims,
    overwrite: bool,
    run: Callable[[Iterable[int]], Iterator[int]],
    bar: Task,
) -> None:
    """Settle every piece: here, or by the process that has it.

    Args:
        run: settles the pieces whose numbers it asks for, and gives each number when it is done.

    Raises:
        StoreError: PG-O18, another process has just made a store with other settings.
    """
    mine = [i for i, piece in enumerate(pieces) if not piece.is_settled]
    theirs: set[int] = set()
    pause = LOOK_AGAIN[0]
    while mine or theirs:
        for number in run(_claimed(pieces, mine, theirs, claims, overwrite, bar)):
            claims.note(pieces[number].origin.name, pieces[number].note())
            claims.release(pieces[number].origin.name)
        mine = []
        for number in sorted(theirs):
            piece = pieces[number]
            if _settled(piece, claims, overwrite):
                theirs.remove(number)
                bar.advance(piece.origin.weight, note=piece.origin.name)
            elif not claims.held(piece.origin.name):  # who had it is gone
                theirs.remove(number)
                mine.append(number)
        if theirs and not mine:
            bar.advance(0, note=f"waiting for others: {len(theirs)}")
            time.sleep(pause)
            pause = min(pause * 1.5, LOOK_AGAIN[1])


def _claimed(
    pieces: Sequence[Piece],
    numbers: Sequence[int],
    theirs: set[int],
    claims: Claims,
    overwrite: bool,
    bar: Task,
) -> Iterator[int]:
    """Those that are this process's to do, claimed as they are asked for."""
    for number in numbers:
        piece = pieces[number]
        if not claims.take(piece.origin.name):
            theirs.add(number)
        elif _settled(piece, claims, overwrite):
            claims.release(piece.origin.name)
            bar.advance(piece.origin.weight, note=piece.origin.name)
        else:
            yield number


def _settled(piece: Piece, claims: Claims, overwrite: bool) -> bool:
    """Whether another process has finished it since this one began."""
    noted = claims.noted(piece.origin.name)
    if noted is not None:
        piece.take_note(noted)
    elif not overwrite:
        for output in piece.outputs:
            with suppress(OSError):  # NFS remembers what was not there until its folder is opened
                os.close(os.open(output.path.parent, os.O_RDONLY))
        piece.look(overwrite=False)
    return piece.is_settled
