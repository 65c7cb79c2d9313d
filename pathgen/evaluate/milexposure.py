"""Whether the encoder saw, in its own training, the slides that its features are tested on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pathgen.data.bags import BagReport
from pathgen.encoders.loading import STAGES, load_encoder
from pathgen.errors import DataError
from pathgen.runs import Run


class Exposure(NamedTuple):
    """How many of the tested slides the encoder was pretrained on; None: that is not known."""

    tested: int
    seen: int | None

    def __str__(self) -> str:
        if self.seen is None:
            return (
                "whether the encoder was pretrained on the tested slides is unknown: "
                "--encoder-run, where there is one, can tell"
            )
        if not self.seen:
            return f"inductive: of {self.tested:,} tested slides the encoder was pretrained on none"
        return (
            f"transductive: of {self.tested:,} tested slides the encoder was pretrained, without "
            f"labels, on {self.seen:,}"
        )


def exposure(tested: Sequence[str], report: BagReport, encoder_run: Path | None = None) -> Exposure:
    """What the encoder's pretraining run says of the slides that are tested.

    A slide counts as seen when the run was given its patches, or a slide of its name.

    Raises:
        DataError: PG-D06, the features are not of this run's encoder.
        RunError: PG-T04, there is no finished encoder.
    """
    if encoder_run is None:
        return Exposure(len(tested), None)
    encoder = load_encoder(encoder_run, device="cpu")
    if encoder.id != report.encoder:
        raise DataError(
            "features are not of this encoder", code="PG-D06", where=encoder_run,
            why=f"theirs is {report.encoder}, the run's {encoder.id}",
            hint="give the run that the features were extracted with",
        )  # fmt: skip
    given = _patches(encoder_run)
    names = set(given)
    ids = set(given.values())
    seen = [name for name in tested if name in names or report.sources.get(name) in ids]
    return Exposure(len(tested), len(seen))


def _patches(folder: Path) -> Mapping[str, str]:
    """Name -> id of the patches a pretraining run was given."""
    places = [folder / stage for stage in STAGES if (folder / stage / "model").is_dir()]
    inputs = Run.open(next(iter(places), folder)).provenance.inputs
    found = {}
    for role, value in inputs.items():
        if (named := re.fullmatch(r"\d{5} (.+)", role)) is not None:
            found[named[1]] = value
    return found
