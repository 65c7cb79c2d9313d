"""Copy detection on INRIA Copydays, as the DINO paper (arXiv 2104.14294) measures it.

The layout of its distribution: ``ROOT/original``, ``ROOT/strong``, ``ROOT/jpegqual/N`` and
``ROOT/crops/N``, JPEG files. A strongly changed copy shares the first four characters of its
file's name with its original; for the others, the n-th file belongs to the n-th original.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pathgen.data.sources import SUFFIXES, read_image
from pathgen.errors import DataError, NoInputError
from pathgen.evaluate.natural.images import stretched, to_tensor
from pathgen.evaluate.natural.ranking import Whitening, average_precision, places_without, ranked
from pathgen.models.encoder import Encoder
from pathgen.progress import Progress, Silent

#: Exponent of the generalized mean over patch tokens, and the least value it is taken of.
GEM, LEAST = 4.0, 1e-6
#: Only so many of the ranking count.
RANKED = 20


def evaluate_copies(
    encoder: Encoder,
    root: Path | str,
    *,
    whitening: Path | str | None = None,
    distractors: Path | str | None = None,
    image_size: int = 320,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Mean average precision of each kind of change, among the originals and distractors.

    The published figures are those of ``strong``, with 20,000 images for the whitening and
    10,000 distractors; the vector is the class token beside the generalized mean of the patch
    tokens, twice the encoder's length.

    Args:
        whitening: folder of other images to learn the whitening from; None: no whitening.
        distractors: folder of other images to search among.

    Raises:
        NoInputError: PG-N01, no ``original`` folder there or no images in a folder.
        DataError: PG-D20, files and originals do not pair up; PG-D02, an image cannot be read.
    """
    root, progress = Path(root), progress or Silent()
    originals = images_in(root / "original")
    blocks = {name: images_in(root / name) for name in block_names(root)}
    truth = {name: positives(name, files, originals) for name, files in blocks.items()}

    def features(title: str, files: Sequence[Path]) -> NDArray[np.float64]:
        return copy_features(encoder, files, image_size, batch_size, title, progress)

    database = features("originals", originals)
    if distractors is not None:
        database = np.concatenate([database, features("distractors", images_in(Path(distractors)))])
    queries = {name: features(name, files) for name, files in blocks.items()}
    if whitening is not None:
        learned = Whitening(features("whitening", images_in(Path(whitening))))
        database = learned(database)
        queries = {name: learned(vectors) for name, vectors in queries.items()}
    return {
        "data": root.name,
        "encoder": encoder.id,
        "image_size": image_size,
        "dim": int(database.shape[1]),
        "database": len(database),
        "whitened": whitening is not None,
        "map": {
            name: copy_map(ranked(vectors, database), truth[name])
            for name, vectors in queries.items()
        },
    }


def copy_map(order: NDArray[np.int64], truth: Sequence[Sequence[int]]) -> float:
    """Mean average precision of rankings (queries, database) over their first `RANKED` places."""
    scores = [
        average_precision(places_without(ranking[:RANKED], set(wanted)), len(wanted))
        for ranking, wanted in zip(order, truth, strict=True)
    ]
    return float(np.mean(scores))


def block_names(root: Path) -> list[str]:
    """The kinds of change that are there: strong first, then the numbered ones, rising."""
    names = ["strong"] if (root / "strong").is_dir() else []
    for kind in ("jpegqual", "crops"):
        levels = [p.name for p in (root / kind).glob("*") if p.is_dir() and p.name.isdigit()]
        names += [f"{kind}/{level}" for level in sorted(levels, key=int)]
    if not names:
        raise NoInputError(
            "no changed copies here", where=root, why="strong, jpegqual and crops are absent",
            hint="give the folder with original/ and strong/",
        )  # fmt: skip
    return names


def positives(block: str, files: Sequence[Path], originals: Sequence[Path]) -> list[list[int]]:
    """Numbers of the originals of each file. Raises DataError PG-D20 where there are none."""
    if block == "strong":
        found = [
            [i for i, original in enumerate(originals) if original.name[:4] == file.name[:4]]
            for file in files
        ]
        lost = [file.name for file, wanted in zip(files, found, strict=True) if not wanted]
        if lost:
            raise DataError(
                "changed copies without an original", code="PG-D20", where=lost[0],
                why=f"{len(lost)} of {len(files)} share no first four characters with an original",
            )  # fmt: skip
        return found
    if len(files) != len(originals):
        raise DataError(
            "changed copies and originals do not pair up", code="PG-D20", where=block,
            why=f"{len(files)} copies of {len(originals)} originals",
        )  # fmt: skip
    return [[i] for i in range(len(files))]


def images_in(folder: Path) -> list[Path]:
    """Image files directly in a folder, by name. Raises NoInputError when there are none."""
    files = [p for p in folder.glob("*") if p.is_file() and p.suffix.lower() in SUFFIXES]
    if not files:
        raise NoInputError("no images in this folder", where=folder, hint="check the path")
    return sorted(files)


@torch.inference_mode()
def copy_features(
    encoder: Encoder,
    files: Sequence[Path],
    image_size: int,
    batch_size: int,
    title: str,
    progress: Progress,
) -> NDArray[np.float64]:
    """Class token beside the generalized mean of the patch tokens: (n, 2 dim)."""
    device = next(encoder.parameters()).device
    rows = []
    with progress.task(title, len(files)) as task:
        for first in range(0, len(files), batch_size):
            some = files[first : first + batch_size]
            batch = torch.cat([to_tensor(stretched(read_image(p), image_size)) for p in some])
            seen = encoder.features(batch.to(device))
            pooled = seen.tokens.clamp_min(LEAST).pow(GEM).mean(1).pow(1 / GEM)
            rows.append(torch.cat([seen.vector, pooled], 1).double().cpu().numpy())
            task.advance(len(some))
    return np.concatenate(rows)
