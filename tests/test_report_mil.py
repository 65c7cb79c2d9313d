"""The slide-level sections of the report show what was computed, and survive what is broken."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    cohen_kappa_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from pathgen.cli import main
from pathgen.errors import NoInputError
from pathgen.evaluate.predictionfile import Continuous, Predictions, Survival
from pathgen.evaluate.predictions import evaluate_predictions, write_predictions
from pathgen.report import figures, milfigures, write_report
from pathgen.report.answers import answers
from pathgen.report.blocks import Section
from pathgen.report.collect import Found
from pathgen.report.comparisons import comparison_section
from pathgen.report.slidelevel import TRANSDUCTIVE, encoder_saw

N = 48
CLASSES = ("0", "1", "2")


def put(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def finish(folder: Path, **more: object) -> Path:
    """metrics.json as `train-mil` writes it, and the files beside it."""
    values = evaluate_predictions(folder, seed=0) | more
    put(folder / "metrics.json", values)
    put(folder / "provenance.json", {"stage": "mil", "inputs": {"encoder": "e1"}})
    put(folder / "config.yaml", "target: classes\nfolds: 3\n")
    return folder


def graded(repeats: int = 2) -> Predictions:
    """Three ordered classes at two sites, right more often than not."""
    rng = np.random.default_rng(0)
    truth = np.tile(np.arange(N) % 3, repeats)
    scores = rng.normal(size=(N * repeats, 3)) + 1.2 * np.eye(3)[truth]
    p = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return Predictions(
        [f"s{i:02}" for i in range(N)] * repeats, [f"PATIENT-{i // 2}" for i in range(N)] * repeats,
        (np.arange(N * repeats) % 3).tolist(), [CLASSES[i] for i in truth],
        [CLASSES[i] for i in p.argmax(1)], p, CLASSES,
        sites=[("north", "south")[i % 2] for i in range(N)] * repeats,
        repeats=np.repeat(np.arange(repeats), N).tolist(),
    )  # fmt: skip


def put_tiles(folder: Path, names: list[str]) -> Path:
    rows = []
    for i, name in enumerate(names):
        path = folder / "thumbnails" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + i, 30), (200, 120, 160)).save(path)
        rows.append({"slide": name, "state": "done", "thumbnail": f"thumbnails/{name}.jpg"})
    put(folder / "slides.json", {"counts": {"slides": len(rows)}, "slides": rows})
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mil") / "run"
    write_predictions(folder / "predictions.csv", graded())
    finish(folder, head="abmil", label="grade", target="ordinal")
    put(folder / "environment.json", {"command": ["/x/pathgen", "train-mil", "/home/jane/f"]})
    return folder


@pytest.fixture(scope="module")
def page(made: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "page.html"
    tiles = put_tiles(tmp_path_factory.mktemp("tiles"), [f"ward/s{i:02}" for i in range(N)])
    return write_report(made, out, tiles=tiles).read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are made, but not turned into SVG, which takes longest."""
    for module in (figures, milfigures):
        monkeypatch.setattr(module, "svg", lambda figure, alt: Markup(""))


def cells(page: str) -> list[list[str]]:
    """Rows of all tables."""
    rows = re.findall(r"<tr><td.*?</tr>", page, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]


def row_of(page: str, first: str) -> list[str]:
    return next(row for row in cells(page) if row[0] == first)


def test_metrics_on_the_page_are_those_of_scikit_learn(page: str) -> None:
    data = graded()
    truth, said = np.array(data.labels), np.array(data.predicted)
    half = [slice(0, N), slice(N, 2 * N)]  # a metric is the mean over repeats
    accuracy = np.mean([accuracy_score(truth[h], said[h]) for h in half])
    kappa = np.mean([cohen_kappa_score(truth[h], said[h], weights="quadratic") for h in half])
    assert row_of(page, "accuracy")[1].startswith(f"{accuracy:.3f} [")
    assert row_of(page, "quadratic kappa")[1].startswith(f"{kappa:.3f} [")
    recalls = [precision_recall_fscore_support(truth[h], said[h])[1] for h in half]
    start = page.index("Each class against the rest")
    for i, name in enumerate(CLASSES):
        row = row_of(page[start:], name)
        assert row[2].startswith(f"{np.mean([r[i] for r in recalls]):.3f} [")
    site = np.array(data.sites)
    for name in ("north", "south"):
        mine = [[i for i in range(h.start, h.stop) if site[i] == name] for h in half]
        own = np.mean([accuracy_score(truth[m], said[m]) for m in mine])
        assert row_of(page, name)[3].startswith(f"{own:.3f} [")


def test_the_section_says_what_was_made_and_how_to_repeat_it(page: str) -> None:
    assert "Predicts classes (column &#39;grade&#39;) with an order by the head abmil" in page
    assert "encoder e1" in page
    assert "means over 2 repeats" in page
    assert "pathgen train-mil f" in page
    assert "folds: 3" in page  # the settings
    assert row_of(page, "0 of repeat 1")[1] == "16"
    for private in ("PATIENT", "jane", "/home", "/tmp"):
        assert private not in page


def test_worst_errors_are_far_and_sure_and_have_thumbnails(page: str) -> None:
    data = graded()
    p = np.asarray(data.probabilities)
    wrong: dict[str, list[tuple[int, float]]] = {}
    for i, (name, truth, said) in enumerate(
        zip(data.names, data.labels, data.predicted, strict=True)
    ):
        if truth != said:
            wrong.setdefault(name, []).append((abs(int(truth) - int(said)), p[i, int(said)]))
    ranked = sorted(
        wrong, key=lambda name: tuple(np.mean(wrong[name], axis=0).tolist()), reverse=True
    )
    start = page.index("Surest errors")
    table = [row for row in cells(page[start:]) if re.fullmatch(r"s\d\d", row[0])]
    assert [row[0] for row in table] == ranked[:12]
    assert f"{len(wrong)} of {N} slides are wrong in at least one of 2 repeats" in page
    assert table[0][5] == f"{len(wrong[ranked[0]])} of 2 repeats"
    assert len(re.findall('alt="thumbnail of s', page)) == 12


@pytest.mark.usefixtures("undrawn")
def test_slides_without_a_thumbnail_of_their_own_have_none(made: Path, tmp_path: Path) -> None:
    names = [f"{ward}/s{i:02}" for ward in ("a", "b") for i in range(N)]
    twice = write_report(made, tmp_path / "p.html", tiles=put_tiles(tmp_path / "t", names))
    assert "thumbnail of s" not in twice.read_text()  # s00 may be a/s00 or b/s00
    without = write_report(made, tmp_path / "q.html").read_text()
    assert "thumbnail of s" not in without
    assert "--tiles" in without


@pytest.mark.usefixtures("undrawn")
def test_a_ledger_cannot_show_what_lies_outside(made: Path, tmp_path: Path) -> None:
    tiles = put_tiles(tmp_path / "t", [])
    Image.new("RGB", (40, 30)).save(tmp_path / "private.jpg")
    rows = [{"slide": f"s{i:02}", "thumbnail": "../private.jpg"} for i in range(N)]
    put(tiles / "slides.json", {"slides": rows})
    page = write_report(made, tmp_path / "p.html", tiles=tiles).read_text()
    assert "thumbnail of s" not in page


def test_tiles_must_be_a_folder_of_tiles(made: Path, tmp_path: Path) -> None:
    with pytest.raises(NoInputError, match=r"PG-N01.*no slides\.json"):
        write_report(made, tmp_path / "p.html", tiles=tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["report", str(made), "-o", str(tmp_path / "p.html"), "--tiles", str(tmp_path)])
    assert stop.value.code == 4


# Charts


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, before they become SVG."""
    kept: list[Figure] = []
    own = milfigures.svg

    def keep(figure: Figure, alt: str) -> object:
        kept.append(figure)
        return own(figure, alt)

    monkeypatch.setattr(milfigures, "svg", keep)
    return kept


def test_curves_have_the_area_that_scikit_learn_computes(drawn: list[Figure], made: Path) -> None:
    values = json.loads((made / "metrics.json").read_text())
    answers(Section("x", "x"), values)
    roc = drawn[0].axes[0]
    data = graded()
    p, truth = np.asarray(data.probabilities), np.array(data.labels)
    for i, name in enumerate(CLASSES):
        line = next(one for one in roc.lines if one.get_label() == name)
        x, y = (np.asarray(values, float) for values in line.get_data())
        area = float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum())
        assert area == pytest.approx(roc_auc_score(truth == name, p[:, i]), abs=0.005)
    points = drawn[1].axes[0].lines[1].get_data()
    sure, right = p.max(1), truth == np.array(data.predicted)
    bins = np.minimum((sure * 10).astype(int), 9)
    wanted = [(sure[bins == b].mean(), right[bins == b].mean()) for b in np.unique(bins)]
    np.testing.assert_allclose(np.transpose(points), wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["<b>", "$\\frac$", "--> a", "font: 9px b", "font-family: c"])
def test_any_name_of_a_class_leaves_the_chart_whole(name: str) -> None:
    line = (name, [0, 1], [0, 1])
    chart = ElementTree.fromstring(milfigures.roc_and_pr([line], [line]).replace("xlink:", ""))
    assert name in {part.text for part in chart.iter("text")}


def test_differences_point_to_the_better_side(drawn: list[Figure], tmp_path: Path) -> None:
    def one(difference: float, better: str | None, **more: object) -> dict[str, object]:
        interval = sorted([difference / 2, 2 * difference])
        return {"first": 0.5, "second": 0.5 - difference, "difference": difference,
                "interval": interval, "better": better, **more}  # fmt: skip

    values = {
        "format": "pathgen.comparison", "kind": "classes", "first": "A", "second": "B", "n": 9,
        "metrics": {"auc": one(0.1, "first"), "brier": one(-0.2, "first"),
                    "log_loss": one(3.0, "second"), "accuracy": one(0.0, None)},
        "test": {"name": "exact McNemar test of accuracy", "p": 0.03}, "only_second": ["s1", "s2"],
    }  # fmt: skip
    put(tmp_path / "comparison.json", values)
    page = write_report(tmp_path).read_text()
    assert "A is better in AUC and Brier score. B is better in log loss." in page
    assert "No difference is shown in accuracy" in page
    assert "Exact McNemar test of accuracy: p = 0.0300" in page
    assert "2 slides of B alone" in page
    assert row_of(page, "Brier score (lower is better)")[3:] == [
        "-0.200 [-0.400, -0.100]", "A",
    ]  # fmt: skip
    axes = drawn[0].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    points = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert dict(zip(names, points, strict=True)) == {"accuracy": 0.0, "AUC": 0.1,
                                                     "Brier score": 0.2}  # fmt: skip


# Numbers and survival


def test_a_regression_shows_its_largest_errors(drawn: list[Figure], tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truth = np.arange(N, dtype=float)
    said = truth + rng.normal(size=N)
    said[7] = -90.0
    names = [f"s{i:02}" for i in range(N)]
    write_predictions(
        tmp_path / "predictions.csv",
        Continuous(names, names, [0] * N, truth.tolist(), said.tolist()),
    )
    page = write_report(finish(tmp_path, label="age")).read_text()
    assert "Slide-level regression (MIL)" in page
    start = page.index("Largest errors")
    assert cells(page[start:])[0] == ["s07", "7", "-90", "-97"]
    assert row_of(page, "mean absolute error (lower is better)")[1].startswith(
        f"{np.abs(said - truth).mean():.3f} ["
    )
    x, y = drawn[0].axes[0].lines[1].get_data()
    np.testing.assert_allclose(
        sorted(zip(x, y, strict=True)), sorted(zip(truth, said, strict=True))
    )


def test_survival_shows_early_events_that_were_held_to_be_safe(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    time = rng.permutation(np.arange(1.0, N + 1))
    risk = -time + rng.normal(size=N)
    early = int(np.argmin(time))
    risk[early] = -1000.0
    names = [f"s{i:02}" for i in range(N)]
    write_predictions(
        tmp_path / "predictions.csv",
        Survival(names, names, [0] * N, time.tolist(), [1] * N, risk.tolist()),
    )
    page = write_report(finish(tmp_path)).read_text()
    assert "Survival by slide (MIL)" in page
    start = page.index("Early events")
    assert cells(page[start:])[0][:2] == [f"s{early:02}", "1"]
    assert "Log-rank test: p &lt; 0.001" in page
    assert 'aria-label="survival curves of risk at most the median (24 events in 24)' in page


# Baselines and the encoder


@pytest.mark.usefixtures("undrawn")
def test_baselines_stand_beside_the_run_and_have_no_section(made: Path, tmp_path: Path) -> None:
    run = shutil.copytree(made, tmp_path / "run")
    rows = [
        {"name": name, "title": f"it is {name}", "notes": [f"note of {name}"],
         "metrics": {"qwk": 0.1, "intervals": {"qwk": [0.0, 0.2]}, "accuracy": 0.4},
         "comparison": {"metrics": {"qwk": {"difference": 0.5, "interval": [0.3, 0.7],
                                            "better": better}}}}
        for name, better in (("majority", "first"), ("stain-only", None))
    ]  # fmt: skip
    skipped = [{"name": "label-shuffle", "why": "needs --features"}]
    put(run / "baselines" / "baselines.json", {"baselines": rows, "skipped": skipped})
    for name in ("majority", "label-shuffle/run/fold-0"):
        shutil.copy(run / "predictions.csv", put(run / "baselines" / name / "x.csv", "").parent)
        shutil.copy(run / "metrics.json", run / "baselines" / name)
    page = write_report(run).read_text()
    assert re.findall(r'<section id="([^"]*)"', page) == ["mil-1", "reproduce"]
    assert "In quadratic kappa the run is better than majority." in page
    assert "No difference in quadratic kappa is shown to stain-only" in page
    assert "Not made: label-shuffle (needs --features)." in page
    assert "stain-only: note of stain-only" in page
    assert row_of(page, "majority")[2:4] == ["0.100 [0.000, 0.200]", "+0.500 [+0.300, +0.700]"]
    put(run / "baselines" / "baselines.json", "{ broken")
    assert "baselines.json is not valid JSON" in write_report(run).read_text()


@pytest.mark.parametrize(
    ("saw", "said"),
    [
        (None, TRANSDUCTIVE),
        ({"tested": 12, "seen": None}, "is not known"),
        ({"tested": 12, "seen": 0}, "Inductive: the encoder was pretrained on none of the 12"),
        ({"tested": 12, "seen": 5}, "Transductive: the encoder was pretrained, without labels, "
                                    "on 5 of the 12"),
        ("junk", TRANSDUCTIVE),
    ],
)  # fmt: skip
def test_what_the_encoder_saw_is_declared(saw: object, said: str) -> None:
    assert said in encoder_saw({"encoder_saw": saw})


# What is broken


JUNK = [None, 3, "x", [[1], {"class": None, "x": [1], "y": "x"}]]
#: Some together, some alone: a key that is broken must not hide another.
KEYS = [
    ["intervals", "label", "per_class", "undefined"], ["curves", "n", "notes", "sites"],
    ["calibration", "classes", "qwk"], ["baselines", "repeats", "folds", "fold_mean"],
    ["confusion", "by_repeat", "repeat_mean", "accuracy"], ["kind"],
]  # fmt: skip


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("junk", JUNK, ids=str)
def test_wrong_types_in_metrics_leave_a_page(junk: object, made: Path, tmp_path: Path) -> None:
    values = json.loads((made / "metrics.json").read_text())
    (tmp_path / "predictions.csv").write_bytes((made / "predictions.csv").read_bytes())
    for keys in KEYS:
        put(tmp_path / "metrics.json", values | dict.fromkeys(keys, junk))
        section = _mil(tmp_path)
        assert section.blocks


def _mil(folder: Path) -> Section:
    from pathgen.report.slidelevel import mil_section

    return mil_section(Found(folder), folder, 1)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("junk", JUNK, ids=str)
def test_wrong_types_in_comparisons_leave_a_page(junk: object, tmp_path: Path) -> None:
    for key in ("metrics", "first", "n", "test", "only_first", "notes", "kind"):
        values: dict[str, Any] = {"metrics": {"auc": {"difference": 0.1}}, key: junk}
        assert comparison_section(Found(tmp_path), tmp_path / "c.json", values, 1).blocks
    values = {"metrics": {"auc": junk, "accuracy": {"difference": junk, "interval": junk}}}
    assert comparison_section(Found(tmp_path), tmp_path / "c.json", values, 1).blocks


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("cut", [lambda t: "", lambda t: t.splitlines()[0], lambda t: "slide\na\n"])
def test_predictions_that_lack_columns_are_said(
    cut: Callable[[str], str], made: Path, tmp_path: Path
) -> None:
    put(tmp_path / "metrics.json", (made / "metrics.json").read_text())
    put(tmp_path / "predictions.csv", cut((made / "predictions.csv").read_text()))
    assert "lacks the columns slide, label and predicted" in write_report(tmp_path).read_text()
