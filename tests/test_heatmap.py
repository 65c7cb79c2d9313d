"""Who is asked about a slide, what is said, and what is written of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from helpers_exchange import write_features, write_patches
from helpers_heatmap import MeanColor, tumor_head, write_run, write_slides
from typer.testing import CliRunner

torch = pytest.importorskip("torch")

from pathgen.cli import app  # noqa: E402
from pathgen.data.made import made_how  # noqa: E402
from pathgen.encoders import load_encoder  # noqa: E402
from pathgen.errors import DataError, NoInputError, RunError, StorageError  # noqa: E402
from pathgen.evaluate.mil import read_attention, train_mil  # noqa: E402
from pathgen.evaluate.predictions import read_predictions  # noqa: E402
from pathgen.exchange import verify  # noqa: E402
from pathgen.extract import extract_features  # noqa: E402
from pathgen.heatmap import (  # noqa: E402
    HeatmapConfig,
    SlideModel,
    draw_heatmaps,
    find_subjects,
    load_model,
)
from pathgen.heatmap.heads import load_heads  # noqa: E402
from pathgen.models.encoder import Encoder, EncoderConfig  # noqa: E402
from pathgen.models.mil import MILConfig, build_head  # noqa: E402
from pathgen.runs import save_model  # noqa: E402
from pathgen.stores.features import FeatureStore  # noqa: E402
from pathgen.stores.patches import PatchStore  # noqa: E402
from pathgen.tiling import TileConfig, tile  # noqa: E402
from pathgen.train.mil import MILTrainConfig  # noqa: E402

PLAIN = HeatmapConfig(longest=240, ome="none", top=2)
NAMES = [f"S{i:02}" for i in range(9)]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Patches, features and two cross-validated runs of nine small slides."""
    root = tmp_path_factory.mktemp("cohort")
    for i, name in enumerate(NAMES):
        cells = [(row, column) for row in range(3) for column in range(2 + i % 3)]
        patches = write_patches(root / f"tiles/{name}.h5", name, cells)
        write_features(root / f"features/{name}.h5", patches, dim=5)
    lines = ["slide,label", *(f"{name},{'ab'[i % 2]}" for i, name in enumerate(NAMES))]
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    config = MILTrainConfig(epochs=2, folds=3, valid_share=0.2, device="cpu")
    for name, repeats in (("run", 1), ("twice", 2)):
        train_mil(root / "features", root / "labels.csv", root / name, config, repeats=repeats)
    return root


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_slides(tmp_path_factory.mktemp("slides"))


def model(cohort: Path, run: str = "run") -> SlideModel:
    return load_model(cohort / run, features=cohort / "features", config=PLAIN, device="cpu")


def test_a_slide_is_answered_by_the_head_that_did_not_see_it(cohort: Path) -> None:
    """Attention and probabilities are those that the cross-validation wrote for it."""
    asked, attention = model(cohort), read_attention(cohort / "run")
    table = read_predictions(cohort / "run/predictions.csv")
    splits = json.loads((cohort / "run/splits.json").read_text())
    for row, name in enumerate(table.names):
        found = asked.heatmap(cohort / f"features/{name}.h5")
        (fold,) = [i for i, split in enumerate(splits) if name in split["test"]]
        assert found.voices.names == (f"fold-{fold}",)
        assert found.voices.seen == "held out"
        assert np.allclose(found.attention, attention[name], atol=1e-6)
        assert np.allclose(found.answer.values, table.probabilities[row], atol=1e-5)
        assert found.answer.predicted == table.predicted[row]


def test_repeats_are_averaged(cohort: Path) -> None:
    attention = read_attention(cohort / "twice")
    found = model(cohort, "twice").heatmap(cohort / "features/S04.h5")
    assert sorted(name.split("/")[0] for name in found.voices.names) == ["repeat-0", "repeat-1"]
    assert np.allclose(found.attention, attention["S04"], atol=1e-6)


def test_a_new_slide_is_answered_by_all_heads(cohort: Path, tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "new.h5", "new")
    features = write_features(tmp_path / "f/new.h5", patches, dim=5)
    found = model(cohort).heatmap(features)
    assert len(found.voices.names) == 3
    assert "not in the run" in found.voices.sentence()
    single = [
        load_model(cohort / f"run/fold-{i}", config=PLAIN, device="cpu").heatmap(features)
        for i in range(3)
    ]
    assert np.allclose(found.attention, np.mean([one.attention for one in single], 0), atol=1e-6)
    values = np.mean([one.answer.values for one in single], 0)
    assert np.allclose(found.answer.values, values)
    assert found.attention.sum() == pytest.approx(1, abs=1e-5)


def test_one_fold_says_when_it_learned_from_the_slide(cohort: Path) -> None:
    splits = json.loads((cohort / "run/splits.json").read_text())
    fold = load_model(cohort / "run/fold-1", config=PLAIN, device="cpu")
    for part, said in (("train", "trained on"), ("valid", "trained on"), ("test", "held out")):
        name = splits[1][part][0]
        assert fold.heatmap(cohort / f"features/{name}.h5").voices.seen == said
    bare = load_model(cohort / "run/fold-1/model", config=PLAIN, device="cpu")
    assert bare.heads.classes == ("a", "b")


def test_a_model_folder_alone_does_not_know(cohort: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "head", load_heads(cohort / "run/fold-0").heads[0].module)
    bare = load_model(tmp_path / "head", config=PLAIN, device="cpu")
    found = bare.heatmap(cohort / "features/S00.h5")
    assert found.voices.seen == "unknown"
    assert found.answer.names == ("class 0", "class 1")


@pytest.mark.parametrize("head", ["abmil", "mean", "max", "transmil", "dsmil", "transformer"])
def test_evidence_sums_to_the_answer_of_the_classes(
    cohort: Path, tmp_path: Path, head: str
) -> None:
    """With the empty bag's logits it is the logits, as far as softmax sees them: without a mean."""
    module = build_head(MILConfig(dim=5, outputs=3, head=head, embed=16, hidden=4)).eval()
    save_model(tmp_path / "head", module)
    found = load_model(tmp_path / "head", config=PLAIN, device="cpu").heatmap(
        cohort / "features/S02.h5"
    )
    if found.evidence is None:
        assert head in ("transmil", "dsmil", "transformer")
        assert found.maps == ("attention",)
        return
    # Of every patch alone: what it adds beyond the mean class.
    assert np.allclose(found.evidence.sum(1), 0, atol=1e-6)
    assert np.abs(found.evidence).max() > 0
    with torch.inference_mode():
        empty = module(torch.zeros(1, 0, 5), torch.zeros(1, 0, dtype=torch.bool)).logits[0].numpy()
    logits = found.evidence.sum(0) + empty - empty.mean()
    chances = np.exp(logits) / np.exp(logits).sum()
    assert np.allclose(chances, found.answer.values, atol=1e-5)


@pytest.mark.parametrize(
    ("target", "outputs", "maps", "names"),
    [
        ("ordinal", 2, ("attention", "a higher class"), ("class 0", "class 1", "class 2")),
        ("regression", 1, ("attention", "a higher value"), ("value",)),
        ("survival", 1, ("attention", "a higher risk"), ("risk",)),
    ],
)  # fmt: skip
def test_other_targets_have_maps_too(
    cohort: Path, tmp_path: Path, target: str, outputs: int, maps: tuple[str, ...],
    names: tuple[str, ...],
) -> None:  # fmt: skip
    config = MILConfig(dim=5, outputs=outputs, target=target, embed=8, hidden=4)
    save_model(tmp_path / "head", build_head(config))
    asked = load_model(tmp_path / "head", config=PLAIN, device="cpu")
    found = asked.heatmap(cohort / "features/S02.h5")
    assert found.maps == maps
    assert found.answer.names == names
    found.write(tmp_path / "out")
    facts = json.loads((tmp_path / "out/prediction.json").read_text())
    assert facts["target"] == target
    if target == "ordinal":  # the median class: as many thresholds as are passed with over one half
        values = np.array(list(facts["probabilities"].values()))
        assert facts["predicted"] == f"class {int((1 - values.cumsum()[:-1] > 0.5).sum())}"
    else:
        assert facts["predicted"] == pytest.approx(found.answer.values[0])


# What does not fit


def test_features_of_another_encoder_are_refused(cohort: Path, tmp_path: Path) -> None:
    for dim, encoder in ((6, "vit"), (5, "another")):
        patches = write_patches(tmp_path / f"{dim}{encoder}.h5", "S1")
        features = write_features(tmp_path / f"f/{dim}{encoder}.h5", patches, dim, encoder)
        with pytest.raises(DataError, match="PG-H02"):
            model(cohort).heatmap(features)


def test_a_slide_without_features_or_encoder_is_refused(cohort: Path, tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "x.h5", "x")
    with pytest.raises(DataError, match=r"PG-H01.*--encoder"):
        model(cohort).heatmap(patches)


def test_places_without_heads_are_named(tmp_path: Path, cohort: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        load_model(tmp_path / "none")
    with pytest.raises(RunError, match="PG-T04"):
        load_model(cohort / "features")
    (tmp_path / "unfinished/fold-0").mkdir(parents=True)
    with pytest.raises(RunError, match="No fold of the run is finished"):
        load_model(tmp_path / "unfinished")


def test_a_store_of_another_file_of_that_name_is_refused(
    slides: dict[str, Path], tmp_path: Path
) -> None:
    config = TileConfig(patch_size=128, mpp=1.0, min_hematoxylin=0)
    report = tile(slides["plain"], tmp_path / "tiles", config, workers=0)
    extract_features(MeanColor(), report.stores, tmp_path / "features")
    run = write_run(tmp_path / "run", [tumor_head()], [{"train": [], "valid": [], "test": []}])
    other = tmp_path / "other/plain.svs"
    other.parent.mkdir()
    other.write_bytes(slides["plain"].read_bytes() + b"changed")
    asked = load_model(run, features=tmp_path / "features", config=PLAIN, device="cpu")
    assert len(asked.heatmap(slides["plain"])) == len(PatchStore.open(report.stores[0]))
    with pytest.raises(DataError, match="PG-H05"):
        asked.heatmap(other)


# Straight from slides


def test_a_slide_is_cut_as_the_training_was(slides: dict[str, Path], tmp_path: Path) -> None:
    """The same attention as from stored features; with overlap a finer map of the same."""
    config = TileConfig(patch_size=64, mpp=1.0)
    features = extract_features(
        MeanColor(), [slides["plain"], slides["bounded"]], tmp_path / "features", tile=config
    )
    run = write_run(tmp_path / "run", [tumor_head()], [{"train": [], "valid": [], "test": []}])
    made = made_how(FeatureStore.open(path) for path in features)
    (run / "features.json").write_text(json.dumps(made))
    asked = load_model(run, encoder=MeanColor(), config=PLAIN, device="cpu")
    fresh = asked.heatmap(slides["bounded"])
    kept = load_model(run, features=tmp_path / "features", config=PLAIN, device="cpu").heatmap(
        slides["bounded"]
    )
    assert np.array_equal(fresh.place.coords, kept.place.coords)
    assert np.allclose(fresh.attention, kept.attention)
    assert any("cut from the slide" in note for note in fresh.notes)
    finer = PLAIN.model_copy(update={"overlap": 0.5})
    fine = load_model(run, encoder=MeanColor(), config=finer, device="cpu").heatmap(
        slides["bounded"]
    )
    assert len(fine) > 3 * len(fresh)
    assert fine.place.side == fresh.place.side
    step = np.diff(np.unique(fine.place.coords[:, 0]))
    assert set(step.tolist()) == {64}  # half of 64 pixels of 1 um at 0.5 um


def test_without_word_of_the_tiling_it_is_asked_for(
    slides: dict[str, Path], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", [tumor_head()], [{"train": [], "valid": [], "test": []}])
    asked = load_model(run, encoder=MeanColor(), config=PLAIN, device="cpu")
    with pytest.raises(DataError, match=r"PG-H01.*--patch-size"):
        asked.heatmap(slides["plain"])


def test_the_command_encodes_a_slide_and_keeps_the_features(
    slides: dict[str, Path], tmp_path: Path
) -> None:
    """By name of the encoder and settings of the training; the second time nothing is encoded."""
    save_model(tmp_path / "encoder", Encoder(EncoderConfig(
        name="vit_tiny_patch16_224", image_size=32, kwargs={"depth": 1, "embed_dim": 24,
                                                            "num_heads": 2}
    )))  # fmt: skip
    encoder = load_encoder(tmp_path / "encoder", "cpu")
    module = build_head(MILConfig(dim=encoder.dim, outputs=2, embed=8, hidden=4))
    run = write_run(tmp_path / "run", [module], [{"train": ["x"], "valid": [], "test": []}])
    facts = {"stage": "mil", "config": {}, "inputs": {"encoder": encoder.id}}
    (run / "provenance.json").write_text(json.dumps(facts))
    patches = {"patch_size": 64, "target_mpp": 1.0, "overlap": 0}
    (run / "features.json").write_text(json.dumps({"patches": patches}))
    given = ["heatmap", str(run), str(slides["bounded"]), "-o", str(tmp_path / "out"), "--encoder",
             str(tmp_path / "encoder"), "--device", "cpu", "--ome", "none"]  # fmt: skip
    done = CliRunner().invoke(app, given)
    assert done.exit_code == 0, done.output
    store = tmp_path / "out/features/bounded/bounded.h5"
    stamp = store.stat().st_mtime_ns
    with FeatureStore.open(store) as features:
        count = len(features)
    said = json.loads((tmp_path / "out/bounded/prediction.json").read_text())
    assert said["patches"] == count
    assert said["slide_was"] == "new"
    assert said["patch_um"] == pytest.approx(64)
    again = CliRunner().invoke(app, given)
    assert again.exit_code == 0, again.output
    assert store.stat().st_mtime_ns == stamp


# Many slides


def test_a_slide_is_known_by_the_end_of_its_name(cohort: Path, tmp_path: Path) -> None:
    """A file given alone has no folder in its name; it must not be taken for new."""
    run = write_run(
        tmp_path / "run", [tumor_head()] * 2,
        [{"train": ["site/a"], "valid": [], "test": ["site/b"]},
         {"train": ["site/b"], "valid": [], "test": ["site/a"]}],
    )  # fmt: skip
    heads = load_heads(run)
    assert heads.known_as("b") == "site/b"
    assert heads.for_slide(heads.known_as("b"))[1].names == ("fold-0",)
    assert heads.known_as("c") == "c"
    assert heads.for_slide("c")[1].seen == "new"


def test_a_name_that_may_be_several_slides_is_not_called_new(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", [tumor_head()],
        [{"train": ["one/a"], "valid": [], "test": ["two/a"]}],
    )  # fmt: skip
    heads = load_heads(run)
    assert heads.known_as("a") == "a"
    assert heads.for_slide("a")[1].seen == "unknown"


def test_one_bad_slide_leaves_the_others_alone(cohort: Path, tmp_path: Path) -> None:
    empty = write_patches(tmp_path / "tiles/empty.h5", "empty", [])
    write_features(tmp_path / "features/empty.h5", empty, dim=5)
    other = write_patches(tmp_path / "tiles/other.h5", "other")
    write_features(tmp_path / "features/other.h5", other, dim=7)
    (tmp_path / "features/torn.h5").write_bytes(b"no store")
    given = [tmp_path / "features", cohort / "features/S03.h5", cohort / "features/S05.h5"]
    subjects = find_subjects(given, patches=cohort / "tiles")
    report = draw_heatmaps(model(cohort), subjects, tmp_path / "out")
    with (tmp_path / "out/heatmaps.csv").open() as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    assert {name: row["state"] for name, row in rows.items()} == {
        "S03": "done", "S05": "done", "empty": "empty", "other": "failed", "torn": "failed",
    }  # fmt: skip
    assert (rows["empty"]["reason"], rows["other"]["reason"]) == ("PG-H06", "PG-H02")
    assert report.counts == {"slides": 5, "done": 2, "empty": 1, "failed": 2}
    assert (tmp_path / "out/S03/top.jpg").is_file()
    assert not (tmp_path / "out/empty").exists()
    # Another look at the same place: what is there stays, and that is said slide by slide.
    asked = model(cohort)
    asked.config = PLAIN.model_copy(update={"top": 1})
    report = draw_heatmaps(asked, subjects, tmp_path / "out")
    assert {row.slide: row.reason for row in report.rows}["S03"] == "PG-H07"
    report = draw_heatmaps(asked, subjects, tmp_path / "out", overwrite=True)
    assert report.counts["done"] == 2


def test_the_command_writes_everything_and_says_where(cohort: Path, tmp_path: Path) -> None:
    out = tmp_path / "maps"
    done = CliRunner().invoke(
        app,
        ["heatmap", str(cohort / "run"), str(cohort / "features/S03.h5"), "-o", str(out),
         "--patches", str(cohort / "tiles"), "--deepzoom", "--top", "3", "--device", "cpu",
         "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["done"] == 1
    found = {path.name for path in (out / "S03").iterdir()}
    assert found == {
        "attention.png", "evidence-a.png", "evidence-b.png", "heatmap.geojson", "heatmap.dzi",
        "heatmap_files", "heatmap.ome.tiff", "top.jpg", "bottom.jpg", "prediction.json",
    }  # fmt: skip
    assert not [f for f in verify(out / "S03", "qupath").findings if f.state == "error"]
    bad = write_features(tmp_path / "bad.h5", cohort / "tiles/S03.h5", dim=9)
    done = CliRunner().invoke(app, ["heatmap", str(cohort / "run"), str(bad), "-o", str(out)])
    assert done.exit_code == 3


def test_equal_heatmaps_give_equal_bytes_and_others_are_not_replaced(
    cohort: Path, tmp_path: Path
) -> None:
    config = HeatmapConfig(longest=240, deepzoom=True, top=4)
    asked = load_model(cohort / "run", patches=cohort / "tiles", config=config, device="cpu")
    found = asked.heatmap(cohort / "features/S03.h5")
    for folder in ("one", "two"):
        found.write(tmp_path / folder)
    one, two = (
        {p.relative_to(tmp_path / f): p.read_bytes() for p in (tmp_path / f).rglob("*.*")
         if p.is_file()} for f in ("one", "two")
    )  # fmt: skip
    assert one == two
    stamp = (tmp_path / "one/prediction.json").stat().st_mtime_ns
    found.write(tmp_path / "one")  # the same: left as it is
    assert (tmp_path / "one/prediction.json").stat().st_mtime_ns == stamp
    other = asked.heatmap(cohort / "features/S03.h5", config=PLAIN)
    with pytest.raises(StorageError, match="PG-H07"):
        other.write(tmp_path / "one")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("my own")
    with pytest.raises(StorageError, match="not a heatmap"):
        found.write(tmp_path / "mine")
    assert (tmp_path / "mine/notes.txt").read_text() == "my own"


def test_a_slide_without_patches_is_said_so(cohort: Path, tmp_path: Path) -> None:
    patches = write_patches(tmp_path / "e.h5", "e", [])
    features = write_features(tmp_path / "f/e.h5", patches, dim=5)
    with pytest.raises(NoInputError, match="slide without patches"):
        model(cohort).heatmap(features)
