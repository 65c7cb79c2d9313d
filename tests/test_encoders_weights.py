"""Published weights: from folders as the hub lays them out, and from a hub (one of this test)."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_encoders_zoo import patches, random_encoder, tiny

from pathgen.encoders import load_encoder
from pathgen.encoders.conversion import on_grid
from pathgen.encoders.published import PublishedEncoder
from pathgen.encoders.weights import find_weights, read_weights
from pathgen.encoders.zoo import Published
from pathgen.errors import MissingExtraError, RunError

Weights = dict[str, torch.Tensor]


def as_published(encoder: PublishedEncoder) -> Weights:
    """Its tensors under the names that the hub's file has."""
    prefix = {"conch": "visual.", "conch-v1.5": ""}.get(encoder.row.layout)
    state = {k: v.contiguous() for k, v in encoder.network.state_dict().items()}
    if prefix is not None:
        return {prefix + k: v for k, v in state.items()}
    return {k.removeprefix("trunk."): v for k, v in state.items()}


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, Published]:
    """A small table in the place of the large one."""
    rows = {
        "one": tiny(name="one", hub="lab/One-h", gated=True, license="CC-BY-NC-ND-4.0",
                    commercial=False, aliases=("first",)),
        "two": tiny(name="two", hub="lab/Two", files=("vision.bin",)),
    }  # fmt: skip
    monkeypatch.setattr("pathgen.encoders.zoo.public_encoders", lambda: rows)
    return rows


class Said:
    """Remembers what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


# --- folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        tiny(),
        tiny(vector="cls+mean", dim=48, settings={"reg_tokens": 4, "mlp_ratio": 5.5}, swiglu=True),
        tiny(settings={"no_embed_class": True, "reg_tokens": 8, "init_values": 1e-5}),
        tiny(layout="conch", vector="attention", dim=16),
        tiny(layout="conch-v1.5", vector="attention", dim=16, settings={"init_values": 1.0}),
        tiny(network="resnet18", settings={}, vector="pooled", dim=512),
    ],
    ids=["plain", "virchow", "uni2", "conch", "conch15", "cnn"],
)
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_saved_weights_come_back_bit_for_bit(row: Published, file: str, tmp_path: Path) -> None:
    if row.vector == "pooled":
        row = row.model_copy(update={"settings": {}})
    encoder = random_encoder(row)
    place = tmp_path / "tiny" / file
    place.parent.mkdir()
    if file.endswith(".bin"):
        torch.save(as_published(encoder), place)
    else:
        save_file(as_published(encoder), place)
    again = PublishedEncoder.load(row, find_weights(row.origin, tmp_path))
    assert again.id == encoder.id
    np.testing.assert_array_equal(again.encode(patches(32)), encoder.encode(patches(32)))


@pytest.mark.parametrize(
    "place",
    ["one", "first", "One-h", "lab/One-h", "models--lab--One-h/snapshots/abc",
     "hub/models--lab--One-h/snapshots/abc", "."],
)  # fmt: skip
def test_weights_are_found_as_people_lay_them_out(
    place: str, rows: dict[str, Published], tmp_path: Path
) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    encoder = random_encoder(rows["one"])
    save_file(as_published(encoder), folder / "model.safetensors")
    for name in ("one", "First"):
        assert load_encoder(name, "cpu", weights=tmp_path).id == encoder.id
    assert load_encoder("one", "cpu", weights=folder / "model.safetensors").id == encoder.id


def test_the_revision_that_the_cache_names_is_taken(tmp_path: Path) -> None:
    row, cache = tiny(), tmp_path / "models--someone--tiny"
    for seed, revision in enumerate(("aaa", "bbb")):
        folder = cache / "snapshots" / revision
        folder.mkdir(parents=True)
        save_file(as_published(random_encoder(row, seed)), folder / "model.safetensors")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("bbb\n")
    assert find_weights(row.origin, tmp_path).parent.name == "bbb"


def test_the_folder_of_an_encoder_comes_before_the_one_around_it(
    rows: dict[str, Published], tmp_path: Path
) -> None:
    around, own = random_encoder(rows["two"], 1), random_encoder(rows["two"], 2)
    (tmp_path / "two").mkdir()
    save_file(as_published(around), tmp_path / "model.safetensors")
    torch.save(as_published(own), tmp_path / "two" / "vision.bin")
    assert load_encoder("two", "cpu", weights=tmp_path).id == own.id


def test_the_license_is_said_once_and_stands_in_the_card(
    rows: dict[str, Published], tmp_path: Path
) -> None:
    save_file(as_published(random_encoder(rows["one"])), tmp_path / "model.safetensors")
    said = Said()
    encoder: Any = load_encoder("one", "cpu", weights=tmp_path, progress=said)  # type: ignore[arg-type]
    assert len(said.lines) == 1
    assert "CC-BY-NC-ND-4.0; no commercial use" in said.lines[0]
    assert encoder.card["license"] == "CC-BY-NC-ND-4.0"
    assert not encoder.card["commercial"]
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())


def test_no_weights_are_said(rows: dict[str, Published], tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(MissingExtraError, match="PG-E02") as caught:
            load_encoder("two", "cpu", weights=place)
        assert "vision.bin" in str(caught.value)
        assert "DIR/two/" in str(caught.value)


def test_weights_of_another_network_are_refused(rows: dict[str, Published], tmp_path: Path) -> None:
    state = as_published(random_encoder(rows["one"]))
    wrong = {
        "depth": {k: v for k, v in state.items() if "blocks.1" not in k},
        "width": {k: v[..., :8].contiguous() for k, v in state.items()},
        "extra": {**state, "blocks.0.ls1.gamma": torch.ones(24)},
        "empty": {"steps": torch.ones(1)},
    }
    for name, weights in wrong.items():
        save_file(weights, tmp_path / "model.safetensors")
        with pytest.raises(RunError) as caught:
            load_encoder("one", "cpu", weights=tmp_path)
        assert caught.value.code == "PG-T04", name
        assert "lab/One-h" in str(caught.value)


def test_what_trainers_wrap_around_weights_is_taken_off(
    rows: dict[str, Published], tmp_path: Path
) -> None:
    encoder = random_encoder(rows["one"])
    state = as_published(encoder)
    wrapped: list[Any] = [
        {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        {"model": {**state, "head.weight": torch.ones(5, 24), "head.bias": torch.ones(5)}},
        {k: v.half().float() if "bias" in k else v.double() for k, v in state.items()},
    ]
    for content in wrapped[:2]:
        torch.save(content, tmp_path / "pytorch_model.bin")
        assert load_encoder("one", "cpu", weights=tmp_path).id == encoder.id
    torch.save(wrapped[2], tmp_path / "pytorch_model.bin")
    loaded: Any = load_encoder("one", "cpu", weights=tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil"),)


def test_code_in_a_file_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": Evil()}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    torch.save([torch.ones(2)], tmp_path / "list.bin")
    for name in ("pytorch_model.bin", "model.safetensors", "list.bin"):
        with pytest.raises(RunError, match="cannot be read"):
            read_weights(tmp_path / name)
    assert not (tmp_path / "evil").exists()


# --- position embeddings ---------------------------------------------------------------------


def test_position_embeddings_that_fit_are_left_alone() -> None:
    embed = torch.randn(1, 1 + 16, 8)
    for rule in ("bicubic-antialias", "bicubic", "bilinear", "dino"):
        assert on_grid(embed, (4, 4), 1, rule) is embed  # type: ignore[arg-type]


def test_each_rule_is_that_of_its_authors() -> None:
    """The class token's stays; the others go as each code base takes them."""
    embed = torch.randn(1, 1 + 16, 8)
    image = embed[:, 1:].reshape(1, 4, 4, 8).permute(0, 3, 1, 2)
    interpolate = torch.nn.functional.interpolate
    expected = {
        "bicubic-antialias": interpolate(image, (6, 6), mode="bicubic", antialias=True),
        "bicubic": interpolate(image, (6, 6), mode="bicubic"),
        "bilinear": interpolate(image, (6, 6), mode="bilinear"),
        "dino": interpolate(image, scale_factor=(6.1 / 4, 6.1 / 4), mode="bicubic"),
    }
    for rule, patches_ in expected.items():
        found = on_grid(embed, (6, 6), 1, rule)  # type: ignore[arg-type]
        assert torch.equal(found[:, :1], embed[:, :1])
        flat = patches_.permute(0, 2, 3, 1).reshape(1, 36, 8)
        torch.testing.assert_close(found[:, 1:], flat)


# --- a hub -----------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the hub does: by repository, ``gated``, ``hidden``; ``open`` has them."""

    files: dict[str, bytes] = {}  # noqa: RUF012 - one server a test

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        _, _, repo, _, _, name = self.path.split("?")[0].split("/")
        answers = {
            "gated": (401, "GatedRepo"),
            "hidden": (401, "RepoNotFound"),
            "forbidden": (403, ""),
            "expired": (401, ""),
        }
        status, code = answers.get(repo, (200, ""))
        content = self.files.get(name, b"")
        if status == 200 and name not in self.files:
            status, code = 404, "EntryNotFound"
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status == 200:
            self.send_header("ETag", '"0123456789abcdef"')
            self.send_header("X-Repo-Commit", "f" * 40)
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_header("Content-Length", "0")
        self.end_headers()
        if body and status == 200:
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    Hub.files = {}
    yield Hub
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_for_the_file_it_has(hub: type[Hub], tmp_path: Path) -> None:
    encoder = random_encoder(tiny())
    torch.save(as_published(encoder), tmp_path / "file")
    hub.files["pytorch_model.bin"] = (tmp_path / "file").read_bytes()
    row = tiny(hub="lab/open")
    assert PublishedEncoder.load(row, find_weights(row.origin)).id == encoder.id


@pytest.mark.parametrize("repo", ["gated", "hidden", "forbidden", "expired"])
def test_closed_weights_say_what_to_do(repo: str, hub: type[Hub]) -> None:
    row = tiny(
        name="shut", hub=f"lab/{repo}", license="CC-BY-NC-ND-4.0", commercial=False, gated=True
    )
    with pytest.raises(MissingExtraError) as caught:
        find_weights(row.origin)
    assert caught.value.code == "PG-E06"
    assert caught.value.exit_code == 6
    text = str(caught.value)
    for what in ("CC-BY-NC-ND-4.0", f"https://huggingface.co/lab/{repo}", "HF_TOKEN",
                 "hf auth login", "--weights DIR", "DIR/shut/"):  # fmt: skip
        assert what in text


def test_a_hub_without_the_file_or_an_answer_is_said(
    hub: type[Hub], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingExtraError, match="It has no model") as caught:
        find_weights(tiny(hub="lab/open").origin)
    assert caught.value.code == "PG-E02"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for gated in (True, False):
        with pytest.raises(MissingExtraError, match="PG-E02") as caught:
            find_weights(tiny(hub="lab/open", gated=gated).origin)
        assert "--weights DIR" in str(caught.value)
        assert ("HF_TOKEN" in str(caught.value)) == gated
