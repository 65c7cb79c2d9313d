"""`pathgen info` on stores: every kind is described, and slides are left to the slide readers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from test_stores import make_patches

from pathgen.cli import main
from pathgen.errors import StoreError
from pathgen.provenance import Provenance
from pathgen.stores import (
    FeatureStore,
    LatentStore,
    PatchRef,
    Recipe,
    SelfAugmentationStore,
    encode_patch,
    open_store,
    recipe_columns,
)
from pathgen.stores.facts import is_store, store_facts
from pathgen.stores.store import _KINDS

BY = Provenance(stage="made", config={}, inputs={"patches": "f" * 16})
SOURCE = {"id": "b" * 16, "name": "case-7", "rows": 2}


def features(path: Path) -> None:
    with FeatureStore.create(path, 3, BY, encoder={"id": "e", "name": "vit"}, source=SOURCE) as w:
        w.append(features=np.ones((2, 3)), coords=np.ones((2, 2), int), label=[0, 1])


def latents(path: Path) -> None:
    facts: dict[str, Any] = {"autoencoder": {"id": "a" * 16}, "source": SOURCE}
    with LatentStore.create(path, (2, 4, 4), BY, mirrors=1, **facts) as writer:
        writer.append(latent0=np.ones((2, 2, 4, 4), np.float16))


def augmentations(path: Path) -> None:
    recipes = [Recipe.generative(PatchRef("s", 0), 1), Recipe.generative(PatchRef("s", 1), 2)]
    picture = encode_patch(np.zeros((8, 8, 3), np.uint8), "png")
    with SelfAugmentationStore.create(path, 8, BY, sources=["s"], facts={"steps": 5}) as writer:
        writer.append(image=[picture] * 2, cosine=[0.5, 0.5], **recipe_columns(recipes, ["s"]))


MADE: Mapping[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "features": (features, {"encoder": {"id": "e", "name": "vit"}, "source": SOURCE}),
    "latents": (latents, {"autoencoder": {"id": "a" * 16}, "source": SOURCE, "first_row": 0}),
    "augmentations": (augmentations, {"size": 8, "steps": 5}),
    "patches": (lambda path: make_patches(path, 2), {"codec": "png"}),
}


@pytest.mark.parametrize("suffix", ["h5", "zarr"])
@pytest.mark.parametrize("kind", MADE)
def test_info_says_what_a_store_is(
    kind: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"x.{suffix}"
    make, expected = MADE[kind]
    make(path)
    facts = store_facts(path)
    assert facts | expected == facts
    with open_store(path) as store:
        assert (facts["kind"], facts["rows"], facts["id"]) == (kind, 2, store.id)
        assert set(facts["columns"]) == set(store.table.columns)
    assert facts["inputs"] == dict(open_store(path).provenance.inputs)
    with pytest.raises(SystemExit) as ended:
        main(["info", str(path), "--json"])
    assert not ended.value.code
    assert json.loads(capsys.readouterr().out)["kind"] == kind


def test_every_kind_is_described() -> None:
    assert set(MADE) == set(_KINDS)


def test_only_stores_are_read_as_stores(tmp_path: Path) -> None:
    zarr.create_group(str(tmp_path / "slide.zarr"))  # an OME-Zarr slide looks so
    (tmp_path / "plain.zarr").mkdir()
    (tmp_path / "slide.svs").write_bytes(b"")
    names = ("slide.zarr", "plain.zarr", "slide.svs", "missing.h5")
    assert not any(is_store(tmp_path / name) for name in names)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["coords"] = [1]
    assert is_store(tmp_path / "other.h5")
    with pytest.raises(StoreError, match="PG-O15"):
        store_facts(tmp_path / "other.h5")
