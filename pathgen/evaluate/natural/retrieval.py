"""Image retrieval on the revisited Oxford and Paris buildings (Radenovic et al. 2018).

The layout of their distribution: ``ROOT/gnd_roxford5k.pkl`` (or ``gnd_rparis6k.pkl``) and
``ROOT/jpg/NAME.jpg``. The protocol is that of the DINO paper (arXiv 2104.14294): class token,
whole query images, longer side at most `image_size`, one scale or three.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pathgen.data.sources import read_image
from pathgen.errors import DataError, NoInputError
from pathgen.evaluate.natural.images import longest_side, to_tensor, trimmed
from pathgen.evaluate.natural.ranking import average_precision, places_without, ranked
from pathgen.models.encoder import Encoder
from pathgen.progress import Progress, Silent

#: Of the whole image, as multi-scale features take it.
SCALES = (1.0, 0.5**0.5, 0.5)


class Query(NamedTuple):
    """Numbers of database images, by how they show what a query shows."""

    easy: frozenset[int]
    hard: frozenset[int]
    junk: frozenset[int]


class Buildings(NamedTuple):
    """A revisited data set: names without suffix, and the truth of each query."""

    root: Path
    database: list[str]
    queries: list[str]
    truth: list[Query]


def read_buildings(root: Path | str) -> Buildings:
    """The data set in `root`.

    Raises:
        NoInputError: PG-N01, no ``gnd_*.pkl`` there. DataError: PG-D20, it cannot be understood,
        or it holds more than lists, numbers and names (nothing in it is executed).
    """
    root = Path(root)
    files = sorted(root.glob("gnd_*.pkl"))
    if len(files) != 1:
        raise NoInputError(
            "no revisited Oxford or Paris data here", where=root,
            why=f"{len(files)} files are called gnd_*.pkl",
            hint="give the folder with gnd_roxford5k.pkl or gnd_rparis6k.pkl, and jpg/",
        )  # fmt: skip
    try:
        with files[0].open("rb") as file:
            table = _PlainUnpickler(file).load()
        truth = [
            Query(*(frozenset(int(i) for i in entry[kind]) for kind in Query._fields))
            for entry in table["gnd"]
        ]
        database, queries = [str(n) for n in table["imlist"]], [str(n) for n in table["qimlist"]]
    except (pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            "the truth of a retrieval data set cannot be understood", code="PG-D20",
            where=files[0], why=f"{type(error).__name__}: {error}",
            hint="use the file as it is distributed",
        ) from error  # fmt: skip
    if len(truth) != len(queries):
        raise DataError(
            "the truth of a retrieval data set does not fit its queries", code="PG-D20",
            where=files[0], why=f"{len(truth)} entries for {len(queries)} queries",
        )  # fmt: skip
    return Buildings(root, database, queries, truth)


#: All that the file may name besides plain values: what numpy arrays are rebuilt with.
_NUMPY = frozenset(
    (module, name)
    for package in ("numpy.core", "numpy._core")
    for module, name in (
        (f"{package}.multiarray", "_reconstruct"),
        (f"{package}.multiarray", "scalar"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
    )
)


class _PlainUnpickler(pickle.Unpickler):
    """Numpy arrays and plain values, nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NUMPY:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}")
        return super().find_class(module, name)


def evaluate_retrieval(
    encoder: Encoder,
    root: Path | str,
    *,
    image_size: int = 224,
    multiscale: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Mean average precision, Medium and Hard, on the data set in `root`.

    The published settings are `image_size` 224 and one scale for Oxford, 512 and three scales for
    Paris. Medium looks for easy and hard images; Hard for hard ones, with easy ones ignored.
    Junk is ignored in both, and so are queries with nothing to find.

    Raises:
        NoInputError, DataError: see `read_buildings`; PG-D02, an image cannot be read.
    """
    data = read_buildings(root)
    progress = progress or Silent()
    embed = _multiscale(encoder) if multiscale else encoder
    vectors = {
        role: _features(embed, encoder, data.root, names, image_size, role, progress)
        for role, names in (("database", data.database), ("queries", data.queries))
    }
    return {
        "data": data.root.name,
        "encoder": encoder.id,
        "image_size": image_size,
        "scales": len(SCALES) if multiscale else 1,
        **retrieval_scores(ranked(vectors["queries"], vectors["database"]), data.truth),
    }


def retrieval_scores(order: NDArray[np.int64], truth: Sequence[Query]) -> dict[str, Any]:
    """Medium and Hard mAP of rankings (queries, database), with the number of queries judged."""
    medium: list[float] = []
    hard: list[float] = []
    for ranking, query in zip(order, truth, strict=True):
        for scores, wanted, ignored in (
            (medium, query.easy | query.hard, query.junk),
            (hard, query.hard, query.junk | query.easy),
        ):
            if wanted:
                places = places_without(ranking, wanted, ignored)
                scores.append(average_precision(places, len(wanted)))
    return {
        "map_medium": float(np.mean(medium)) if medium else None,
        "map_hard": float(np.mean(hard)) if hard else None,
        "queries_medium": len(medium),
        "queries_hard": len(hard),
    }


def _features(
    embed: Callable[[Tensor], Tensor],
    encoder: Encoder,
    root: Path,
    names: Sequence[str],
    image_size: int,
    title: str,
    progress: Progress,
) -> NDArray[np.float32]:
    """(n, dim), one image at a time: their shapes differ."""

    def rows() -> Iterator[NDArray[np.float32]]:
        device = next(encoder.parameters()).device
        with progress.task(title, len(names)) as task:
            for name in names:
                image = longest_side(read_image(root / "jpg" / f"{name}.jpg"), image_size)
                pixels = to_tensor(image).to(device)
                yield embed(trimmed(pixels, encoder.patch_size))[0].float().cpu().numpy()
                task.advance()

    with torch.inference_mode():
        return np.stack(list(rows()))


def _multiscale(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """Mean of the features at three scales of one image."""

    def embed(images: Tensor) -> Tensor:
        total: Tensor = encoder(images)
        for scale in SCALES[1:]:
            smaller = F.interpolate(images, scale_factor=scale, mode="bilinear")
            total = total + encoder(trimmed(smaller, encoder.patch_size))
        return total / len(SCALES)

    return embed
