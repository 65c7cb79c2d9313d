"""Optional dependencies, asked for by name."""

from __future__ import annotations

from importlib.util import find_spec

from pathgen.errors import MissingExtraError


def need(package: str, extra: str) -> None:
    """Raise MissingExtraError (PG-E01) with the pip command when `package` is not installed."""
    if find_spec(package) is None:
        raise MissingExtraError(
            f"this needs the package {package}",
            why="it is not installed",
            hint=f'run: pip install "pathgen[{extra}]"',
        )
