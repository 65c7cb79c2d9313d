"""Slides behind a URL: read in parts, and nothing secret of the URL is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
from helpers_readers import TiffKind, picture, write_ome_zarr, write_tiff_slide
from helpers_tiling import tissue_image, write_svs

from pathgen.cli import main
from pathgen.errors import ConfigError, DataError, NoInputError, PathgenError
from pathgen.stores import PatchStore
from pathgen.tiling import TileConfig, find_slides, open_slide, slide_info, tile
from pathgen.tiling.readers import remote
from pathgen.tiling.readers.check import slide_identity
from pathgen.tiling.readers.remote import RemotePath, slide_path

SECRET = "CANARY7f3a"


class Handler(SimpleHTTPRequestHandler):
    """Files with byte ranges; the first `failures` requests are answered by 503."""

    failures = 0
    ranges = True
    sent = 0
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = Path(self.translate_path(self.path))
        if Handler.failures > 0:
            Handler.failures -= 1
            return self.reply(503, b"", body)
        if "denied" in self.path:
            return self.reply(403, b"", body)
        if not path.is_file():
            return self.reply(404, b"", body)
        data = path.read_bytes()
        asked = self.headers.get("Range")
        if not asked or not self.ranges:
            return self.reply(200, data, body)
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start, stop = int(first), min(int(last or len(data) - 1), len(data) - 1) + 1
        return self.reply(206, data[start:stop], body, f"bytes {start}-{stop - 1}/{len(data)}")

    def reply(self, status: int, data: bytes, body: bool, content_range: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{len(data)}"')
        if self.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        if body:
            Handler.sent += len(data)
            with suppress(ConnectionError):  # the client has read enough
                self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    class Served(Handler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

    with ThreadingHTTPServer(("127.0.0.1", 0), Served) as found:
        Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()


@pytest.fixture(scope="module")
def svs(folder: Path) -> Path:
    return write_svs(folder / "one.svs", tissue_image(900, 700))


@pytest.fixture(scope="module")
def large(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (2048, 4096, 3), np.uint8)
    return write_tiff_slide(folder / "large.tif", noise, TiffKind("none", "generic", levels=(1,)))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.0, 0.0))


def code_of(path: str, reader: str = "auto") -> str:
    with pytest.raises(PathgenError) as caught:
        open_slide(path, reader)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(caught.value.__cause__)
    return caught.value.code


def test_a_url_is_read_as_the_file(server: str, svs: Path) -> None:
    with open_slide(f"{server}/one.svs?sig={SECRET}") as far, open_slide(svs) as near:
        assert far.name == "one.svs"
        assert far.header.level_sizes == near.level_sizes  # type: ignore[attr-defined]
        assert (far.mpp, far.vendor, far.objective) == (near.mpp, near.vendor, near.objective)
        for level in (0, 1):
            theirs = near.read((300, 200), level, (300, 300)).astype(int)
            assert np.abs(far.read((300, 200), level, (300, 300)) - theirs).max() <= 2


def test_identity_is_the_files(server: str, svs: Path) -> None:
    assert slide_identity(slide_path(f"{server}/one.svs")) == slide_identity(svs)


def test_a_large_slide_is_read_in_parts(server: str, large: Path) -> None:
    before = Handler.sent
    with open_slide(f"{server}/{large.name}") as slide, open_slide(large) as near:
        theirs = near.read((1000, 900), 0, (100, 100))
        assert np.array_equal(slide.read((1000, 900), 0, (100, 100)), theirs)
    assert large.stat().st_size > 20e6
    assert Handler.sent - before < 12e6


def test_tiling_a_url_gives_the_patches_of_the_file(server: str, svs: Path, tmp_path: Path) -> None:
    config = TileConfig(min_tissue=0.3, patch_size=128)
    far = tile(f"{server}/one.svs?sig={SECRET}", tmp_path / "far", config, workers=0)
    near = tile(svs, tmp_path / "near", config, workers=0)
    assert far.counts["patches"] == near.counts["patches"] > 0
    with PatchStore.open(far.stores[0]) as one, PatchStore.open(near.stores[0]) as other:
        assert np.array_equal(one.coords(), other.coords())
        assert np.abs(one.images().astype(int) - other.images()).mean() < 2
        assert one.slide.identity == other.slide.identity
    for path in (tmp_path / "far").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert SECRET.encode() not in content
            assert b"127.0.0.1" not in content
    again = tile(f"{server}/one.svs?sig=another", tmp_path / "far", config, workers=0)
    assert again.kept == 1


def test_memory_and_lists(svs: Path, tmp_path: Path) -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/a/one.svs", svs.read_bytes())
    system.pipe("/bucket/b/one.svs", svs.read_bytes())
    (tmp_path / "list.csv").write_text(
        "slide,mpp,label\nmemory://bucket/a/one.svs,0.25,x\nmemory://bucket/b/one.svs,,y\n"
    )
    slides, _ = find_slides(tmp_path / "list.csv")
    assert [slide.name for slide in slides] == ["bucket/a/one.svs", "bucket/b/one.svs"]
    assert [slide.mpp for slide in slides] == [0.25, None]
    report = tile(tmp_path / "list.csv", tmp_path / "out", TileConfig(patch_size=64), workers=0)
    assert report.counts["done"] == 2
    again = slide_info("memory://bucket/a/one.svs")
    assert (again["reader"], again["bytes"]) == ("tiffslide", svs.stat().st_size)
    (tmp_path / "bad.csv").write_text(
        "slide,label\nmemory://bucket/a/one.svs,x\nmemory://bucket/a/one.svs,y\n"
    )
    with pytest.raises(DataError, match="PG-N06"):
        find_slides(tmp_path / "bad.csv")


def test_file_urls_are_paths(svs: Path) -> None:
    assert slide_path(svs.as_uri()) == svs
    assert slide_info(svs.as_uri())["reader"] == slide_info(svs)["reader"]


# What goes wrong


def test_refused_by_code(server: str, folder: Path, svs: Path) -> None:
    (folder / "empty.svs").write_bytes(b"")
    (folder / "text.svs").write_text("no slide" * 40)
    (folder / "cut.svs").write_bytes(svs.read_bytes()[:-500])
    write_tiff_slide(folder / "strips.tif", picture(), TiffKind("lzw", "generic", tile=None))
    for name, code in {
        "none.svs": "PG-N01", "empty.svs": "PG-S01", "text.svs": "PG-S02", "cut.svs": "PG-S03",
        "denied.svs": "PG-N04", "strips.tif": "PG-S10",
    }.items():  # fmt: skip
        assert code_of(f"{server}/{name}?sig={SECRET}") == code, name


def test_remote_formats_that_are_not_tiff(server: str, folder: Path) -> None:
    (folder / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(200))
    assert code_of(f"{server}/image.png") == "PG-S10"
    write_ome_zarr(folder / "x.ome.zarr", picture())
    assert code_of(f"{server}/x.ome.zarr") == "PG-N01"


def test_a_network_that_fails_now_and_then(server: str, svs: Path) -> None:
    with open_slide(f"{server}/one.svs") as slide:
        slide.close()
        Handler.failures = 1
        assert slide.read((0, 0), 0, (50, 50)).shape == (50, 50, 3)


def test_a_network_that_stays_away(server: str, svs: Path, tmp_path: Path) -> None:
    assert code_of(f"http://user:{SECRET}@127.0.0.1:9/one.svs?sig={SECRET}") == "PG-N05"
    Handler.failures = 10**6
    try:
        report = tile([f"{server}/one.svs?sig={SECRET}", str(svs)], tmp_path, workers=0)
    finally:
        Handler.failures = 0
    states = {row.slide: (row.state, row.reason) for row in report.rows}
    assert sorted(reason for _, reason in states.values()) == ["PG-N05", "ok"]
    assert report.counts["slides"] == 2
    assert "again" in report.failed[0].message
    assert SECRET not in (tmp_path / "slides.json").read_text()


def test_a_tile_that_cannot_be_fetched_is_not_white(server: str, large: Path) -> None:
    with open_slide(f"{server}/{large.name}") as slide:
        _ = slide.read((0, 0), 0, (10, 10))
        Handler.failures = 10**6
        try:
            with pytest.raises(PathgenError, match="PG-N05"):
                slide.read((3000, 1500), 0, (100, 100))
        finally:
            Handler.failures = 0
        assert slide.read((3000, 1500), 0, (100, 100)).std() > 50


def test_a_server_without_ranges(folder: Path, large: Path) -> None:
    class Whole(Handler):
        ranges = False

        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

    with ThreadingHTTPServer(("127.0.0.1", 0), Whole) as found:
        Thread(target=found.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{found.server_address[1]}/{large.name}"
        with (
            pytest.raises(PathgenError, match=r"PG-N05.*range requests.*[Dd]ownload"),
            open_slide(url) as slide,
        ):
            slide.read((3000, 1500), 0, (100, 100))
        found.shutdown()


def test_urls_that_name_no_slide() -> None:
    for url in ("https://host/", "https://host/folder/", "s3://bucket/folder/"):
        with pytest.raises(NoInputError, match="PG-N01"):
            find_slides(url)
    assert code_of("unknown://host/x.svs") == "PG-N01"
    with pytest.raises(ConfigError, match="does not read URLs"):
        open_slide("https://127.0.0.1:9/x.svs", "openslide")


def test_what_is_shown_of_a_url() -> None:
    path = RemotePath(f"https://user:{SECRET}@host:8080/a%20b/c%23d.svs?sig={SECRET}#{SECRET}")
    assert str(path) == "https://host:8080/a b/c#d.svs"
    assert (path.name, path.suffix) == ("c#d.svs", ".svs")
    assert SECRET not in repr(path)
    key = RemotePath(f"s3://bucket/a#1/x.svs?versionId={SECRET}")
    assert str(key) == "s3://bucket/a#1/x.svs"


def said(command: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert not caught.value.code


def test_info_and_next_command_hide_the_query(
    server: str, svs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said(["info", f"{server}/one.svs?sig={SECRET}"])
    out = capsys.readouterr().out
    assert "tiffslide" in out
    assert SECRET not in out
    said(["info", f"{server}/one.svs?sig={SECRET}", "--json"])
    assert json.loads(capsys.readouterr().out)["reader"] == "tiffslide"
