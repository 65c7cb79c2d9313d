"""A published encoder: pathgen and timm read the same network from it, and the card says whence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from helpers_pretrain import MINUTE, image_folder
from safetensors.torch import load_file, save_file

from pathgen.cli import main
from pathgen.errors import RunError, StorageError
from pathgen.extract import load_encoder
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.pretraining import pretrain
from pathgen.publishing import publish
from pathgen.runs import save_model

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL_VIT = {
    "name": "vit_tiny_patch16_224", "image_size": 32, "drop_path": 0.0, "mean": (0.7, 0.5, 0.6),
    "kwargs": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished dino stage."""
    place = tmp_path_factory.mktemp("publish")
    images = image_folder(place / "images")
    return pretrain(images, place / "run", "tiny", overrides=MINUTE, stages=["dino"]).out


@pytest.fixture
def published(run: Path, tmp_path: Path) -> Path:
    return publish(run, tmp_path / "my-encoder")


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_timm_and_pathgen_read_the_same_network(pool: str, tmp_path: Path) -> None:
    kwargs = SMALL_VIT["kwargs"] | {"global_pool": pool}  # type: ignore[operator]
    encoder = Encoder(EncoderConfig.model_validate({**SMALL_VIT, "kwargs": kwargs})).eval()
    save_model(tmp_path / "model", encoder)
    again = load_encoder(tmp_path / "model", device="cpu")
    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    data = timm.data.resolve_model_data_config(model)
    mean, std = (torch.tensor(data[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert (*data["input_size"], *data["mean"]) == (3, 32, 32, 0.7, 0.5, 0.6)
    for side in (32, 48):  # the size it was made for, and another
        images = torch.rand(2, 3, side, side)
        with torch.no_grad():
            assert torch.equal(again(images), encoder(images))
            assert torch.equal(model((images - mean) / std), encoder(images))
    assert again.id == encoder.id


def test_a_convolutional_encoder_can_be_published_too(tmp_path: Path) -> None:
    config = EncoderConfig(name="resnet10t", image_size=32, drop_path=0.0)
    encoder = Encoder(config).eval()
    save_model(tmp_path / "model", encoder)
    model = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    with torch.no_grad():
        assert torch.equal(model((images - mean) / std), encoder(images))


def test_timm_can_put_a_classifier_on_it(published: Path) -> None:
    model = timm.create_model(f"local-dir:{published}", pretrained=True, num_classes=5)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    kept = load_file(published / "model.safetensors")
    assert torch.equal(model.state_dict()["pos_embed"], kept["pos_embed"])


def test_a_published_encoder_is_the_runs_encoder(run: Path, published: Path) -> None:
    theirs, ours = (load_encoder(path, device="cpu") for path in (published, run))
    patches = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    assert theirs.id == ours.id
    np.testing.assert_array_equal(theirs.encode(patches), ours.encode(patches))


def test_publishing_twice_gives_equal_bytes(run: Path, tmp_path: Path) -> None:
    first, second = (publish(run, tmp_path / folder / "e") for folder in "ab")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_folders_of_earlier_versions_still_load(published: Path, tmp_path: Path) -> None:
    """Version 1 had the weights under the names of `Encoder.state_dict`."""
    old = tmp_path / "old"
    old.mkdir()
    facts = json.loads((published / "config.json").read_text())
    facts = {key: facts[key] for key in ("format", "model", "config")} | {"version": 1}
    (old / "config.json").write_text(json.dumps(facts))
    weights = load_file(published / "model.safetensors")
    renamed = {f"backbone.{name}": tensor for name, tensor in weights.items()}
    save_file(renamed, old / "model.safetensors")
    assert load_encoder(old, device="cpu").id == load_encoder(published, device="cpu").id


def test_the_card_says_what_it_was_made_from_and_names_no_slide(run: Path, tmp_path: Path) -> None:
    figures = tmp_path / "knn.json"
    figures.write_text(json.dumps({"accuracy": 0.8125, "k": 20}))
    card = (publish(run, tmp_path / "e", metrics=[figures]) / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == "timm"
    assert yaml.safe_load(front)["license"] == "other"
    assert "FILL IN" in body
    assert "12 patches of 1 source" in body
    assert "Recipe `tiny`" in body
    assert "| knn | accuracy | 0.8125 |" in body
    settings = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert settings["dino"]["optim"]["steps"] == 3
    assert settings["dino"]["teacher_momentum"] == 0.98
    assert "local-dir:FOLDER" in body
    assert str(tmp_path) not in card
    assert "images" not in settings
    assert json.loads((run / "data.json").read_text())["sources"][0]["id"] not in card


def test_a_license_that_is_given_leaves_no_gap(run: Path, tmp_path: Path) -> None:
    card = (publish(run, tmp_path / "e", license="cc-by-4.0") / "README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert "FILL IN" not in card


def test_an_unfinished_run_is_not_published(run: Path, tmp_path: Path) -> None:
    """Not even by way of an earlier stage that is finished: that must be asked for by name."""
    half = tmp_path / "run"
    shutil.copytree(run, half)
    shutil.copytree(half / "dino", half / "gen-dino")
    facts = json.loads((half / "gen-dino" / "provenance.json").read_text())
    text = json.dumps(facts | {"stage": "gen-dino"})
    (half / "gen-dino" / "provenance.json").write_text(text)
    (half / "gen-dino" / "done.json").unlink()
    with pytest.raises(RunError, match=r"not finished.*gen-dino stage is still under way"):
        publish(half, tmp_path / "e")
    assert not (tmp_path / "e").exists()
    publish(half / "dino", tmp_path / "e")
    with pytest.raises(RunError, match="PG-T04"):
        publish(tmp_path, tmp_path / "f")


def test_only_a_published_encoder_is_ever_replaced(run: Path, tmp_path: Path) -> None:
    place = publish(run, tmp_path / "e")
    with pytest.raises(StorageError, match=r"PG-O21.*--overwrite"):
        publish(run, place)
    (place / "README.md").write_text("mine")
    publish(run, place, overwrite=True)
    assert "FILL IN" in (place / "README.md").read_text()
    (place / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"PG-O21.*just a published encoder"):
        publish(run, place, overwrite=True)
    assert (place / "notes.txt").read_text() == "mine"


def test_the_command_says_how_to_load_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["publish", str(run), "-o", str(tmp_path / "e")])
    assert not stop.value.code
    said = capsys.readouterr().out
    call = said.strip().rsplit(" or ", 1)[1]
    model = eval(call, {"timm": timm})  # noqa: S307 - what the command told its user to type
    assert model.num_features == load_encoder(tmp_path / "e", device="cpu").dim
    assert "Fill in the license" in said
