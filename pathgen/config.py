"""Settings: frozen pydantic models, read from YAML, with `key=value` overrides on top.

Later wins: defaults in the class < recipe or ``--config`` file < ``--set`` and flags.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pathgen.errors import ConfigError


class Config(BaseModel):
    """Base of every config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class WrongValue(ValueError):
    """Of a validator of several settings: which of them is wrong, and why."""

    def __init__(self, setting: str, why: str) -> None:
        super().__init__(why)
        self.setting = setting


C = TypeVar("C", bound=Config)


class _UniqueKeyLoader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML lets a repeated key win silently; here it is an error."""


def _mapping_without_repeats(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            raise ConfigError(
                "setting given twice",
                where=key,
                why=f"line {key_node.start_mark.line + 1} repeats it",
                hint="keep one of them",
            )
        seen.add(key)
    mapping: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return mapping


_UniqueKeyLoader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_repeats
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as a mapping. Raises ConfigError when it is missing or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "config file cannot be read", where=path, why=str(error), hint="check the path"
        ) from error
    return parse_yaml(text, where=str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """YAML text as a mapping. Raises ConfigError naming `where`."""
    try:
        values = yaml.load(text, _UniqueKeyLoader)  # noqa: S506 - derives from SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError("not valid YAML", where=where, why=str(error)) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            "not a mapping of settings", where=where, hint="write one `key: value` a line"
        )
    return values


def to_yaml(config: Config | Mapping[str, Any]) -> str:
    """The whole config, every default written out; or such plain values."""
    values = config.model_dump(mode="json") if isinstance(config, Config) else dict(config)
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` laid on top, mapping by mapping."""
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        result[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return result


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """``["dino.optim.lr=1e-3"]`` as nested mappings; values are read as YAML."""
    values: dict[str, Any] = {}
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign or not key:
            wanted = f"write {key or 'KEY'}=VALUE"
            raise ConfigError("--set needs KEY=VALUE", where=override, hint=wanted)
        *parents, leaf = key.split(".")
        nested: dict[str, Any] = {leaf: _scalar(text, key)}
        for parent in reversed(parents):
            nested = {parent: nested}
        values = merge(values, nested)
    return values


def _scalar(text: str, key: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError("value cannot be read", where=f"{key}={text}", why=str(error)) from error
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a word
        except ValueError:
            return value
    return value


def build(cls: type[C], values: Mapping[str, Any], where: str = "") -> C:
    """Validate `values` into `cls`; a ConfigError names the bad key and the nearest known one."""
    try:
        return cls.model_validate(dict(values))
    except ValidationError as error:
        raise _explain(cls, error, where) from error


def load_config(
    cls: type[C],
    path: Path | None = None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
) -> C:
    """Build a `cls` from its defaults, `base`, the YAML file, then ``key=value`` overrides."""
    values = dict(base or {})
    if path is not None:
        values = merge(values, read_yaml(path))
    values = merge(values, parse_overrides(overrides))
    return build(cls, values, where=str(path or ""))


def _explain(cls: type[Config], error: ValidationError, where: str) -> ConfigError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or where
    if first["type"] == "extra_forbidden":
        known = _fields_at(cls, first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        return ConfigError(
            "unknown setting",
            where=key,
            why=f"known here: {', '.join(known)}",
            hint=f"did you mean {close[0]!r}?" if close else None,
        )
    why = first["msg"].removeprefix("Value error, ")
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, WrongValue):
        key = cause.setting
    elif first["loc"]:  # else it is about several settings, and names them
        why += f" (got {first['input']!r})"
    return ConfigError("setting has a wrong value", where=key or None, why=why)


def _fields_at(cls: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    for part in loc:
        field = cls.model_fields.get(str(part))
        kind = field.annotation if field else None
        options = [kind, *getattr(kind, "__args__", ())]
        nested = [k for k in options if isinstance(k, type) and issubclass(k, BaseModel)]
        if not nested:
            return []
        cls = nested[0]
    return list(cls.model_fields)
