"""Patches through an encoder into feature stores, one store per source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pathgen import commit
from pathgen.config import Config
from pathgen.data.loading import Steps, stream
from pathgen.data.sources import PatchSource, classes_of, labels_of, opened
from pathgen.errors import (
    ConfigError,
    DataError,
    MissingExtraError,
    NoInputError,
    RunError,
    StoreError,
)
from pathgen.progress import Progress, Silent
from pathgen.provenance import Provenance
from pathgen.stores.features import FeatureStore
from pathgen.stores.patches import PatchStore
from pathgen.stores.table import TableWriter

if TYPE_CHECKING:
    from pathgen.models.encoder import Encoder

#: Facts of a patch store that its feature store repeats.
FACTS = (
    "label", "patient", "patch_size", "patch_size_level0", "target_mpp", "level0_mpp", "overlap",
    "slide",
)  # fmt: skip
#: Below a pretraining run, best first.
STAGES = ("gen-dino", "dino")


class ExtractConfig(Config):
    """How to run the encoder. Only `dtype` changes what is stored."""

    batch_size: int = Field(default=256, ge=1)
    workers: int = Field(default=0, ge=0)
    """processes that read and decode patches; 0 reads in this one"""
    device: str = "auto"
    """of the encoder that `load_encoder` makes; an encoder passed in stays where it is"""
    dtype: Literal["float32", "float16"] = "float32"


class PatchEncoder(Protocol):
    """All that extraction asks of an encoder; `models.Encoder` has it, and so can yours."""

    @property
    def dim(self) -> int: ...
    @property
    def id(self) -> str:
        """Equal ids, equal vectors: a digest of the weights, say."""
        ...

    def encode(self, patches: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """(n, H, W, 3) uint8 -> (n, dim)."""
        ...


def extract_features(
    encoder: PatchEncoder,
    patches: PatchSource | Path | str | Sequence[PatchSource | Path | str],
    out: Path | str,
    config: ExtractConfig | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """One vector per patch, in the order of the patches: ``out/<source name>.h5`` each.

    A finished store of the same patches, encoder and type is kept, so that a broken-off run
    goes on with the next source. A patch store without patches gives a store without features.

    Args:
        encoder: from `load_encoder`, or anything with `dim`, `id` and `encode`.
        patches: patch stores or image folders, opened or as paths.
        out: folder for the stores.

    Raises:
        NoInputError: no sources. DataError: two sources of one name (PG-D05), or the encoder
        gives vectors of another length or with nan or infinity (PG-D06).
        StoreError: PG-O18, another store has the name of an output.
    """
    config, progress, out = config or ExtractConfig(), progress or Silent(), Path(out)
    sources = opened(patches)
    if not sources:
        raise NoInputError("no patches to encode", hint="name patch stores or an image folder")
    facts = encoder_facts(encoder)
    outputs = [_Output(source, out, facts, config) for source in sources]
    _distinct(outputs)
    with ExitStack() as stack:
        # What is finished is only read, which several processes may do at a time.
        if overwrite or not all(output.is_done() for output in outputs):
            commit.writable_folder(out)
            stack.enter_context(commit.lock(out))
            commit.sweep(out)
        _extract(encoder, outputs, config, overwrite, progress)
    return [output.path for output in outputs]


def _extract(
    encoder: PatchEncoder,
    outputs: Sequence[_Output],
    config: ExtractConfig,
    overwrite: bool,
    progress: Progress,
) -> None:
    todo = [output for output in outputs if overwrite or not output.is_done()]
    parts = [part for output in todo for part in output.parts(config.batch_size)]
    batches = stream(_Batches(parts), workers=config.workers, start_step=0, steps=len(parts))
    total = sum(map(len, outputs))
    with progress.task("features", total, total - sum(len(output) for output in todo)) as task:
        for output in todo:
            with output.writer(encoder.dim, config.dtype) as writer:
                for part in output.parts(config.batch_size):
                    features = _encode(encoder, next(batches), part.source)
                    writer.append(
                        features=features.astype(config.dtype),
                        coords=_coords(part.source, part.rows),
                        label=labels_of(part.source)[part.rows].astype(np.int32),
                    )
                    task.advance(len(features), note=part.source.name)


def load_encoder(spec: str | Path, device: str = "auto") -> Encoder:
    """An encoder by where it is: a run, a stage, a model folder, or ``timm:NAME``.

    Args:
        spec: a folder of `pathgen pretrain` (its Gen-DINO encoder, else its DINO encoder), one
            stage of it, a model folder such as ``runs/x/dino/initial``, or ``timm:NAME`` with
            ``timm:NAME,random`` for untrained weights.
        device: ``"auto"`` takes a GPU when there is one.

    Raises:
        RunError: PG-T04, no finished encoder there. ConfigError: PG-C04, timm has no such model.
        MissingExtraError: PG-E02, published weights cannot be fetched.
    """
    from pathgen.models.encoder import Encoder
    from pathgen.runs import load_model
    from pathgen.train.engine import find_device

    name = str(spec)
    if name.startswith("timm:"):
        encoder = _timm_encoder(name.removeprefix("timm:"))
    else:
        encoder = load_model(_encoder_folder(Path(spec)), Encoder)
    return encoder.to(find_device(device)).eval()


def encoder_facts(encoder: PatchEncoder) -> dict[str, Any]:
    """name, id and dim, and the config when there is one: what a feature store says of it.

    The id is that of the weights; the config beside it tells apart equal weights that are run
    at another image size.
    """
    config: Any = getattr(encoder, "config", None)
    values = config.model_dump(mode="json") if hasattr(config, "model_dump") else {}
    name = values.get("name") or type(encoder).__name__
    facts: dict[str, Any] = {"name": name, "id": encoder.id, "dim": encoder.dim}
    return {**facts, "config": values} if values else facts


class _Part(NamedTuple):
    """Patches that are encoded together."""

    source: PatchSource
    rows: NDArray[np.int64]


class _Output:
    """The feature store of one source: where it lies and what must stand in it."""

    def __init__(
        self, source: PatchSource, out: Path, facts: Mapping[str, Any], config: ExtractConfig
    ) -> None:
        self.source, self.facts = source, facts
        self.path = out / f"{source.name}.h5"
        if not self.path.resolve().is_relative_to(out.resolve()):
            raise DataError(
                "name of the patches leads out of the output folder", code="PG-D11",
                where=source.name, hint="do not use stores from a source you do not trust",
            )  # fmt: skip
        self.provenance = Provenance(
            stage="extract",
            config={"dtype": config.dtype, "encoder": facts.get("config", facts["name"])},
            inputs={"patches": source.id, "encoder": facts["id"]},
        )

    def __len__(self) -> int:
        return len(self.source)

    def parts(self, batch_size: int) -> list[_Part]:
        """The rows, batch by batch; none for an empty store."""
        rows = np.arange(len(self), dtype=np.int64)
        return [
            _Part(self.source, rows[start : start + batch_size])
            for start in range(0, len(rows), batch_size)
        ]

    def is_done(self) -> bool:
        """Whether the store is there. Raises StoreError (PG-O18) when it is another one."""
        if not self.path.exists():
            return False
        with FeatureStore.open(self.path) as store:
            if store.id == self.provenance.id and len(store) == len(self):
                return True
            found = store.provenance
        raise StoreError(
            "another feature store has this name",
            code="PG-O18",
            where=self.path,
            why=_difference(found, self.provenance),
            hint="choose another --out, or --overwrite",
        )

    def writer(self, dim: int, dtype: str) -> TableWriter:
        source: dict[str, Any] = {"id": self.source.id, "name": self.source.name}
        attrs = getattr(self.source, "attrs", {})
        source |= {name: attrs[name] for name in FACTS if attrs.get(name) is not None}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FeatureStore.create(
            self.path,
            dim,
            self.provenance,
            encoder=self.facts,
            source=source,
            classes=classes_of(self.source),
            dtype=dtype,
        )


class _Batches(Steps[list[NDArray[np.uint8]]]):
    """Step i is the images of part i."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.parts = parts

    def batch(self, step: int) -> list[NDArray[np.uint8]]:
        source, rows = self.parts[step]
        return list(source.images(rows))


def _encode(
    encoder: PatchEncoder, images: Sequence[NDArray[np.uint8]], source: PatchSource
) -> NDArray[np.float32]:
    """(n, dim). Images of one size go through together. Raises DataError (PG-D06)."""
    features = np.empty((len(images), encoder.dim), np.float32)
    for shape in sorted({image.shape for image in images}):
        rows = [i for i, image in enumerate(images) if image.shape == shape]
        found = encoder.encode(np.stack([images[i] for i in rows]))
        if found.shape != (len(rows), encoder.dim):
            raise DataError(
                "encoder gives vectors of another shape", code="PG-D06", where=source.path,
                why=f"{found.shape} where {(len(rows), encoder.dim)} was due",
            )  # fmt: skip
        features[rows] = found
    if not np.isfinite(features).all():
        raise DataError(
            "encoder gives values that are not finite", code="PG-D06", where=source.path,
            hint="check the weights of the encoder",
        )  # fmt: skip
    return features


def _coords(source: PatchSource, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Level-0 (x, y), or (-1, -1) for image files, which have no place."""
    if isinstance(source, PatchStore):
        return source.coords(rows)
    return np.full((len(rows), 2), -1, np.int64)


def _distinct(outputs: Sequence[_Output]) -> None:
    seen: dict[Path, _Output] = {}
    for output in outputs:
        other = seen.setdefault(output.path, output)
        if other is not output:
            raise DataError(
                "two sources have one name",
                code="PG-D05",
                where=output.source.name,
                why=f"{other.source.path} and {output.source.path}",
                hint="extract them into different folders",
            )


def _difference(found: Provenance, asked: Provenance) -> str:
    """The first thing that differs, in words."""
    for what, old, new in (
        ("stage", found.stage, asked.stage),
        ("patches", found.inputs.get("patches"), asked.inputs["patches"]),
        ("encoder", found.inputs.get("encoder"), asked.inputs["encoder"]),
        ("dtype", found.config.get("dtype"), asked.config["dtype"]),
        ("encoder settings", found.config.get("encoder"), asked.config["encoder"]),
    ):
        if old != new:
            return f"{what}: it has {old}, asked for {new}"
    return f"it was made by pathgen {found.pathgen_version} in another way"


def _encoder_folder(path: Path) -> Path:
    """Of a run, the best finished stage; else the folder itself, a stage or a model."""
    if not path.exists():
        raise RunError(
            "no encoder here", where=path, why="there is no such folder",
            hint="give a run, a stage or model folder, or timm:NAME",
        )  # fmt: skip
    stages = [path / stage for stage in STAGES]
    finished = (stage for stage in stages if (stage / "model" / "config.json").is_file())
    return next(finished, path)


def _timm_encoder(spec: str) -> Encoder:
    from pathgen.models.encoder import Encoder

    name, _, option = spec.partition(",")
    if option not in ("", "pretrained", "random"):
        raise ConfigError(
            "encoder is not understood", where=f"timm:{spec}",
            hint="write timm:NAME, or timm:NAME,random for untrained weights",
        )  # fmt: skip
    try:
        return Encoder.from_timm(name, pretrained=option != "random")
    except (OSError, RuntimeError) as error:
        # The hub's failures to connect are OSErrors; timm adds RuntimeError without weights.
        raise MissingExtraError(
            "published weights cannot be fetched", code="PG-E02", where=f"timm:{name}",
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            hint="connect to the internet once, use a run's encoder, or write timm:NAME,random",
        ) from error  # fmt: skip
