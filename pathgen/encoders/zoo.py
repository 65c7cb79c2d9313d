"""The public encoders by short name: a frozen table, `zoo.yaml`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from pathgen.config import Config, build, parse_yaml
from pathgen.errors import ConfigError

#: How the tensors are named in the published file.
Layout = Literal["timm", "vit", "dinov2", "conch", "conch-v1.5"]
#: Which numbers of the network make the vector.
Vector = Literal["cls", "cls+mean", "mean", "attention", "pooled", "third"]
#: How position embeddings are brought from the file's grid to that of the image.
Positions = Literal["bicubic-antialias", "bicubic", "bilinear", "dino"]
Interpolation = Literal["bilinear", "bicubic"]


class Origin(NamedTuple):
    """Where the files of an encoder are published."""

    name: str
    """of its folder on machines without the hub"""
    hub: str
    """owner/name on the Hugging Face hub"""
    terms: str
    """license, and where it stands, in a clause"""
    files: tuple[str, ...] = ()
    """what its weights are called there, where it is not the usual name"""
    aliases: tuple[str, ...] = ()
    gated: bool = False
    """whether access has to be asked for"""


class Published(Config):
    """One published encoder: where its weights are, what they mean, and who may use them."""

    name: str
    title: str
    aliases: tuple[str, ...] = ()
    hub: str
    """owner/name on the Hugging Face hub"""
    files: tuple[str, ...] = ()
    """names its weights have there, where they are not the usual ones"""
    layout: Layout = "timm"
    network: str
    """timm's name of the architecture"""
    settings: dict[str, Any] = Field(default_factory=dict)
    """timm's settings on top of it"""
    swiglu: bool = False
    """gated feed-forward layers with SiLU; `mlp_ratio` then counts both halves"""
    norm_eps: float | None = None
    """epsilon of the layer norms, where it is not timm's 1e-6"""
    vector: Vector
    """cls: the class token. cls+mean: it, and the mean of the patch tokens without registers.
    mean: that mean. attention: CONCH's pooling. pooled: a CNN's average. third: of its stage 3"""
    dim: int
    image_size: int = 224
    """side, in pixels, of what the network sees"""
    resize: int | None = None
    """side to which the shorter side goes before the center is cut out; default: image_size"""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation
    positions: Positions = "bicubic-antialias"
    mpp: tuple[float, ...] = ()
    """um per pixel it was trained at or is meant for; empty for natural images"""
    patch_size: int | None = None
    """side, in pixels at that scale, of the patches its authors cut; default: `resize`"""
    license: str
    commercial: bool
    """whether the license allows commercial use"""
    gated: bool
    """whether access has to be asked for"""
    access: str = ""
    """where the license stands or access is asked for; default: its page on the hub"""
    citation: str
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        resize = values.get("resize") or values.get("image_size", 224)
        page = f"https://huggingface.co/{values.get('hub')}"
        return {
            **values,
            "resize": resize,
            "patch_size": values.get("patch_size") or resize,
            "access": values.get("access") or page,
        }

    @property
    def card(self) -> dict[str, Any]:
        """What feature stores and `pathgen encoders` say of it: JSON values."""
        fields = (
            "name", "title", "license", "commercial", "gated", "access", "citation", "note", "dim",
            "vector", "image_size", "resize", "interpolation", "mean", "std", "mpp", "patch_size",
        )  # fmt: skip
        values = self.model_dump(mode="json")
        return {"source": f"https://huggingface.co/{self.hub}", "library": "timm",
                **{field: values[field] for field in fields}}  # fmt: skip

    @property
    def origin(self) -> Origin:
        use = "commercial use is allowed" if self.commercial else "no commercial use"
        terms = f"License: {self.license} ({use}), see {self.access}"
        return Origin(self.name, self.hub, terms, self.files, self.aliases, self.gated)

    def said(self) -> str:
        """The line about the license, said once when the weights are loaded."""
        use = "" if self.commercial else "; no commercial use"
        return f"{self.title}: weights under {self.license}{use} ({self.access})"


@cache
def public_encoders() -> Mapping[str, Published]:
    """Short name -> encoder, in the order of the table."""
    text = resources.files("pathgen.encoders").joinpath("zoo.yaml").read_text(encoding="utf-8")
    rows = parse_yaml(text, where="zoo.yaml")
    return MappingProxyType(
        {name: build(Published, {"name": name, **row}, where=name) for name, row in rows.items()}
    )


def named(name: str) -> Published | None:
    """The encoder of a short name or another spelling of it; None where there is none."""
    plain = _plain(name)
    row = public_encoders().get(plain)
    return row or next((row for row in public_encoders().values() if plain in row.aliases), None)


def unknown(name: str, others: Iterable[str] = ()) -> ConfigError:
    """The error for a name that is none of a public encoder or a plug-in (PG-C04)."""
    known = {
        *public_encoders(),
        *others,
        *(alias for row in public_encoders().values() for alias in row.aliases),
    }
    close = difflib.get_close_matches(_plain(name), sorted(known), n=1)
    hint = "see the names with `pathgen encoders`"
    return ConfigError(
        "no encoder of this name", code="PG-C04", where=name,
        why="it is no folder and no public encoder",
        hint=f"did you mean {close[0]!r}? {hint[0].upper()}{hint[1:]}" if close else hint,
    )  # fmt: skip


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")
