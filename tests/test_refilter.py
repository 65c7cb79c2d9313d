"""Choosing among tiled patches: the same as tiling with those limits, without the slides."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers_tiling import tissue_image, write_svs
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from pathgen.cli import main
from pathgen.commit import PREFIX
from pathgen.data.sources import open_sources
from pathgen.errors import ConfigError, NoInputError, StoreError
from pathgen.provenance import Provenance
from pathgen.stores import PatchStore
from pathgen.stores.patches import MEASURES, PatchSpec, SlideFacts
from pathgen.tiling import TileConfig, tile
from pathgen.tiling.refiltering import refilter
from pathgen.tiling.selection import CAUSES, Histogram, Selection, select
from pathgen.tiling.task import LIMITS

OPEN = TileConfig(patch_size=64, thumbnail_px=256, min_hematoxylin=0, min_tissue=0)
#: Drops some patches by each limit.
STRICT = {
    "min_tissue": 0.6, "min_hematoxylin": 0.02, "min_focus": 0.12, "max_white": 0.3, "max_pen": 0.3,
}  # fmt: skip


def mixed_image() -> NDArray[np.uint8]:
    """Tissue of which a part is out of focus and another is drawn on."""
    picture = Image.fromarray(tissue_image(1280, 896))
    box = (300, 200, 700, 500)
    picture.paste(picture.crop(box).filter(ImageFilter.GaussianBlur(8)), box)
    image = np.array(picture)
    image[560:600, 500:900] = (30, 60, 170)
    return image


@pytest.fixture(scope="module")
def tiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two tiled slides, one without tissue and one that fails."""
    folder = tmp_path_factory.mktemp("slides")
    write_svs(folder / "s/mixed.svs", mixed_image())
    write_svs(folder / "s/plain.svs", tissue_image(640, 512, seed=4))
    write_svs(folder / "s/glass.svs", np.full((512, 512, 3), 243, np.uint8))
    (folder / "s/broken.svs").write_bytes(b"no slide")
    tile(folder / "s", folder / "tiles", OPEN, workers=0)
    return folder


@pytest.mark.parametrize("kind", ["h5", "zarr"])
def test_it_is_as_if_the_slides_had_been_tiled_so(tiled: Path, tmp_path: Path, kind: str) -> None:
    config = OPEN.model_copy(update={"store": kind})
    tile(tiled / "s", tmp_path / "open", config, workers=0)
    strict = config.model_copy(update=STRICT)
    wanted = tile(tiled / "s", tmp_path / "strict", strict, workers=0)
    got = refilter(tmp_path / "open", tmp_path / "chosen", Selection(limits=STRICT))
    assert 0 < wanted.counts["patches"] < sum(got.before.values())
    assert all(wanted.counts[f"dropped_{cause}"] for cause in ("tissue", "stain", "quality"))
    assert [asdict(row) for row in got.slides.rows] == [asdict(row) for row in wanted.rows]
    for one, other in zip(wanted.stores, got.slides.stores, strict=True):
        first, second = PatchStore.open(one), PatchStore.open(other)
        second.verify(deep=True)
        assert first.encoded() == second.encoded()
        for name, column in first.table.columns.items():
            if not column.is_bytes:
                np.testing.assert_array_equal(first.table.read(name), second.table.read(name))
        assert dict(first.table.columns) == dict(second.table.columns)
        same = set(first.attrs) - {"provenance", "seal"}
        assert {name: second.attrs[name] for name in same} == {n: first.attrs[n] for n in same}
        assert (second.provenance.stage, second.id != first.id) == ("refilter", True)
    names = ("slides.csv", "slides.json")
    for name in names:
        assert (tmp_path / "strict" / name).read_bytes() == (
            tmp_path / "chosen" / name
        ).read_bytes()
    said = yaml.safe_load((tmp_path / "chosen/config.yaml").read_text())
    assert {name: said[name] for name in STRICT} == STRICT


def test_equal_choices_give_equal_bytes_and_are_kept(tiled: Path, tmp_path: Path) -> None:
    chosen = Selection(limits={"min_focus": 0.12})
    for name in ("one", "two"):
        refilter(tiled / "tiles", tmp_path / name, chosen)
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*.*"))
    for name in files:
        if (tmp_path / "one" / name).is_file() and ".pathgen-lock" not in name.name:
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "one").rglob("*.h5")}
    again = refilter(tiled / "tiles", tmp_path / "one", chosen)
    assert again.slides.kept == len(before) == 3
    assert {p: p.stat().st_mtime_ns for p in before} == before
    other = Selection(limits={"min_focus": 0.2})
    with pytest.raises(ConfigError, match=r"PG-O19.*--overwrite"):
        refilter(tiled / "tiles", tmp_path / "one", other)
    done = refilter(tiled / "tiles", tmp_path / "one", other, overwrite=True)
    assert done.slides.counts["patches"] == len(PatchStore.open(tmp_path / "one/mixed.h5")) + len(
        PatchStore.open(tmp_path / "one/plain.h5")
    )


def test_a_choice_of_a_choice_is_both(tiled: Path, tmp_path: Path) -> None:
    refilter(tiled / "tiles", tmp_path / "a", Selection(limits={"min_focus": 0.12}))
    refilter(tmp_path / "a", tmp_path / "b", Selection(limits={"max_white": 0.3}))
    both = Selection(limits={"max_white": 0.3, "min_focus": 0.12})
    refilter(tiled / "tiles", tmp_path / "c", both)
    one, other = (PatchStore.open(tmp_path / name / "mixed.h5") for name in "bc")
    assert one.encoded() == other.encoded()
    assert one.provenance.config == {**other.provenance.config}
    assert (tmp_path / "b/slides.csv").read_bytes() == (tmp_path / "c/slides.csv").read_bytes()


def test_what_tiling_dropped_cannot_be_asked_back(tiled: Path, tmp_path: Path) -> None:
    config = OPEN.model_copy(update={"min_hematoxylin": 0.02, "max_pen": 0.5})
    tile(tiled / "s/plain.svs", tmp_path / "tiles", config, workers=0)
    for limits in ({"min_hematoxylin": 0.01}, {"max_pen": 0.6}):
        with pytest.raises(ConfigError, match=r"PG-C09.*what lies between.*tile again with --set"):
            refilter(tmp_path / "tiles", tmp_path / "out", Selection(limits=limits))
    refilter(tmp_path / "tiles", tmp_path / "out", Selection(limits={"min_hematoxylin": 0.1}))
    with pytest.raises(ConfigError, match=r"min_hematoxylin is 0\.05, and it was made with 0\.1"):
        refilter(tmp_path / "out", tmp_path / "more", Selection(limits={"min_hematoxylin": 0.05}))
    assert not (tmp_path / "more").exists()


def test_a_plan_writes_nothing(tiled: Path, tmp_path: Path) -> None:
    chosen = Selection(limits={"min_focus": 0.12})
    planned = refilter(tiled / "tiles", tmp_path / "out", chosen, plan=True)
    assert not (tmp_path / "out").exists()
    done = refilter(tiled / "tiles", tmp_path / "out", chosen)
    assert planned.slides.counts == done.slides.counts
    assert set(planned.scores) == set(MEASURES)
    total = sum(planned.before.values())
    assert all(one.counts.sum() == total for one in planned.scores.values())
    json.dumps(planned.to_dict())
    with pytest.raises(ConfigError, match="nothing to choose by"):
        refilter(tiled / "tiles", tmp_path / "more", Selection())
    assert refilter(tiled / "tiles", tmp_path / "more", Selection(), plan=True).slides.counts[
        "patches"
    ] == total  # fmt: skip


def test_thumbnails_veil_what_is_gone_and_nothing_else(tiled: Path, tmp_path: Path) -> None:
    done = refilter(tiled / "tiles", tmp_path / "out", Selection(limits={"min_focus": 0.12}))
    rows = {row.slide: row for row in done.slides.rows}
    before, after = (
        np.asarray(Image.open(folder / "thumbnails/mixed.jpg")).astype(float)
        for folder in (tiled / "tiles", tmp_path / "out")
    )
    source = PatchStore.open(tiled / "tiles/mixed.h5")
    kept = {tuple(c) for c in PatchStore.open(tmp_path / "out/mixed.h5").coords().tolist()}
    scale = before.shape[1] / source.slide.width
    changes: dict[bool, list[float]] = {True: [], False: []}
    for x, y in source.coords().tolist():
        inner = [slice(round((v + 16) * scale), round((v + 48) * scale)) for v in (y, x)]
        change = np.abs(after[tuple(inner)] - before[tuple(inner)]).mean()
        changes[(x, y) in kept].append(change)
    assert max(changes[True]) < 25 < min(changes[False])
    assert rows["mixed"].thumbnail == "thumbnails/mixed.jpg"
    untouched = Selection(limits={"min_focus": 0.0001})
    refilter(tiled / "tiles", tmp_path / "all", untouched)


def test_the_result_is_an_input_like_any_other(tiled: Path, tmp_path: Path) -> None:
    refilter(tiled / "tiles", tmp_path / "out", Selection(limits={"min_focus": 0.12}))
    sources = open_sources(tmp_path / "out")
    assert sorted(source.name for source in sources) == ["glass", "mixed", "plain"]
    assert all(len(source.images(slice(0, 2))) == min(2, len(source)) for source in sources)
    main_ok(["report", str(tmp_path / "out"), "-o", str(tmp_path / "page.html"), "--quiet"])
    page = (tmp_path / "page.html").read_text()
    assert "of low quality" in page
    assert "do not agree" not in page


def test_the_ledger_keeps_every_slide(tiled: Path, tmp_path: Path) -> None:
    done = refilter(tiled / "tiles", tmp_path / "out", Selection(limits={"min_focus": 0.99}))
    rows = {row.slide: row for row in done.slides.rows}
    assert {name: (row.state, row.reason) for name, row in rows.items()} == {
        "broken": ("failed", "PG-S02"), "glass": ("empty", "no_tissue"),
        "mixed": ("empty", "filtered"), "plain": ("empty", "filtered"),
    }  # fmt: skip
    for row in rows.values():
        dropped = sum(v for k, v in asdict(row).items() if k.startswith("dropped_"))
        assert row.candidates == dropped + row.patches
    assert len(PatchStore.open(tmp_path / "out/mixed.h5")) == 0


def test_stores_alone_and_folders_of_folders(tiled: Path, tmp_path: Path) -> None:
    shutil.copytree(tiled / "tiles", tmp_path / "in/batch-1")
    chosen = Selection(limits={"min_focus": 0.12})
    nested = refilter(tmp_path / "in", tmp_path / "nested", chosen)
    assert {row.store for row in nested.slides.rows} == {
        f"batch-1/{name}.h5" for name in ("glass", "mixed", "plain")
    }
    single = refilter(tiled / "tiles/mixed.h5", tmp_path / "single", chosen)
    (row,) = single.slides.rows
    whole = refilter(tiled / "tiles", tmp_path / "whole", chosen)
    (same,) = (r for r in whole.slides.rows if r.slide == "mixed")
    assert (row.candidates, row.patches, row.store) == (same.candidates, same.patches, "mixed.h5")
    with pytest.raises(ConfigError, match="two stores would have one name"):
        refilter([tiled / "tiles", tiled / "tiles/mixed.h5"], tmp_path / "twice", chosen)


def test_sources_and_strangers_are_left_alone(tiled: Path, tmp_path: Path) -> None:
    chosen = Selection(limits={"min_focus": 0.12})
    shutil.copytree(tiled / "tiles", tmp_path / "tiles")
    before = {p: p.read_bytes() for p in (tmp_path / "tiles").rglob("*.*") if p.is_file()}
    for out in (tmp_path / "tiles", tmp_path / "tiles/new"):
        for plan in (True, False):
            with pytest.raises(ConfigError, match="PG-O19"):
                refilter(tmp_path / "tiles", out, chosen, overwrite=True, plan=plan)
    (tmp_path / "used").mkdir()
    shutil.copy(tmp_path / "tiles/plain.h5", tmp_path / "used/other.h5")
    with pytest.raises(ConfigError, match=r"PG-O19.*other\.h5"):
        refilter(tmp_path / "tiles", tmp_path / "used", chosen, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/mixed.h5").write_bytes(b"somebody's")
    with pytest.raises(ConfigError, match="PG-O19"):
        refilter(tmp_path / "tiles", tmp_path / "mine", chosen, overwrite=True)
    assert (tmp_path / "mine/mixed.h5").read_bytes() == b"somebody's"
    assert {p: p.read_bytes() for p in before} == before
    assert not list(tmp_path.rglob(f"{PREFIX}*"))


def test_what_is_not_there_is_said(tiled: Path, tmp_path: Path) -> None:
    chosen = Selection(limits={"min_focus": 0.12})
    with pytest.raises(NoInputError, match="PG-N01"):
        refilter(tmp_path / "nowhere", tmp_path / "out", chosen)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoInputError, match="PG-N01"):
        refilter(tmp_path / "empty", tmp_path / "out", chosen)
    for limits in ({"min_sharpness": 0.1}, {"max_image": 1.0}):
        with pytest.raises(ConfigError, match=r"PG-C09.*no measure"):
            refilter(tiled / "tiles", tmp_path / "out", Selection(limits=limits))
    with pytest.raises(ConfigError, match=r"PG-C09.*no class 'tumor'.*--masks"):
        refilter(tiled / "tiles", tmp_path / "out", Selection(classes={"tumor": 0.5}))
    with pytest.raises(ValueError, match="min_<measure>"):
        Selection(limits={"focus": 0.1})
    shutil.copytree(tiled / "tiles", tmp_path / "tiles")
    (tmp_path / "tiles/plain.h5").unlink()
    with pytest.raises(StoreError, match="store is missing"):
        refilter(tmp_path / "tiles", tmp_path / "out", chosen)


def put_store(path: Path, count: int, seed: int, classes: tuple[str, ...] = ()) -> PatchStore:
    rng = np.random.default_rng(seed)
    spec = PatchSpec(size=16, mpp=0.5)
    facts = SlideFacts(name=path.stem, identity="0", width=4096, height=4096)
    geometry = {"patch_size_level0": 16.0, "read_level": 0, "mpp_error": 0.0, "level0_mpp": 0.5}
    made = Provenance(stage="tile", config={}, inputs={"slide": str(seed)})
    with PatchStore.create(
        path, spec, made, codec="png", slide=facts, geometry=geometry,
        class_names=classes or None,
    ) as writer:  # fmt: skip
        shares = {"classes": rng.random((count, len(classes))).astype(np.float32)}
        writer.append(
            image=[rng.bytes(int(n)) for n in rng.integers(1, 40, count)],
            coords=rng.integers(0, 4000, (count, 2)),
            grid=rng.integers(0, 200, (count, 2)).astype(np.int32),
            made=np.ones(count, np.uint8),
            **{name: rng.random(count).astype(np.float32) for name in MEASURES},
            **(shares if classes else {}),
        )
    return PatchStore.open(path)


@given(
    count=st.integers(0, 150),
    seed=st.integers(0, 1000),
    limits=st.dictionaries(
        st.sampled_from([f"{end}_{name}" for end in ("min", "max") for name in MEASURES]),
        st.floats(0, 1), max_size=4,
    ),
    classes=st.dictionaries(st.sampled_from(["tumor", "stroma"]), st.floats(0, 1)),
)  # fmt: skip
@settings(max_examples=25)
def test_exactly_the_rows_that_pass_are_kept(
    tmp_path_factory: pytest.TempPathFactory, count: int, seed: int,
    limits: dict[str, float], classes: dict[str, float],
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("rows")
    store = put_store(folder / "a.h5", count, seed, ("tumor", "stroma"))
    wanted = Selection(limits=limits, classes=classes)
    found = select(store, wanted)
    assert sum(found.dropped.values()) + len(found.rows) == count
    assert set(found.dropped) == set(CAUSES)
    shares = dict(zip(store.class_names, store.class_shares().T, strict=True))
    passing = [
        row for row in range(count)
        if all(
            store.measure(name[4:])[row] >= np.float32(v) if name.startswith("min")
            else store.measure(name[4:])[row] <= np.float32(v)
            for name, v in limits.items()
        ) and (not classes or any(shares[n][row] >= np.float32(v) for n, v in classes.items()))
    ]  # fmt: skip
    assert found.rows.tolist() == passing
    if limits or classes:
        refilter(folder / "a.h5", folder / "out", wanted)
        kept = PatchStore.open(folder / "out/a.h5")
        assert kept.encoded() == [store.encoded([row])[0] for row in passing]
        np.testing.assert_array_equal(kept.class_shares(), store.class_shares(passing))


def test_every_limit_of_tiling_names_a_measure() -> None:
    assert set(LIMITS.values()) <= set(MEASURES)
    assert all(name in TileConfig.model_fields for name in LIMITS)
    limits = {name: getattr(TileConfig(), name) for name in LIMITS}
    keeps_all = {name: 0 if name.startswith("min") else 1 for name in LIMITS}
    assert {n for n in LIMITS if limits[n] != keeps_all[n]} == {"min_tissue", "min_hematoxylin"}


def test_a_histogram_holds_every_value() -> None:
    values = np.array([0.1, 0.1, 0.4, 0.9], np.float32)
    one = Histogram.of(values, bins=4)
    assert one.counts.tolist() == [2, 1, 0, 1]
    assert one.line() == "0.100 |@+ +| 0.900  median 0.250"
    assert Histogram.of(np.full(3, 0.5, np.float32)).counts.sum() == 3


def main_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(arguments)
    assert done.value.code in (0, None)


def test_the_command(tiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiles, out = str(tiled / "tiles"), str(tmp_path / "out")
    main_ok(["refilter", tiles, "-o", out, "--min-focus", "0.12", "--max", "white=0.3", "--plan"])
    text = capsys.readouterr().out
    assert "would be kept" in text
    assert text.rstrip().endswith("Next: the same command without --plan")
    assert not (tmp_path / "out").exists()
    main_ok(["refilter", tiles, "-o", out, "--min-focus", "0.12", "--max", "white=0.3", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    kept = sum(len(PatchStore.open(p)) for p in (tmp_path / "out").rglob("*.h5"))
    assert result["patches"] == kept < result["had"]
    for words in (["--min", "focus"], ["--max", "=2"], ["--class", "a=b"]):
        with pytest.raises(SystemExit) as refused:
            main(["refilter", tiles, "-o", out, *words])
        assert refused.value.code == 2
