"""Recipes: the YAML files beside this one, by name, or anybody's by path.

A recipe may say ``extends: NAME`` (or the path of a YAML file, from its own folder): it is then
laid over that one, mapping by mapping, and its own settings win. `name` and `note` are its own.
"""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

from pathgen.config import merge, parse_yaml, read_yaml
from pathgen.errors import ConfigError


def recipe_names() -> list[str]:
    """Names of the recipes that come with pathgen."""
    files = resources.files(__name__).iterdir()
    return sorted(Path(f.name).stem for f in files if f.name.endswith(".yaml"))


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """A recipe as plain settings, laid over the one it `extends` when it does.

    Raises ConfigError: PG-C02 when there is none of that name; PG-C01 when recipes extend each
    other in a circle.
    """
    return _read(recipe, ())


def _read(recipe: str | Path, above: tuple[str, ...]) -> dict[str, Any]:
    path, known = Path(recipe), recipe_names()
    if path.suffix in (".yaml", ".yml"):
        name, values, key = path.stem, read_yaml(path), str(path.resolve())
    elif str(recipe) in known:
        text = resources.files(__name__).joinpath(f"{recipe}.yaml").read_text(encoding="utf-8")
        name, values, key = str(recipe), parse_yaml(text, where=f"recipe {recipe}"), str(recipe)
    else:
        close = difflib.get_close_matches(str(recipe), known, n=1)
        raise ConfigError(
            "unknown recipe",
            code="PG-C02",
            where=recipe,
            why=f"known recipes: {', '.join(known)}; or the path of a .yaml file",
            hint=f"did you mean {close[0]!r}?" if close else None,
        )
    base = values.pop("extends", None)
    if base is None:
        return {"name": name, **values}
    if key in above:
        raise ConfigError("recipes extend each other", where=key, why=" -> ".join((*above, key)))
    if Path(str(base)).suffix in (".yaml", ".yml"):  # beside the recipe that names it
        base = path.parent / str(base)
    below = {k: v for k, v in _read(str(base), (*above, key)).items() if k not in ("name", "note")}
    return {"name": name, **merge(below, values)}
