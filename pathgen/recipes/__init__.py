"""Recipes: the YAML files beside this one, by name, or anybody's by path."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

from pathgen.config import parse_yaml, read_yaml
from pathgen.errors import ConfigError


def recipe_names() -> list[str]:
    """Names of the recipes that come with pathgen."""
    files = resources.files(__name__).iterdir()
    return sorted(Path(f.name).stem for f in files if f.name.endswith(".yaml"))


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """A recipe as plain settings. Raises ConfigError (PG-C02) when there is none of that name."""
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml"):
        return {"name": path.stem, **read_yaml(path)}
    names = recipe_names()
    if str(recipe) not in names:
        close = difflib.get_close_matches(str(recipe), names, n=1)
        raise ConfigError(
            "unknown recipe",
            code="PG-C02",
            where=recipe,
            why=f"known: {', '.join(names)}; or the path of a .yaml file",
            hint=f"did you mean {close[0]!r}?" if close else None,
        )
    text = resources.files(__name__).joinpath(f"{recipe}.yaml").read_text(encoding="utf-8")
    return {"name": str(recipe), **parse_yaml(text, where=f"recipe {recipe}")}
