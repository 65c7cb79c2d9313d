"""What a checkpoint is made of: plain values, random states, and a check of its bytes."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import RunError


def random_state() -> dict[str, Any]:
    """States of python's, numpy's and torch's global generators, as plain values."""
    import torch

    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = cast(
        "tuple[str, NDArray[np.uint32], int, int, float]", np.random.get_state(legacy=True)
    )
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": list(cuda),
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Put back what `random_state` gave; states of GPUs this machine lacks are left out."""
    import torch

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    for number, cuda in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda.cpu(), number)


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
    """Why a checkpoint cannot be used; None when its bytes are those that were written."""
    try:
        seal = json.loads((checkpoint / "COMPLETE").read_text(encoding="utf-8"))
        found = fingerprint(checkpoint / "state.pt")
    except (OSError, ValueError) as error:
        return str(error)
    if not isinstance(seal, dict) or any(seal.get(key) != found[key] for key in found):
        return "its bytes are not those that were written"
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
