"""Splits as files: the CSV that training reads, and a JSON that says how it was made."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pathgen import commit
from pathgen.datasets.cohort import PARTS
from pathgen.datasets.protocols import Splits
from pathgen.provenance import Provenance

HEADER = ("slide", "split", "part")


def write_splits(path: Path, splits: Splits, cohort_digest: str) -> None:
    """The CSV ``slide,split,part`` and, beside it, the JSON; equal splits give equal bytes."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADER)
    table.writerows(splits.rows())
    commit.write_text(path, text.getvalue())
    commit.write_json(path.with_suffix(".json"), described(splits, cohort_digest))


def described(splits: Splits, cohort_digest: str) -> Mapping[str, Any]:
    """What the JSON holds."""
    protocol = splits.protocol
    provenance = Provenance(
        stage="splits", inputs={"cohort": cohort_digest},
        config={"protocol": protocol.name, "version": protocol.version},
    )  # fmt: skip
    return {
        "provenance": {**provenance.model_dump(), "id": provenance.id},
        "protocol": protocol.name,
        "version": protocol.version,
        "text": protocol.text,
        "target": protocol.target,
        "classes": list(protocol.classes),
        "label_column": protocol.label_column,
        "metrics": list(protocol.metrics),
        "pretraining": protocol.pretraining,
        "splits": [
            {"split": i, "repeat": seed, **{p: len(splits.names(i, p)) for p in PARTS}}
            for i, seed in enumerate(splits.seeds)
        ],
        "left_out": {
            why: sorted(slide for slide, reason in splits.left_out.items() if reason == why)
            for why in sorted(set(splits.left_out.values()))
        },
        "notes": list(splits.notes),
    }
