"""Who made a file, from what, and with which settings."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pathgen import __version__

#: Packages whose version can change a result; those not installed are left out.
RELEVANT = (
    "numpy", "h5py", "zarr", "pillow", "openslide-python", "openslide-bin", "tifffile",
    "simplejpeg", "scikit-image", "scikit-learn", "torchstain", "torch", "torchvision", "timm",
    "diffusers", "accelerate", "safetensors",
)  # fmt: skip


#: Raised when equal settings give another result than before; stages not named are at 1.
REVISIONS: Mapping[str, int] = {"tile": 2}


class Provenance(BaseModel):
    """Written into every store and run. It holds nothing that differs between two equal runs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    """role or name -> id of the slide, store or run it was made from"""
    revision: int = Field(default_factory=lambda known: REVISIONS.get(known.get("stage", ""), 1))
    """of the stage's method, so that a folder never mixes results of two of them"""
    pathgen_version: str = __version__

    @property
    def id(self) -> str:
        """16 hex digits of stage, revision, config and inputs: equal ids, equal content."""
        return digest([self.stage, self.revision, self.config, self.inputs])


def digest(value: Any, length: int = 16) -> str:
    """Hex digest of any JSON-ready value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=length // 2).hexdigest()


def environment() -> dict[str, Any]:
    """Versions, platform and git state of this process, for a run's ``environment.json``."""
    versions = {}
    for name in RELEVANT:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "pathgen": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git": _git_state(),
        "command": sys.argv,
    }


def _git_state() -> Mapping[str, Any] | None:
    """Commit and cleanliness of the checkout pathgen runs from; None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        # Installed below somebody's own repository, pathgen is no part of that one.
        if _git(here, "ls-files", "--error-unmatch", Path(__file__).name) is None:
            return None
        commit = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"commit": commit, "dirty": bool(changed)}


def _git(folder: Path, *words: str) -> str | None:
    """What git says, or None when it fails."""
    done = subprocess.run(
        ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10
    )  # fmt: skip
    return None if done.returncode else done.stdout.strip()
