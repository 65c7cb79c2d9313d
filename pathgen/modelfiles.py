"""A model as a folder: `config.json` and `model.safetensors`. No pickle, no class from a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast, get_type_hints

from pathgen.checkpoints import require_equal_shapes
from pathgen.commit import draft
from pathgen.config import build
from pathgen.errors import RunError

if TYPE_CHECKING:
    from torch import nn

MODEL_FORMAT = "pathgen-model"
#: 2: weights of an encoder under timm's names. 1 is read too.
MODEL_VERSION = 2

Model = TypeVar("Model", bound="nn.Module")


def save_model(path: Path | str, model: nn.Module) -> None:
    """Write `config.json` and `model.safetensors` into the folder `path`, atomically.

    The model must have been built as ``Model(config)`` and carry that config as `model.config`.
    Where its class names a `stored_part`, the file has that part's weights under the part's own
    names, and `model.stored_facts()` goes into `config.json`: others can read them too. Classes
    that share a name `stored_as` are told apart by the config.
    """
    from safetensors.torch import save_file

    config: Any = model.config
    description = {
        "format": MODEL_FORMAT,
        "version": MODEL_VERSION,
        "model": _kind(type(model)),
        "config": config.model_dump(mode="json"),
    }
    prefix = _prefix(type(model))
    if prefix:
        description |= cast(Any, model).stored_facts()
    weights = {
        name.removeprefix(prefix): t.detach().cpu().clone().contiguous()
        for name, t in model.state_dict().items()
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft(path) as folder:
        folder.mkdir()
        save_file(weights, folder / "model.safetensors")
        text = json.dumps(description, indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")


def load_model(path: Path | str, cls: type[Model]) -> Model:
    """Build ``cls(config)`` from a model folder, or a run's `model/`, and load its weights.

    Where the config says which of several classes it is, ``cls.of_config(config)`` builds it.

    The class is the caller's: a name in the file is only compared, never imported. The returned
    model is on the CPU and in eval mode.

    Raises:
        RunError: PG-T04, no model is there, or it is of another class, version or shape.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = model_folder(path)
    description = read_object(path / "config.json")
    if description.get("format") != MODEL_FORMAT or description.get("version", 0) > MODEL_VERSION:
        raise RunError(
            "not a model this version reads", where=path,
            why=f"format {description.get('format')!r}, version {description.get('version')!r}",
        )  # fmt: skip
    if description.get("model") != _kind(cls):
        raise RunError(
            "this folder holds another kind of model", where=path,
            why=f"it is {description.get('model')!r}, needed is {_kind(cls)!r}",
        )  # fmt: skip
    config_class = get_type_hints(cls.__init__)["config"]
    make: Callable[[Any], Model] = getattr(cls, "of_config", cls)
    model = make(build(config_class, description["config"], where=str(path)))
    try:
        weights = load_file(path / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise RunError("model weights cannot be read", where=path, why=str(error)) from error
    if description["version"] > 1:
        weights = {_prefix(cls) + name: tensor for name, tensor in weights.items()}
    require_equal_shapes(model.state_dict(), weights, where=path)
    model.load_state_dict(weights)
    return model.eval()


def _kind(cls: type[nn.Module]) -> str:
    """What a model folder calls the class."""
    return getattr(cls, "stored_as", cls.__name__)


def _prefix(cls: type[nn.Module]) -> str:
    """What the names of a model's weights begin with and those in its file do not."""
    part = getattr(cls, "stored_part", "")
    return f"{part}." if part else ""


def model_folder(path: Path | str) -> Path:
    """The model folder at `path`, or the one inside the run there. Raises RunError."""
    path = Path(path)
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    unfinished = (path / "provenance.json").is_file()
    raise RunError(
        "no model here", where=path,
        why="the run is not finished" if unfinished else "it lacks a config or weights",
        hint="run the same training again to finish it" if unfinished else "check the path",
    )  # fmt: skip


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises RunError when the file is absent or holds something else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError("not a run or model folder", where=path.parent, why=f"{path.name} is absent",
                       hint="check the path") from error  # fmt: skip
    except (OSError, ValueError) as error:
        raise RunError(f"{path.name} cannot be read", where=path.parent, why=str(error)) from error
    if not isinstance(value, dict):
        raise RunError(f"{path.name} cannot be read", where=path.parent, why="it is not an object")
    return value
