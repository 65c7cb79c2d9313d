"""Where published weights are: in a folder of this machine, or on the hub."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pathgen.encoders.zoo import Origin
from pathgen.errors import MissingExtraError, RunError

#: What weights are called on the hub, best first.
FILES = ("model.safetensors", "pytorch_model.bin")
#: Suffixes of a file that is given itself.
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".torch")
#: The variable that the hub's client reads a token from.
TOKEN = "HF_TOKEN"


def find_weights(origin: Origin, weights: Path | None = None) -> Path:
    """The file with the weights of an encoder.

    Args:
        origin: where they are published.
        weights: a folder with a folder an encoder (by short name, or as the hub or its cache name
            it), the folder of this encoder, or its file; the hub is then not asked.

    Raises:
        MissingExtraError: PG-E02, they are not there or cannot be fetched; PG-E06, access to them
            has to be asked for.
    """
    if weights is not None and weights.is_file() and weights.suffix in SUFFIXES:
        return weights
    return find_file(origin, (*origin.files, *FILES), weights)


def find_file(origin: Origin, names: Sequence[str], weights: Path | None = None) -> Path:
    """The first of `names` that the encoder's folder, or its repository on the hub, has.

    Raises MissingExtraError as `find_weights` does.
    """
    if weights is None:
        return _from_hub(origin, names)
    for folder in _folders(origin, weights):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise MissingExtraError(
        f"no weights of {origin.name} here", code="PG-E02", where=weights,
        why=f"neither it nor {origin.name}/ in it holds {' or '.join(names)}"
        if weights.is_dir() else "there is no such folder",
        hint=offline(origin),
    )  # fmt: skip


def read_weights(path: Path) -> Mapping[str, Any]:
    """The tensors of a file, on the CPU. Nothing in it is executed.

    Raises RunError (PG-T04) where it cannot be read.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise RunError(
            "weights cannot be read", where=path, why=_first(error),
            hint="fetch the file again; only tensors are read, never code",
        ) from error  # fmt: skip
    if not isinstance(found, Mapping):
        raise RunError(
            "weights cannot be read", where=path, why=f"it holds a {type(found).__name__}",
            hint="a file of tensors by name is needed",
        )  # fmt: skip
    return found


def _folders(origin: Origin, weights: Path) -> Iterator[Path]:
    """Where in `weights` the files of an encoder may be, the surest first."""
    owner, _, repo = origin.hub.partition("/")
    for name in (origin.name, *origin.aliases, repo, f"{owner}/{repo}", f"{owner}--{repo}"):
        yield weights / name
    cached = f"models--{owner}--{repo}"
    for place in (weights / cached, weights / "hub" / cached, weights):
        snapshots, main = place / "snapshots", place / "refs" / "main"
        if main.is_file():
            yield snapshots / main.read_text(encoding="utf-8").strip()
        if snapshots.is_dir():
            yield from sorted(path for path in snapshots.iterdir() if path.is_dir())
    yield weights


def _from_hub(origin: Origin, names: Sequence[str]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    problem: Exception | None = None
    for name in names:
        try:
            return Path(hf_hub_download(origin.hub, name, local_files_only=problem is not None))
        except (OSError, EntryNotFoundError, HFValidationError) as error:
            # One that may not be seen answers as if it were not there.
            if isinstance(error, RepositoryNotFoundError) or _status(error) in (401, 403):
                raise _closed(origin, error) from error
            # Without a connection another name may still be in the cache; to ask the hub again
            # would only wait as long again.
            if isinstance(error, LocalEntryNotFoundError) or not isinstance(
                error, EntryNotFoundError
            ):
                problem = problem or error
    raise MissingExtraError(
        "published weights cannot be fetched", code="PG-E02", where=origin.hub,
        why=_first(problem) if problem else f"it has no {' or '.join(names)}",
        hint=f"{origin.terms}. {_login() if origin.gated else ''}Connect to the internet once. "
        f"{offline(origin)}",
    ) from problem  # fmt: skip


def _closed(origin: Origin, error: Exception) -> MissingExtraError:
    return MissingExtraError(
        f"the hub does not give the weights of {origin.name}", code="PG-E06", where=origin.hub,
        why=f"access has to be asked for, or there is no such repository; it said: {_first(error)}",
        hint=f"{origin.terms}. {_login()}{offline(origin)}",
    )  # fmt: skip


def offline(origin: Origin) -> str:
    """How a machine without the hub gets an encoder, in a sentence."""
    name = origin.files[0] if origin.files else " or ".join(FILES)
    return (
        f"On a machine without the hub, put {name} of https://huggingface.co/{origin.hub} into "
        f"DIR/{origin.name}/ and give --weights DIR"
    )


def _login() -> str:
    return (
        "Accept it there, make a token in your account's settings, and set "
        f"{TOKEN} to it (or run `hf auth login`). "
    )


def _status(error: BaseException) -> int | None:
    """What the hub answered, where the client's error, or the one behind it, knows."""
    for one in (error, error.__cause__):
        found = getattr(getattr(one, "response", None), "status_code", None)
        if found is not None:
            return int(found)
    return None


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
