"""How features were made, as far as all of a cohort's were made alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pathgen.stores.features import FeatureStore

#: Of a patch: what a slide to come has to be cut with.
PATCHES = ("patch_size", "target_mpp", "overlap")


def made_how(stores: Iterable[FeatureStore]) -> dict[str, Any]:
    """JSON-ready: ``encoder`` of the first; ``patches``, their size and scale, where they are the
    same in all; and ``tile``, all settings, where slides were cut for these features alone."""
    known = list(stores)
    if not known:
        return {}
    found: dict[str, Any] = {"encoder": dict(known[0].encoder)}
    patches = _common(
        {name: store.source[name] for name in PATCHES if store.source.get(name) is not None}
        for store in known
    )
    if patches is not None:
        found["patches"] = patches
    settings = _common(_without_slide(store.provenance.config.get("tile")) for store in known)
    if settings:
        found["tile"] = settings
    return found


def _without_slide(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings of tiling without what is of one slide."""
    own = ("slide", "slide_mpp")
    return {name: value for name, value in (settings or {}).items() if name not in own}


def _common(values: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The one that all are; None where they differ."""
    first: dict[str, Any] | None = None
    for value in values:
        if first is not None and value != first:
            return None
        first = value
    return first
