"""An encoder by what it is called."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pathgen.encoders import own, zoo
from pathgen.encoders.protocol import PatchEncoder
from pathgen.errors import ConfigError, MissingExtraError, RunError
from pathgen.progress import Progress, Silent

if TYPE_CHECKING:
    import torch

    from pathgen.models.encoder import Encoder

#: Below a pretraining run, best first.
STAGES = ("gen-dino", "dino")


def load_encoder(
    spec: str | Path,
    device: str = "auto",
    *,
    weights: Path | str | None = None,
    progress: Progress | None = None,
) -> PatchEncoder:
    """An encoder by name or place, on its device and in inference mode.

    Args:
        spec: a public encoder by short name (`pathgen encoders` lists them); a folder of
            `pathgen pretrain`, one stage of it, or a model folder; ``timm:NAME``, with
            ``timm:NAME,random`` for untrained weights, always the same; ``hf:OWNER/NAME``;
            ``FILE.py:FUNCTION``, which runs that file; or the name of an entry point in the group
            ``pathgen.encoders``. A `Path` is a folder, whatever its name.
        device: ``"auto"`` takes a GPU when there is one.
        weights: where the weights of public encoders lie on this machine (see
            `weights.find_weights`); the hub is then not asked.
        progress: is told the license of published weights.

    Raises:
        RunError: PG-T04, no finished encoder there, or weights of another architecture.
        ConfigError: PG-C04, no such encoder, or it cannot be made.
        MissingExtraError: PG-E02, published weights cannot be fetched; PG-E06, access to them has
            to be asked for; PG-E01, a package is needed.
    """
    from pathgen.train.engine import find_device

    name, place = str(spec), find_device(device)
    folder = Path(weights) if weights is not None else None
    progress = progress or Silent()
    if isinstance(spec, str):
        if own.is_file_spec(name):
            return own.from_file(name, place)
        if name.startswith("hf:"):
            return _hub_encoder(name.removeprefix("hf:"), folder, place, progress)
        if not name.startswith("timm:"):
            found = _by_name(name, folder, place, progress)
            if found is not None:
                return found
    return load_trained(spec, device)


def load_trained(spec: str | Path, device: str = "auto") -> Encoder:
    """A network that can be trained on: of a run, a stage, a model folder, or ``timm:NAME``.

    Raises as `load_encoder` does; RunError (PG-T04) too where there is no such folder.
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


def _by_name(
    name: str, weights: Path | None, device: torch.device, progress: Progress
) -> PatchEncoder | None:
    """A public encoder or a plug-in; None for what can only be a folder."""
    row, plugin = zoo.named(name), own.plugins().get(name)
    if row is None and plugin is None:
        if Path(name).exists() or not _is_a_word(name):
            return None
        raise zoo.unknown(name, own.plugins())
    if Path(name).is_dir():
        raise ConfigError(
            "a folder and an encoder have this name", code="PG-C04", where=name,
            hint=f"write ./{name} for the folder, or run this where there is no such folder",
        )  # fmt: skip
    if row is None:
        assert plugin is not None
        return own.from_plugin(plugin, device)
    from pathgen.encoders.published import PublishedEncoder
    from pathgen.encoders.weights import find_weights

    path = find_weights(row.origin, weights)
    progress.say(row.said())
    return PublishedEncoder.load(row, path).to(device)


def _hub_encoder(
    spec: str, weights: Path | None, device: torch.device, progress: Progress
) -> PatchEncoder:
    from pathgen.encoders.hub import from_hub

    encoder = from_hub(spec, weights)
    page = encoder.card["source"]
    progress.say(f"{spec}: see {page} for the license of these weights")
    return encoder.to(device)


def _is_a_word(name: str) -> bool:
    """Whether this may be a short name, and is no path."""
    return not any(mark in name for mark in "/\\~") and not name.startswith(".")


def _encoder_folder(path: Path) -> Path:
    """Of a run, the best finished stage; else the folder itself, a stage or a model."""
    if not path.exists():
        raise RunError(
            "no encoder here", where=path, why="there is no such folder",
            hint="give a run, a stage or model folder, timm:NAME, or a name that `pathgen "
            "encoders` lists",
        )  # fmt: skip
    stages = [path / stage for stage in STAGES]
    finished = (stage for stage in stages if (stage / "model" / "config.json").is_file())
    return next(finished, path)


def _timm_encoder(spec: str) -> Encoder:
    import torch

    from pathgen.models.encoder import Encoder

    name, _, option = spec.partition(",")
    if option not in ("", "pretrained", "random"):
        raise ConfigError(
            "encoder is not understood", where=f"timm:{spec}",
            hint="write timm:NAME, or timm:NAME,random for untrained weights",
        )  # fmt: skip
    try:
        # The same untrained weights each time: else a second call could not go on with the first.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return Encoder.from_timm(name, pretrained=option != "random")
    except (OSError, RuntimeError) as error:
        # The hub's failures to connect are OSErrors; timm adds RuntimeError without weights.
        raise MissingExtraError(
            "published weights cannot be fetched", code="PG-E02", where=f"timm:{name}",
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            hint="connect to the internet once, use a run's encoder, or write timm:NAME,random",
        ) from error  # fmt: skip
