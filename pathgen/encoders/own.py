"""Encoders that others bring: from a Python file, or from an installed package.

The maker is a function without arguments, or with ``device``. It returns anything with `dim` and
`encode`, or a torch module and the transform of its images, which goes from a PIL image to a
(3, H, W) tensor as torchvision's and timm's do.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from pathgen.encoders.protocol import PatchEncoder
from pathgen.errors import ConfigError

if TYPE_CHECKING:
    import torch

#: Installed packages name their makers here: ``[project.entry-points."pathgen.encoders"]``.
GROUP = "pathgen.encoders"
#: ``my_encoder.py:make``; the drive of a Windows path has a colon too.
_FILE = re.compile(r"^(?P<path>.+\.py):(?P<name>[A-Za-z_]\w*)$")

Transform = Callable[[Any], Any]


def is_file_spec(spec: str) -> bool:
    """Whether this names a function of a Python file, or such a file without one."""
    return bool(_FILE.match(spec)) or spec.endswith(".py")


def from_file(spec: str, device: torch.device) -> PatchEncoder:
    """What ``FILE.py:FUNCTION`` makes. The file is run: it must be one that you trust.

    Raises ConfigError (PG-C04): there is no such file or function, or it makes no encoder.
    """
    match = _FILE.match(spec)
    if match is None:
        raise ConfigError(
            "which function makes the encoder is not said", code="PG-C04", where=spec,
            hint="write FILE.py:FUNCTION",
        )  # fmt: skip
    path = Path(match["path"])
    if not path.is_file():
        raise ConfigError("no such Python file", code="PG-C04", where=path, hint="check the path")
    content = path.read_bytes()
    digest = hashlib.blake2b(content + match["name"].encode(), digest_size=8).hexdigest()
    made_from = f"pathgen_encoder_{digest}"
    module_spec = spec_from_file_location(made_from, path)
    if module_spec is None or module_spec.loader is None:
        raise ConfigError("the Python file cannot be imported", code="PG-C04", where=path)
    module = module_from_spec(module_spec)
    sys.modules[made_from] = module  # as dataclasses and pickles inside it need
    module_spec.loader.exec_module(module)
    maker = getattr(module, match["name"], None)
    if not callable(maker):
        raise ConfigError(
            "no such function in the file", code="PG-C04", where=spec,
            why=f"it has {', '.join(_functions(module)) or 'none'}",
        )  # fmt: skip
    return _made(maker, f"{path.stem}:{match['name']}", digest, device)


def plugins() -> Mapping[str, EntryPoint]:
    """Name -> entry point of the encoders that installed packages offer."""
    return {point.name: point for point in entry_points(group=GROUP)}


def from_plugin(point: EntryPoint, device: torch.device) -> PatchEncoder:
    """What an installed package's entry point makes.

    Raises ConfigError (PG-C04): it cannot be imported, or makes no encoder.
    """
    try:
        maker = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "the encoder of an installed package cannot be imported", code="PG-C04",
            where=point.value, why=str(error), hint="install the package again",
        ) from error  # fmt: skip
    version = point.dist.version if point.dist else ""
    digest = hashlib.blake2b(f"{point.value} {version}".encode(), digest_size=8).hexdigest()
    return _made(maker, point.name, digest, device)


class ModuleEncoder:
    """A torch module with the transform of its images.

    Attributes:
        card: what feature stores say of it.
        precision: in what the module computes; its vectors are float32 all the same.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        transform: Transform,
        name: str,
        digest: str,
        device: torch.device,
    ) -> None:
        from pathgen.models.precision import Precision

        self.name, self.transform, self.device = name, transform, device
        self.card: Mapping[str, Any] = {"name": name}
        self.id = _digest(digest, module)
        self.module = module.to(device).eval().requires_grad_(False)
        self.precision: Precision = "fp32"
        self.dim = int(self.encode(np.zeros((1, 224, 224, 3), np.uint8)).shape[1])

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, H, W, 3) uint8 -> (n, dim) float32."""
        import torch
        from PIL import Image

        from pathgen.models.precision import autocast

        images = torch.stack([self.transform(Image.fromarray(patch)) for patch in patches])
        with torch.inference_mode(), autocast(self.precision, self.device):
            vectors = self.module(images.to(self.device))
        if not isinstance(vectors, torch.Tensor) or vectors.ndim != 2:
            raise ConfigError(
                "the module gives no vectors", code="PG-C04", where=self.name,
                why=f"(n, dim) was due, {getattr(vectors, 'shape', type(vectors).__name__)} came",
                hint="give a module that ends in one vector an image",
            )  # fmt: skip
        return cast("NDArray[np.float32]", vectors.float().cpu().numpy())


class Named:
    """An encoder of somebody else, with the name and the `id` that it does not say itself.

    Attributes:
        device: where it computes, if it is a torch module; else None.
    """

    def __init__(self, encoder: Any, name: str, id: str, device: torch.device | None) -> None:
        self._encoder, self.name, self.id, self.device = encoder, name, id, device
        self.card: Mapping[str, Any] = {"name": name, **(getattr(encoder, "card", None) or {})}

    @property
    def dim(self) -> int:
        return int(self._encoder.dim)

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(n, H, W, 3) uint8 -> (n, dim)."""
        return np.asarray(self._encoder.encode(patches), np.float32)


def _made(maker: Callable[..., Any], name: str, digest: str, device: torch.device) -> PatchEncoder:
    """Call the maker, and see that an encoder came out."""
    import torch

    takes_device = "device" in inspect.signature(maker).parameters
    made = maker(device=device) if takes_device else maker()
    if hasattr(made, "dim") and callable(getattr(made, "encode", None)):
        is_module = isinstance(made, torch.nn.Module)
        if is_module:
            made = made.to(device).eval()
        said = getattr(made, "id", None)
        if isinstance(said, str) and (hasattr(made, "card") or hasattr(made, "config")):
            return cast(PatchEncoder, made)
        found = said if isinstance(said, str) else _digest(digest, made if is_module else None)
        return Named(made, name, found, device if is_module else None)
    module, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    transform = transform or getattr(module, "transform", None)
    if isinstance(module, torch.nn.Module) and callable(transform):
        return ModuleEncoder(module, transform, name, digest, device)
    raise ConfigError(
        "this makes no encoder", code="PG-C04", where=name,
        why=f"it returned {type(made).__name__}",
        hint="return an object with dim and encode, or (torch module, transform of a PIL image)",
    )  # fmt: skip


def _digest(code: str, module: torch.nn.Module | None) -> str:
    """16 hex digits of the code that makes an encoder, and of the weights it came with."""
    from pathgen.models.weights import weights_id

    text = code if module is None else f"{code} {weights_id(module)}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _functions(module: Any) -> list[str]:
    own = (n for n, v in vars(module).items() if inspect.isfunction(v))
    return sorted(n for n in own if not n.startswith("_"))
