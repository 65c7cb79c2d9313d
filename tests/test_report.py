"""The report says what the folder says, shows what is there, and is harmless and alone."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pathgen.errors import NoInputError, StorageError
from pathgen.provenance import Provenance, environment
from pathgen.report import figures, write_report
from pathgen.report.collect import Unreadable, collect, read_log, spread
from pathgen.report.text import Scrubber
from pathgen.stores import (
    MEASURES,
    FeatureStore,
    PatchSpec,
    PatchStore,
    SlideFacts,
    encode_patch,
)

EVIL = "<img src=x onerror=alert(1)>"
STAGES = ("dino", "autoencoder", "ldm", "augment", "gen-dino")


# --- a study with everything in it ------------------------------------------------------------


def put(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = value if isinstance(value, str) else json.dumps(value)
    path.write_text(text, encoding="utf-8")
    return path


def put_image(path: Path, size: tuple[int, int], seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def made_by(stage: str) -> Provenance:
    return Provenance(stage=stage, config={"seed": 0}, inputs={"slide": "abc"})


def put_store(path: Path, name: str, n: int, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    geometry = {"patch_size_level0": 32.0, "read_level": 0, "mpp_error": 0.0, "level0_mpp": 0.5}
    facts = SlideFacts(name=name, identity="0", width=999, height=999)
    measures = MEASURES
    with PatchStore.create(
        path, PatchSpec(size=32, mpp=0.5), made_by("tile"), codec="png", slide=facts,
        geometry=geometry,
    ) as writer:  # fmt: skip
        images = rng.integers(90, 256, (n, 32, 32, 3), np.uint8)
        writer.append(
            image=[encode_patch(image, "png") for image in images],
            coords=np.arange(2 * n).reshape(n, 2),
            grid=np.arange(2 * n, dtype=np.int32).reshape(n, 2),
            made=np.ones(n, np.uint8),
            **{measure: rng.beta(3, 4, n).astype(np.float32) for measure in measures},
        )
    return path


def ledger_row(slide: str, state: str, **more: object) -> dict:
    row = {
        "slide": slide, "state": state, "reason": "ok", "message": "", "file": f"{slide}.svs",
        "candidates": 0, "dropped_tissue": 0, "dropped_stain": 0, "patches": 0, "mpp": None,
        "mpp_source": None, "label": None, "patient": "PATIENT-77", "store": None,
        "thumbnail": None,
    }  # fmt: skip
    return row | more


def put_tiles(folder: Path, done: int = 5) -> dict:
    rows = []
    for i in range(done):
        name = f"site/slide-{i:02d}"
        put_store(folder / f"{name}.h5", name, 4 + i, seed=i)
        put_image(folder / "thumbnails" / f"{name}.jpg", (700, 500), seed=i)
        rows.append(
            ledger_row(
                name,
                "done",
                candidates=20,
                dropped_tissue=10,
                dropped_stain=6 - i,
                patches=4 + i,
                mpp=0.2528,
                mpp_source="vendor",
                label=str(i % 3),
                store=f"{name}.h5",
                thumbnail=f"thumbnails/{name}.jpg",
            )
        )
    rows += [
        ledger_row("glass", "empty", reason="no_tissue", message="no tissue found"),
        ledger_row(EVIL, "failed", reason="PG-S07", message="no pixel size in /home/jo/x/a b.svs"),
    ]
    states = [row["state"] for row in rows]
    sums = ("candidates", "dropped_tissue", "dropped_stain", "patches")
    counts = {"slides": len(rows), **{s: states.count(s) for s in ("done", "empty", "failed")}}
    counts |= {name: sum(row[name] for row in rows) for name in sums}
    ledger = {"counts": counts, "ignored": {}, "slides": rows}
    put(folder / "slides.json", ledger)
    put(folder / "config.yaml", "patch_size: 32\nmpp: 0.5\nmin_hematoxylin: 0.07\n")
    return ledger


def put_log(path: Path, steps: int, seed: int = 0, valid: bool = False) -> None:
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(0, steps, 2):
        line = {"step": step, "loss": 3 * np.exp(-step / steps * 3) + rng.normal() / 10}
        lines.append(line | ({"valid_loss": 2 + rng.normal() / 10} if valid else {}))
    put(path, "".join(json.dumps(line) + "\n" for line in lines))


def put_run(folder: Path) -> None:
    recipe = {
        "name": "tiny",
        "dino": {"encoder": {"name": "vit_tiny"}, "optim": {"steps": 300, "lr": 5e-4}},
        "augment": {"guidance": 2.0, "alphas": [0.2, 0.8]},
    }
    put(folder / "config.yaml", yaml.safe_dump(recipe))
    put(
        folder / "environment.json",
        environment()
        | {
            "command": [
                "/home/jo/venv/bin/pathgen",
                "pretrain",
                "/data/secret/tiles",
                "-o",
                "runs/tiny",
            ]
        },
    )
    for seed, stage in enumerate(STAGES):
        put(folder / stage / "done.json", {"stage": stage})
        if stage != "augment":
            put_log(folder / stage / "log.jsonl", 300, seed)
            losses = {"loss_first": 3.0, "loss_last": 0.25, "steps": 300}
            put(folder / stage / "metrics.json", losses | ({"psnr": 21.5} if seed == 1 else {}))
    put_image(folder / "autoencoder" / "reconstructions.png", (264, 74))
    put_image(folder / "augment" / "sheet.png", (198, 225), seed=1)
    spread_ = {"count": 9, "mean": 0.61, "q05": 0.4, "q95": 0.8}
    put(
        folder / "augment" / "metrics.json",
        {"images": 9, "generative": spread_, "interpolated": spread_, "random_pair": spread_},
    )


def knn(title: str, accuracy: float) -> dict:
    return {
        "title": title, "accuracy": accuracy, "balanced_accuracy": accuracy - 0.05,
        "macro_f1": accuracy - 0.06, "chance": 0.31, "k": 20, "temperature": 0.07,
        "n_train": 1200, "n_test": 300, "encoder": {"name": "vit_tiny", "id": "00", "dim": 192},
        "per_class": {"gland": {"f1": accuracy}, "stroma": {"f1": 0.5}},
    }  # fmt: skip


def put_mil(folder: Path) -> None:
    fold = {"n": 6, "accuracy": 0.5, "balanced_accuracy": 0.5, "macro_f1": 0.4, "auc": None}
    values = {
        "n": 12, "classes": ["0", "1", "2"], "accuracy": 0.75, "balanced_accuracy": 0.7,
        "macro_f1": 0.69, "auc": 0.8, "qwk": None,
        "undefined": {"qwk": "the classes have no order"},
        "confusion": [[4, 0, 0], [1, 3, 0], [0, 2, 2]],
        "intervals": {"accuracy": [0.5, 0.917], "auc": None, "undefined": {}},
        "folds": [{"fold": 0, **fold}, {"fold": 1, **fold}],
        "fold_mean": {"accuracy": {"mean": 0.512, "sd": 0.0234}, "auc": None,
                      "macro_f1": {"mean": 0.4, "sd": None}},
        "baselines": {"majority": {"accuracy": 0.333, "predicts": "0"}},
    }  # fmt: skip
    put(folder / "metrics.json", values)
    put(folder / "provenance.json", {"stage": "mil"})
    put(
        folder / "predictions.csv",
        "slide,patient,fold,label,predicted,p_0,p_1,p_2\n"
        "right,PATIENT-77,0,0,0,0.9,0.05,0.05\n"
        "unsure,PATIENT-78,0,1,0,0.4,0.35,0.25\n"
        "sure,PATIENT-79,1,2,1,0.01,0.98,0.01\n",
    )
    for i in range(2):
        put_log(folder / f"fold-{i}" / "log.jsonl", 40, seed=i, valid=True)


def put_features(folder: Path) -> None:
    with FeatureStore.create(
        folder / "a.h5", 3, made_by("extract"), encoder={"name": "vit_tiny", "id": "e", "dim": 3},
        source={"id": "s", "name": "a"},
    ) as writer:  # fmt: skip
        writer.append(
            features=np.zeros((2, 3), np.float32),
            coords=np.zeros((2, 2), np.int64),
            label=np.full(2, -1, np.int32),
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "study"
    put_tiles(folder / "tiles")
    put_run(folder / "runs" / "tiny")
    put_features(folder / "features" / "dino")
    for title, accuracy in (("untrained", 0.41), ("DINO", 0.72), ("Gen-DINO", 0.69)):
        put(folder / "evaluation" / f"knn-{title.lower()}.json", knn(title, accuracy))
    put_mil(folder / "mil")
    put(folder / "commands.json", [{"title": "Tile", "command": "pathgen tile s/ -o 'a b' <x"}])
    write_report(folder)
    return folder


@pytest.fixture
def study(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(made, tmp_path / "study")
    (tmp_path / "study" / "report.html").unlink()
    return tmp_path / "study"


class Page(HTMLParser):
    """What a browser would see: elements, text, notes, and table rows by section."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw = path.read_text(encoding="utf-8")
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self.sections: list[str] = []
        self.feed(self.raw)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "section":
            self.sections.append(dict(attrs)["id"] or "")
        if dict(attrs).get("class") == "note":
            self.notes.append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.texts.append((self.open[-1], data))
        if self.open and self.open[-1] == "p" and self.notes and not self.notes[-1]:
            self.notes[-1] = data

    @property
    def text(self) -> str:
        return " ".join(" ".join(data for _, data in self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(made: Path) -> Page:
    return Page(made / "report.html")


def report(folder: Path) -> Page:
    return Page(write_report(folder))


# --- the page as a whole ----------------------------------------------------------------------


def test_each_thing_in_the_folder_has_a_section_in_the_order_of_the_work(page: Page) -> None:
    wanted = ["slides-1", "run-1", "features", "knn", "mil-1", "reproduce"]
    assert page.sections == wanted
    links = [attrs["href"] for attrs in page.all("a")]
    assert links == [f"#{name}" for name in wanted]
    assert page.notes == []


def test_the_page_fetches_nothing_and_runs_nothing(page: Page) -> None:
    assert page.all("img")
    for attrs in page.all("img"):
        assert re.match(r"data:image/(png|jpeg);base64,", attrs["src"] or "")
        assert int(attrs["width"] or 0) > 0
        assert attrs["alt"]
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "base", "form"}
    for _, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on")]
        target = attrs.get("href") or attrs.get("xlink:href") or "#"
        assert target.startswith(("#", "data:image/png"))
    assert "http://" not in page.raw
    assert "https://" not in page.raw
    assert "@import" not in page.raw
    assert not [u for u in re.findall(r"url\((.)", page.raw) if u != "#"]
    policies = [a["content"] for a in page.all("meta") if a.get("http-equiv")]
    assert policies
    assert "default-src 'none'" in (policies[0] or "")


def test_names_are_text_and_never_markup(page: Page) -> None:
    assert EVIL not in page.raw
    assert EVIL in page.text
    assert "pathgen tile s/ -o 'a b' <x" in page.text


def test_ids_are_unique_but_for_equal_definitions(page: Page) -> None:
    """Figures may repeat a marker or a clip path: then both are the same drawing."""
    ids = [attrs["id"] for _, attrs in page.elements if attrs.get("id")]
    repeated = {one for one in ids if ids.count(one) > 1}
    for one in repeated:
        drawings = re.findall(
            rf'<(?:path|clipPath) id="{one}".*?(?:/>|</clipPath>)', page.raw, re.S
        )
        assert len(set(drawings)) == 1


def test_no_trace_of_where_it_was_made(made: Path, page: Page) -> None:
    found = re.sub(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+", "", page.raw)
    for secret in (str(made.parent), "/home/", "/data/secret", socket.gethostname(), "PATIENT-7"):
        assert secret not in found


def test_equal_folders_give_equal_pages(made: Path, page: Page, tmp_path: Path) -> None:
    again = write_report(made, tmp_path / "again.html")
    assert again.read_text(encoding="utf-8") == page.raw


def test_it_works_without_torch(study: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathgen.report import write_report; print(write_report(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(study)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (study / "report.html").exists()


# --- what it says -----------------------------------------------------------------------------


def test_counts_are_the_ledgers(made: Path, page: Page) -> None:
    counts = json.loads((made / "tiles" / "slides.json").read_text())["counts"]
    done, empty, failed, patches = (counts[n] for n in ("done", "empty", "failed", "patches"))
    assert f"{counts['slides']} slides = {done} done + {empty} empty + {failed} failed" in page.text
    assert f"{counts['candidates']} candidate patches = {patches} kept" in page.text
    assert f"with {patches} patches" in page.text
    assert len([1 for attrs in page.all("li") if attrs.get("class") in ("done", "empty", "failed")])


def test_the_slides_come_with_state_reason_and_thumbnail(page: Page) -> None:
    assert "PG-S07: no pixel size in a b.svs" in page.text
    assert "0.2528 (vendor)" in page.text
    pictures = [a for a in page.all("img") if (a["alt"] or "").startswith("thumbnail of site/")]
    assert len(pictures) == 5
    assert all(int(a["width"] or 0) <= 360 for a in pictures)


def test_curves_sheets_and_settings_of_the_run_are_there(page: Page) -> None:
    drawn = [a["aria-label"] or "" for a in page.all("svg")]
    assert "loss of DINO, autoencoder, E-LDM, Gen-DINO by step" in drawn
    alts = [a["alt"] for a in page.all("img")]
    assert {"Reconstructions", "Synthetic views"} <= set(alts)
    assert "encoder vit_tiny, steps 300, learning rate 0.0005" in page.text
    assert "views of one patch" in page.text
    assert "5 of 5 training stages finished" in page.text


def test_knn_results_stand_side_by_side(page: Page) -> None:
    assert "3 k-NN results (best 0.720)" in page.text
    rows = re.findall(r"<tr><td>([^<]*)</td><td class=\"n\">(0\.\d+)</td>", page.raw)
    assert [row for row in rows if row[0] in ("untrained", "Gen-DINO", "DINO")] == [
        ("untrained", "0.410"), ("Gen-DINO", "0.690"), ("DINO", "0.720"),
    ]  # fmt: skip
    assert "chance 0.310" in page.text


def test_the_classifier_has_intervals_a_matrix_and_its_surest_error_first(page: Page) -> None:
    assert "0.750 [0.500, 0.917]" in page.text
    assert "the classes have no order" in page.text
    drawn = [a["aria-label"] for a in page.all("svg")]
    assert {"confusion matrix of 0, 1, 2", "loss of fold 0, fold 1 by epoch"} <= set(drawn)
    assert "2 of 3 slides are wrong" in page.text
    assert page.text.index(" sure ") < page.text.index(" unsure ")


def test_the_mean_over_folds_stands_under_them(study: Path) -> None:
    raw = report(study / "mil").raw
    row = re.search(r"<tr><td>mean \(sd\)</td>.*?</tr>", raw, re.DOTALL)
    assert row
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row[0])
    assert cells == ["mean (sd)", "", "0.512 (0.023)", "\N{EN DASH}", "0.400", "\N{EN DASH}",
                     "\N{EN DASH}"]  # fmt: skip
    path = study / "mil" / "metrics.json"
    for wrong in (None, 3, {"accuracy": 1}, {"accuracy": {"mean": "x"}}):
        put(path, json.loads(path.read_text()) | {"fold_mean": wrong})
        assert "Each fold on its own" in report(study / "mil").text


def test_it_says_when_cross_validation_is_transductive(page: Page) -> None:
    assert "If the encoder was pretrained on these slides, this cross-validation" in page.text


def test_commands_are_there_to_copy_or_taken_from_the_run(page: Page, study: Path) -> None:
    assert ("code", "pathgen tile s/ -o 'a b' <x") in page.texts
    (study / "commands.json").unlink()
    assert "pathgen pretrain tiles -o runs/tiny" in report(study).text


@pytest.mark.parametrize(
    "word",
    [
        "/home/jane doe/MRN 12345 Smith/tiles", "C:/Users/jane/MRN 12345/tiles",
        "C:\\Users\\jane\\tiles", "file:///home/jane/tiles/", "s3://jane/tiles", "~/jane/tiles",
        "--out=/home/jane doe/tiles",
    ],
)  # fmt: skip
def test_a_command_shows_no_folders_of_whoever_gave_it(study: Path, word: str) -> None:
    (study / "commands.json").unlink()
    place = study / "runs" / "tiny" / "environment.json"
    put(place, {**json.loads(place.read_text()), "command": ["/opt/bin/pathgen", "tile", word]})
    text = report(study).text
    assert "pathgen tile " in text
    assert "jane" not in text
    assert "MRN" not in text


# --- parts of it alone ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "sections"),
    [
        ("tiles", ["slides-1"]),
        ("runs/tiny", ["run-1", "reproduce"]),
        ("runs/tiny/dino", ["stage-1"]),
        ("runs/tiny/augment", ["stage-1"]),
        ("features", ["features"]),
        ("features/dino", ["features"]),
        ("evaluation", ["knn"]),
        ("mil", ["mil-1"]),
    ],
)
def test_any_output_folder_will_do(study: Path, inside: str, sections: list[str]) -> None:
    assert report(study / inside).sections == sections


def test_a_report_does_not_report_on_itself(study: Path) -> None:
    first = report(study).raw
    assert report(study).raw == first


def test_drafts_hidden_folders_and_links_are_passed_over(study: Path) -> None:
    shutil.copytree(study / "tiles", study / ".pathgen-tmp-host+1+00+tiles")
    shutil.copytree(study / "tiles", study / ".old")
    (study / "link").symlink_to(study / "tiles", target_is_directory=True)
    assert len(collect(study).tiles) == 1


# --- what goes wrong --------------------------------------------------------------------------


def test_nothing_to_report_on_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match="no such folder"):
        write_report(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoInputError, match="nothing to report on"):
        write_report(tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


def test_an_output_that_cannot_be_written_is_said(study: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="output is a folder"):
        write_report(study, tmp_path)
    put(tmp_path / "file", "")
    with pytest.raises(StorageError):
        write_report(study, tmp_path / "file" / "report.html")


DAMAGE = {
    "tiles/config.yaml": "tiles/config.yaml cannot be read as YAML",
    "tiles/site/slide-01.h5": "site/slide-01.h5: ",
    "tiles/thumbnails/site/slide-01.jpg": "thumbnails/site/slide-01.jpg cannot be decoded",
    "runs/tiny/config.yaml": "runs/tiny/config.yaml cannot be read as YAML",
    "runs/tiny/environment.json": "runs/tiny/environment.json is not valid JSON",
    "runs/tiny/ldm/log.jsonl": "runs/tiny/ldm/log.jsonl is damaged (line 1)",
    "runs/tiny/dino/metrics.json": "runs/tiny/dino/metrics.json is not valid JSON",
    "runs/tiny/augment/sheet.png": "runs/tiny/augment/sheet.png cannot be decoded",
    "runs/tiny/augment/metrics.json": "runs/tiny/augment/metrics.json is not valid JSON",
    "features/dino/a.h5": "features/dino: ",
    "evaluation/knn-dino.json": "evaluation/knn-dino.json is not valid JSON",
    "mil/metrics.json": "mil/metrics.json is not valid JSON",
    "mil/predictions.csv": "mil/predictions.csv lacks the columns",
    "mil/fold-0/log.jsonl": "mil/fold-0/log.jsonl is damaged",
    "commands.json": "commands.json is not valid JSON",
}
#: Without them there is nothing to miss.
ALONE = ("features/dino/a.h5", "evaluation/knn-dino.json", "commands.json")


def test_what_is_damaged_leaves_a_note_and_the_rest_stays(study: Path, page: Page) -> None:
    for name in DAMAGE:
        (study / name).write_text("{ : broken\nbroken\n")
    broken = report(study)
    for note in DAMAGE.values():
        assert [text for text in broken.notes if note in text], (note, broken.notes)
    assert broken.sections == page.sections
    assert "DINO, autoencoder, Gen-DINO" in broken.raw


def test_what_is_missing_leaves_a_note(study: Path, page: Page) -> None:
    for name in DAMAGE.keys() - set(ALONE):
        (study / name).unlink()
    notes = report(study).notes
    for name in DAMAGE.keys() - set(ALONE):
        short = name.removeprefix("tiles/")
        assert [text for text in notes if short in text and "missing" in text], (name, notes)


def test_a_ledger_that_cannot_be_read_is_said(study: Path) -> None:
    (study / "tiles" / "slides.json").write_bytes(b"\xff{")
    broken = report(study / "tiles")
    assert broken.sections == ["slides-1"]
    assert broken.notes == ["slides.json is not valid JSON."]


def test_wrong_types_in_results_do_not_stop_the_page(study: Path) -> None:
    put(study / "evaluation" / "knn-dino.json", knn("x", 0.5) | {"accuracy": "high"})
    put(study / "mil" / "metrics.json", {"n": None, "confusion": [[1, 2]], "classes": ["a"]})
    put(study / "runs/tiny/augment/metrics.json", {"generative": None, "interpolated": 3})
    put(study / "commands.json", {"title": 3})
    notes = " ".join(report(study).notes)
    for piece in ("knn-dino.json", "confusion matrix", "re-embedding", "commands.json"):
        assert piece in notes


def test_a_ledger_that_does_not_add_up_is_said(study: Path) -> None:
    ledger = json.loads((study / "tiles" / "slides.json").read_text())
    ledger["counts"]["done"] += 1
    put(study / "tiles" / "slides.json", ledger)
    assert any("do not agree" in note for note in report(study).notes)


def test_a_ledger_cannot_point_out_of_its_folder(study: Path) -> None:
    put_image(study / "private.jpg", (50, 50))
    ledger = json.loads((study / "tiles" / "slides.json").read_text())
    ledger["slides"][0] |= {"thumbnail": "../private.jpg", "store": str(study / "x.h5")}
    put(study / "tiles" / "slides.json", ledger)
    broken = report(study)
    assert len([n for n in broken.notes if "is not inside the folder" in n]) == 2
    assert str(study) not in broken.raw


def test_a_running_run_shows_what_there_is(study: Path) -> None:
    run = study / "runs" / "tiny"
    shutil.rmtree(run / "gen-dino")
    for name in ("done.json", "metrics.json"):
        (run / "ldm" / name).unlink()
    with (run / "ldm" / "log.jsonl").open("a") as log:
        log.write('{"step": 300, "lo')
    half = report(run)
    assert half.notes == []
    assert "4 of 5" not in half.text
    assert "3 of 5 training stages finished" in half.text
    assert "running" in half.text
    assert "missing" in half.text


def test_many_slides_keep_the_page_small_and_every_failure_in_the_table(tmp_path: Path) -> None:
    put_image(tmp_path / "thumbnails" / "one.jpg", (1024, 800))
    rows = [
        ledger_row(f"s{i:04d}", "done", patches=1, thumbnail="thumbnails/one.jpg")
        for i in range(1500)
    ]
    for i in range(0, 1500, 100):
        rows[i] = ledger_row(f"bad{i:04d}", "failed", reason="PG-S03", message="cannot be opened")
    put(tmp_path / "slides.json", {"counts": {}, "slides": rows})
    many = report(tmp_path)
    for i in range(0, 1500, 100):
        assert f"bad{i:04d} failed PG-S03" in many.text
    assert "500 of 1500 are here, all in slides.csv" in many.text
    assert len(many.all("li")) - len(many.sections) <= 60
    assert len(many.raw) < 2_000_000


# --- figures ----------------------------------------------------------------------------------

ANY = st.floats(allow_nan=True, allow_infinity=True, width=32)


@given(st.lists(ANY, max_size=60))
def test_the_smooth_line_is_a_mean_of_what_is_finite(values: list[float]) -> None:
    smooth = figures.smooth(values)
    assert smooth.shape == (len(values),)
    half = len(values) // 40
    for i, mean in enumerate(smooth):
        near = [v for v in values[max(0, i - half) : i + half + 1] if np.isfinite(v)]
        scale = max([abs(v) for v in values if np.isfinite(v)], default=1.0)
        assert np.isnan(mean) if not near else abs(mean - np.mean(near)) <= 1e-6 * scale + 1e-12


NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)


@settings(max_examples=15)
@given(NAMES)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_class_name_is_drawn_as_itself(name: str) -> None:
    svg = figures.bars([(name, 0.5, 0.4, 0.6)], "accuracy", ("chance", 0.2))
    seen: list[str] = []
    parser = HTMLParser(convert_charrefs=True)
    parser.handle_data = seen.append  # type: ignore[method-assign]
    tags: list[str] = []
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(svg)
    assert " ".join(name.split()) in " ".join("".join(seen).split())
    assert set(tags) <= {"svg", "defs", "g", "text", "tspan", "path", "use", "clippath", "rect"}


def test_figures_leave_matplotlib_as_it_was() -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figures.histograms({"hematoxylin": [0.1, np.nan]}, {"hematoxylin": 0.05})
    figures.loss_curves({"a": ([], []), "b": ([0, 1], [np.nan, 1.0])})
    figures.confusion(np.zeros((20, 20)), [f"class {i}" for i in range(20)])
    assert dict(mpl.rcParams) == before
    with pytest.raises(ValueError, match="2 classes"):
        figures.confusion([[1]], ["a", "b"])


def test_a_contact_sheet_holds_the_images_in_rows() -> None:
    images = np.stack([np.full((40, 40, 3), 25 * i, np.uint8) for i in range(10)])
    sheet = figures.contact_sheet(images, columns=4, side=20, gap=2)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.uri.split(",")[1]))))
    assert pixels.shape == (sheet.height, sheet.width, 3) == (64, 86, 3)
    for i in range(10):
        row, column = divmod(i, 4)
        assert abs(int(pixels[row * 22 + 10, column * 22 + 10, 0]) - 25 * i) <= 3


def test_a_picture_leaves_its_text_chunks_behind(tmp_path: Path) -> None:
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text("made", "by jo on node17")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png", pnginfo=note)
    assert b"node17" in (tmp_path / "a.png").read_bytes()
    assert b"node17" not in base64.b64decode(figures.picture(tmp_path / "a.png").uri.split(",")[1])
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(figures.BadImage, match="cannot be decoded"):
        figures.picture(tmp_path / "b.png")


# --- reading and cleaning ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("see /home/jo/tiles/a.h5.", "see a.h5."),
        ("--out=/scratch/x/y/ -v", "--out= -v"),
        (r"C:\Users\jo\a.svs and \\host\share\b.svs", "a.svs and b.svs"),
        ("mpp 0.5/0.25, site/slide-1, 1/2", "mpp 0.5/0.25, site/slide-1, 1/2"),
        ("runs/tiny and ../slides and ~/x", "runs/tiny and ../slides and ~/x"),
    ],
)
def test_absolute_paths_lose_their_folders(tmp_path: Path, text: str, clean: str) -> None:
    assert Scrubber(tmp_path)(text) == clean


def test_the_host_goes_and_plain_words_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "node17")
    assert Scrubber(tmp_path)("ran on node17, node171") == "ran on (host), node171"
    monkeypatch.setattr(socket, "gethostname", lambda: "pathgen")
    assert Scrubber(tmp_path)("pathgen tile") == "pathgen tile"


@given(st.lists(st.integers()), st.integers(1, 50))
def test_spread_keeps_order_and_count(items: list[int], most: int) -> None:
    kept = spread(list(enumerate(items)), most)
    assert len(kept) == min(len(items), most)
    assert kept == sorted(set(kept))


def test_only_the_last_line_of_a_log_may_be_cut(tmp_path: Path) -> None:
    log = put(tmp_path / "log.jsonl", '{"step": 0, "loss": 1}\n{"epoch": 1, "loss": null}\n{"st')
    assert [line["step"] for line in read_log(log, tmp_path)] == [0, 1]
    put(log, '{"step": 0}\n[]\n{"step": 2}\n')
    with pytest.raises(Unreadable, match="line 2"):
        read_log(log, tmp_path)


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() == 0, reason="needs a user who can be denied"
)
def test_a_folder_that_cannot_be_read_is_noted(study: Path) -> None:
    (study / "evaluation").chmod(0)
    try:
        assert any("evaluation/ cannot be read" in note for note in collect(study).notes)
    finally:
        (study / "evaluation").chmod(0o755)
