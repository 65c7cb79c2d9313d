"""Several processes on one output folder: who works on which slide, and how it ended.

How claims work is in `pathgen.claims`; a slide that ended without a store has its ledger row there.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pathgen import claims
from pathgen.claims import FOLDER, NAMELESS, STALE
from pathgen.tiling.ledger import LedgerRow

__all__ = ["FOLDER", "NAMELESS", "STALE", "Claims", "join"]


@dataclass(frozen=True)
class Claims(claims.Claims):
    """One process's part in a shared output folder; its workers get a copy."""

    def tell(self, slide: str, row: LedgerRow) -> None:
        """Let the others know of a slide that ended without a store."""
        self.note(slide, asdict(row))

    def told(self, slide: str) -> LedgerRow | None:
        """The row that this run gave a slide without a store; those of earlier runs are void."""
        values = self.noted(slide)
        return None if values is None else LedgerRow(**values)


def join(
    out: Path, settings: Mapping[str, Any], *, alone: bool = False
) -> AbstractContextManager[Claims]:
    """Take part in the work on `out`; see `pathgen.claims.join`."""
    return claims.join(out, settings, alone=alone, kind=Claims)
