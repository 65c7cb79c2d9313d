"""What a checkpoint is made of: weights as safetensors, plain values, and a seal over the bytes.

pair.safetensors  loss.safetensors     parts that are tensors by name: networks, averages
state.pt                               the others, the step and the random states
COMPLETE                               length and digest of every file, written last
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pathgen.commit import storage_error
from pathgen.errors import RunError

SEAL, STATE = "COMPLETE", "state.pt"


def write_checkpoint(folder: Path, step: int, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the states of `parts` after `step` steps into `folder`, which is there and empty.

    Raises StorageError when the disk is full.
    """
    import torch

    plain = {}
    for name, state in parts.items():
        if _is_flat(state):
            _save_tensors(folder / f"{name}.safetensors", state)
        else:
            plain[name] = dict(state)
    state = {"step": step, "random": random_state(), "parts": plain}
    try:
        torch.save(state, folder / STATE)
    except RuntimeError as error:  # torch says so of a full disk
        if isinstance(error.__context__, OSError):
            raise storage_error(error.__context__, folder) from error
        raise
    files = {path.name: fingerprint(path) for path in sorted(folder.iterdir())}
    seal = {"step": step, "files": files}
    (folder / SEAL).write_text(json.dumps(seal, indent=2, sort_keys=True), encoding="utf-8")


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """``{"step": ..., "random": ..., "parts": {name: state}}``, on the CPU.

    Raises RunError: PG-T04, a file cannot be read; PG-T05, it holds more than plain values.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    state: dict[str, Any] = load_plain(folder / STATE)
    for path in sorted(folder.glob("*.safetensors")):
        try:
            state["parts"][path.stem] = load_file(path)
        except (OSError, SafetensorError) as error:
            raise RunError("checkpoint cannot be read", where=path, why=str(error)) from error
    return state


def _is_flat(state: Mapping[str, Any]) -> bool:
    """Whether it is tensors by name, and some."""
    import torch

    return bool(state) and all(isinstance(value, torch.Tensor) for value in state.values())


def _save_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    own = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
    try:
        save_file(own, path)
    except SafetensorError as error:  # which says what the system said, in words
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise storage_error(OSError(int(number[1]), str(error)), path) from error


def random_state() -> dict[str, Any]:
    """States of python's, numpy's and torch's global generators, as plain values."""
    import torch

    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(
        "tuple[str, NDArray[np.uint32], int, int, float]", np.random.get_state(legacy=True)
    )
    # Of the GPU in use alone: asking the others would take memory on each.
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": cuda,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` gave; that of a GPU is left out where there is none."""
    import torch

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0].cpu())


def load_plain(path: Path) -> Any:
    """A torch file of tensors, numbers, strings and containers of them, on the CPU.

    Raises RunError PG-T05 when it holds anything else; nothing in it is executed.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RunError(
            "this file holds more than plain values and was not loaded", code="PG-T05",
            where=path, why=str(error).splitlines()[0],
            hint="do not trust it; start again with --overwrite",
        ) from error  # fmt: skip
    except (RuntimeError, EOFError, OSError) as error:
        raise RunError("checkpoint cannot be read", where=path, why=str(error)) from error


def fingerprint(path: Path) -> dict[str, Any]:
    """sha256 and length of a file."""
    with path.open("rb") as file:
        return {
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
            "bytes": path.stat().st_size,
        }


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used; None when its bytes are those that were written.

    Raises RunError PG-T04 for one of the format before this one.
    """
    try:
        seal = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
        if not isinstance(seal, dict):
            return "its seal is not one"
        if "files" not in seal and "sha256" in seal:
            raise RunError(
                "checkpoint is of an older format", where=checkpoint,
                why="networks are kept as safetensors files now",
                hint="finish it with the version that began it, or start again with --overwrite",
            )  # fmt: skip
        for name, written in seal["files"].items():
            if fingerprint(checkpoint / name) != written:
                return f"the bytes of {name} are not those that were written"
    except (OSError, ValueError, KeyError, AttributeError) as error:
        return str(error)
    return None


def require_equal_shapes(
    expected: Mapping[str, Any], found: Mapping[str, Any], *, where: Path, prefix: str = ""
) -> None:
    """RunError PG-T04 that lists what differs between two state dicts."""
    problems = [f"{prefix}{name} is missing" for name in expected if name not in found]
    problems += [f"{prefix}{name} is not expected" for name in found if name not in expected]
    problems += [
        f"{prefix}{name} expects {tuple(tensor.shape)}, file has {tuple(found[name].shape)}"
        for name, tensor in expected.items()
        if name in found and hasattr(tensor, "shape") and tensor.shape != found[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise RunError(
            "the weights are of another architecture", where=where,
            why="; ".join(problems[:3]) + more, hint="choose another --out or --overwrite",
        )  # fmt: skip
