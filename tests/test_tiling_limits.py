"""What a run withstands: readers that hang or die, drives that go away. And what it predicts."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest
from helpers_tiling import tissue_image, write_svs
from hypothesis import given
from hypothesis import strategies as st

from pathgen.cli import main
from pathgen.errors import ConfigError, SlideError
from pathgen.tiling import TileConfig, attempt, tile
from pathgen.tiling.attempt import is_passing
from pathgen.tiling.forecast import SLIDES, forecast, minutes, sampled
from pathgen.tiling.ledger import LedgerRow
from pathgen.tiling.pool import Crashed, run_all

SMALL = TileConfig(patch_size=128, thumbnail_px=256)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("slides")
    for name in ("a", "b"):
        write_svs(root / f"{name}.svs", tissue_image(seed=ord(name)))
    return root


# The pool


def _act(task: str) -> str:
    if task == "hang":
        time.sleep(60)
    if task == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if task == "exit":
        os._exit(7)
    if task == "raise":
        raise SlideError("said", code="PG-S04", where="x")
    return task.upper()


def test_each_way_to_end_is_told_apart() -> None:
    tasks = ["a", "segfault", "b", "exit", "hang", "c"]
    results = dict(run_all(_act, tasks, workers=2, limit=8.0))
    crashes = {i: r for i, r in results.items() if isinstance(r, Crashed)}
    assert {i: r for i, r in results.items() if i not in crashes} == {0: "A", 2: "B", 5: "C"}
    assert {i: crash.kind for i, crash in crashes.items()} == {1: "died", 3: "died", 4: "hung"}
    assert "SIGSEGV" in crashes[1].why
    assert "exit code 7" in crashes[3].why


def test_what_a_task_raises_ends_the_run_with_its_trace() -> None:
    with pytest.raises(SlideError, match="PG-S04 said") as caught:
        list(run_all(_act, ["a", "raise"], workers=1))
    assert "_act" in "".join(caught.value.__notes__)


def _dies_once(path: str) -> str:
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "second try"


def test_one_death_is_forgiven(tmp_path: Path) -> None:
    assert list(run_all(_dies_once, [str(tmp_path / "x")], workers=1)) == [(0, "second try")]


def test_a_time_limit_needs_a_process(slides: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="time limit"):
        tile(slides, tmp_path / "out", SMALL, workers=0, slide_timeout=5)


def test_many_stores_are_looked_at_by_several_processes(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tile(slides, tmp_path / "out", SMALL, workers=0)
    monkeypatch.setattr("pathgen.tiling.resume.MANY", 1)
    again = tile(slides, tmp_path / "out", SMALL, workers=1)
    assert (again.kept, again.rows) == (2, first.rows)
    with pytest.raises(ConfigError, match=r"PG-O19.*min_tissue was 0\.5 and is now 0\.7"):
        tile(slides, tmp_path / "out", SMALL.model_copy(update={"min_tissue": 0.7}), workers=1)


# Drives that go away


@pytest.mark.parametrize("times", [2, 9])
def test_a_drive_that_is_away_is_waited_for(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    done = attempt.tile_slide
    calls: list[str] = []

    def flaky(task: object) -> LedgerRow:
        calls.append(task.slide.name)  # type: ignore[attr-defined]
        if calls[-1] == "a" and calls.count("a") <= times:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return done(task)  # type: ignore[arg-type]

    monkeypatch.setattr(attempt, "tile_slide", flaky)
    monkeypatch.setattr(attempt, "PAUSES", (0.01, 0.01, 0.01))
    report = tile(slides, tmp_path / "out", SMALL, workers=0)
    assert calls.count("b") == 1
    assert report.rows[1].reason == "ok"
    if times == 2:
        assert report.rows[0].reason == "ok"
        first = json.loads((tmp_path / "out/events.jsonl").read_text().splitlines()[0])
        assert first["tries"] == 3
    else:
        assert report.rows[0].reason == "PG-S12"
        assert "4 times" in report.rows[0].message
        assert calls.count("a") == 4


def test_only_passing_errors_are_tried_again() -> None:
    wrapped = SlideError("slide cannot be decoded", code="PG-S04", why="x")
    wrapped.__cause__ = OSError(errno.EIO, "Input/output error")
    assert is_passing(wrapped)
    by_words = SlideError("slide cannot be decoded", code="PG-S04")
    by_words.__cause__ = RuntimeError(f"read: {os.strerror(errno.EIO)}")
    assert is_passing(by_words)
    assert not is_passing(FileNotFoundError(errno.ENOENT, "No such file"))
    assert not is_passing(SlideError("slide cannot be decoded", why="bad Huffman code"))


# Predictions


def test_a_plan_predicts_bytes_and_seconds(slides: Path, tmp_path: Path) -> None:
    plan = tile(slides, tmp_path / "out", SMALL, workers=0, plan=True)
    assert not (tmp_path / "out").exists()
    cost = plan.forecast
    assert cost is not None
    assert (cost.slides, cost.workers) == (2, 1)
    assert cost.low < cost.seconds < cost.high
    start = time.monotonic()
    real = tile(slides, tmp_path / "out", SMALL, workers=0)
    took = time.monotonic() - start
    assert 0.6 < plan.bytes / real.bytes < 1.6
    assert cost.seconds / 6 < took < cost.seconds * 6
    assert plan.to_dict()["forecast"]["sampled_blocks"] == cost.blocks


def row(patches: int) -> LedgerRow:
    return LedgerRow("x", "done", "ok", "", "x.svs", patches=patches)


@given(
    st.lists(st.tuples(st.integers(1, 64), st.floats(0.001, 10)), min_size=1, max_size=9),
    st.integers(0, 10**6), st.integers(1, 8),
)  # fmt: skip
def test_a_forecast_scales_with_the_work(
    blocks: list[tuple[int, float]], patches: int, workers: int
) -> None:
    sample = {"overhead": 0.0, "blocks": [[n, n, 100 * n, s] for n, s in blocks]}
    rows = [row(patches)] * 8
    one, many = forecast(rows, [sample], 1), forecast(rows, [sample], workers)
    assert one is not None
    assert many is not None
    rate = sum(s for _, s in blocks) / sum(n for n, _ in blocks)
    assert one.seconds == pytest.approx(8 * patches * rate)
    assert many.seconds == pytest.approx(one.seconds / workers)
    assert one.low <= one.seconds <= one.high


@given(st.integers(1, 10_000))
def test_the_sample_is_spread_over_the_list(count: int) -> None:
    chosen = sorted(sampled(count))
    assert len(chosen) == min(count, SLIDES)
    assert (chosen[0], chosen[-1]) == (0, count - 1) or count == 1
    assert forecast([row(5)], [{"overhead": 1.0, "blocks": []}], 1) is None


def test_times_are_said_as_people_say_them() -> None:
    assert [minutes(s) for s in (0, 40, 100, 4000, 9000)] == [
        "1 second", "40 seconds", "2 minutes", "67 minutes", "2.5 hours",
    ]  # fmt: skip


# Magnification


@pytest.mark.parametrize(
    ("mag", "mpp"), [("40", 0.25), ("20x", 0.5), ("10X", 1.0), ("5", 2.0), ("2.5", 4.0)]
)
def test_a_magnification_is_ten_over_mpp(mag: str, mpp: float) -> None:
    assert TileConfig.model_validate({"mag": mag}).mpp == mpp


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--mag", "20", "--mpp", "0.5"], 2, "given twice"),
        (["--mag", "twenty"], 2, "number above 0"),
        (["--mag", "-4"], 2, "number above 0"),
        (["--dask", "x:1", "--workers", "2"], 2, "several machines"),
        (["--slurm", "partiton=a"], 2, "did you mean 'partition'"),
        (["--slide-timeout", "0"], 2, "0.01"),
    ],
)
def test_wrong_options_are_named(
    capsys: pytest.CaptureFixture[str], slides: Path, tmp_path: Path, options: list[str],
    code: int, words: str,
) -> None:  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(["tile", str(slides), "-o", str(tmp_path / "out"), *options])
    assert stop.value.code == code
    assert words.lower() in capsys.readouterr().err.lower()


def test_an_option_wins_over_the_file(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("mpp: 1.0\npatch_size: 128\n")
    for given_, mpp in (([], 1.0), (["--mag", "10"], 1.0), (["--mag", "5x"], 2.0)):
        out = tmp_path / f"out{len(given_)}{mpp}"
        with pytest.raises(SystemExit) as stop:
            main(["tile", str(slides / "a.svs"), "-o", str(out), "-c", str(tmp_path / "c.yaml"),
                  "--workers", "0", "-q", *given_])  # fmt: skip
        assert stop.value.code in (0, None)
        assert f"mpp: {mpp}\n" in (out / "config.yaml").read_text()
