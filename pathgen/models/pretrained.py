"""Autoencoders that diffusers saved: which class, where in the folder, and their settings."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel

from pathgen.errors import ConfigError

Kind = Literal["kl", "vq", "tiny", "dc"]

#: The only classes ever built, whatever a downloaded `config.json` may name.
NETWORKS: Mapping[Kind, Any] = {
    "kl": AutoencoderKL, "vq": VQModel, "tiny": AutoencoderTiny, "dc": AutoencoderDC,
}  # fmt: skip
_KINDS: Mapping[str, Kind] = {network.__name__: kind for kind, network in NETWORKS.items()}
#: Where the autoencoder is in the folder of a whole pipeline.
_PIPELINE = ("vae", "vqvae")


class Pretrained(NamedTuple):
    """A network with its weights, and what it is built again from."""

    kind: Kind
    network: Any
    settings: dict[str, Any]
    """of the class's constructor"""


def load_pretrained(name: str) -> Pretrained:
    """From a folder or hub name: of the autoencoder, or of a pipeline that holds one.

    Only safetensors are read: a pickled weight file could run code. Scaling and shift factors of
    the original are kept in the settings but have no effect: ours are measured.

    Raises:
        ConfigError: nothing there can be read, it is of another class, or has no safetensors.
    """
    subfolder, found = _find(name)
    kind = _KINDS.get(str(found.get("_class_name")))
    if kind is None:
        raise ConfigError(
            "pretrained autoencoder is of an unknown class",
            where=name,
            why=f"its config.json says {found.get('_class_name')!r}",
            hint=f"known: {', '.join(_KINDS)}",
        )
    try:
        network = NETWORKS[kind].from_pretrained(name, subfolder=subfolder, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            "pretrained autoencoder weights cannot be loaded",
            where=name,
            why=str(error).splitlines()[0],
            hint="only safetensors weights are read",
        ) from error
    known = inspect.signature(NETWORKS[kind].__init__).parameters
    return Pretrained(kind, network, {k: v for k, v in network.config.items() if k in known})


def depth(kind: Kind, settings: Mapping[str, Any]) -> int:
    """Resolutions the network has; the latent is 2 ** (depth - 1) times smaller than its input."""
    key = "block_out_channels" if kind in ("kl", "vq") else "encoder_block_out_channels"
    return len(settings[key])


def latent_channels(kind: Kind, settings: Mapping[str, Any]) -> int:
    """Channels of what the network encodes to."""
    codes = settings.get("vq_embed_dim") if kind == "vq" else None
    return int(codes or settings["latent_channels"])


def _find(name: str) -> tuple[str | None, Mapping[str, Any]]:
    """Sub-folder and content of the autoencoder's config.json."""
    problem: Exception | None = None
    for subfolder in (None, *_PIPELINE):
        if Path(name).is_dir() and not (Path(name) / (subfolder or "") / "config.json").is_file():
            continue
        try:
            return subfolder, AutoencoderKL.load_config(name, subfolder=subfolder)
        except (OSError, ValueError) as error:
            problem = problem or error
    why = str(problem).splitlines()[0] if problem else "it has no config.json"
    raise ConfigError(
        "pretrained autoencoder cannot be read", where=name, why=why,
        hint="give a folder with config.json and safetensors weights, a pipeline with one in "
        f"{' or '.join(_PIPELINE)}, or a hub name",
    ) from problem  # fmt: skip
