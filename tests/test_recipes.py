"""Recipes: what extends what, the paper's rows as one line each, stages from elsewhere."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers_pretrain import MINUTE, image_folder

from pathgen.errors import ConfigError, RunError
from pathgen.extract import load_encoder
from pathgen.models.encoder import Encoder, EncoderConfig
from pathgen.plan import extraction_flops, plan_pretrain
from pathgen.pretraining import STAGES, PretrainConfig, PretrainResult, pretrain, resolve
from pathgen.recipes import read_recipe, recipe_names
from pathgen.rehearsal import rehearse
from pathgen.runs import save_model
from pathgen.stores import SelfAugmentationStore, find_stores

pytestmark = pytest.mark.usefixtures("one_thread")

#: The ladder of docs/gen-sis.md: one setting on top of a recipe, and what it must change.
LADDER = {
    "gen_dino.views.blend=off": lambda c: c.gen_dino.views.blend == "off",
    "gen_dino.disentangle_weight=0": lambda c: c.gen_dino.disentangle_weight == 0,
    "gen_dino.blend_as=positive": lambda c: c.gen_dino.blend_as == "positive",
    "gen_dino.views.blend=pixel": lambda c: c.gen_dino.views.blend == "pixel",
    "gen_dino.target=arithmetic": lambda c: c.gen_dino.target == "arithmetic",
    "augment.alphas=[0.5]": lambda c: c.augment.alphas == (0.5,),
    "dino.optim.epochs=130": lambda c: c.dino.optim.epochs == 130,
    "gen_dino.views.synthetic_strength=0.5": lambda c: c.gen_dino.views.synthetic_strength == 0.5,
    "augment.generative=4": lambda c: c.augment.generative == 4,
    "augment.interpolated_sources=3": lambda c: c.augment.interpolated_sources == 3,
    "gen_dino.views.neighbor_share=0.5": lambda c: c.gen_dino.views.neighbor_share == 0.5,
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainResult:
    """A run of all stages."""
    return pretrain(images, tmp_path_factory.mktemp("whole") / "run", "tiny", overrides=MINUTE)


# --- extends -------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_recipe_lies_over_the_one_it_extends(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "extends: tiny\nnote: below\ndino: {optim: {lr: 0.5}}\n")
    mine = write(tmp_path / "mine.yaml", "extends: base.yaml\ndino: {teacher_momentum: 0.5}\n")
    config, tiny = resolve(mine), resolve("tiny")
    assert (config.name, config.note) == ("mine", "")
    assert (config.dino.optim.lr, config.dino.teacher_momentum) == (0.5, 0.5)
    assert config.gen_dino.optim.lr == 0.5  # what is said of dino holds for Gen-DINO as ever
    assert config.dino.encoder == tiny.dino.encoder
    assert config.ldm == tiny.ldm


def test_the_resolved_recipe_stands_in_the_run_in_full(whole: PretrainResult) -> None:
    again = resolve(whole.out / "config.yaml")
    assert "extends" not in (whole.out / "config.yaml").read_text()
    assert again.model_dump(exclude={"name"}) == whole.config.model_dump(exclude={"name"})


def test_recipes_in_a_circle_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: b.yaml\n")
    b = write(tmp_path / "b.yaml", "extends: a.yaml\n")
    with pytest.raises(ConfigError, match="extend each other"):
        resolve(b)
    with pytest.raises(ConfigError, match=r"PG-C02.*[Dd]id you mean 'vit-tiny-pathology'"):
        resolve(write(tmp_path / "c.yaml", "extends: vit-tiny-patology\n"))
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        resolve(write(tmp_path / "d.yaml", "extends: gone.yaml\n"))


@pytest.mark.parametrize("family", ["vits16", "vit-tiny"])
def test_pathology_differs_from_imagenet_in_its_views_and_mirrors_alone(family: str) -> None:
    natural, tissue = (resolve(f"{family}-{kind}") for kind in ("imagenet", "pathology"))
    assert tissue.dino.views.preset == "pathology"
    assert (tissue.dino.views.vertical_flip, tissue.dino.views.solarize) == (0.5, 0.0)
    assert natural.dino.views.solarize == 0.2
    for config in (natural, tissue):
        assert config.gen_dino.views == config.dino.views
    for config, mirrored in ((natural, False), (tissue, True)):
        assert (config.autoencoder.flips, config.ldm.flips) == (mirrored, mirrored)
    flips = {name: {"flips"} for name in ("autoencoder", "ldm")}
    same = {"name": True, "note": True, "dino": {"views"}, "gen_dino": {"views"}, **flips}
    assert natural.model_dump(exclude=same) == tissue.model_dump(exclude=same)


# --- sizes and budgets ---------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if "imagenet" in name])
def test_stages_fit_each_other(recipe: str) -> None:
    """What would only fail hours later: embedding and latents of one stage are the next one's."""
    from pathgen.models.autoencoder import Autoencoder

    config = resolve(recipe)
    with torch.device("meta"):
        encoder, autoencoder = Encoder(config.dino.encoder), Autoencoder(config.autoencoder.model)
    side = config.ldm.model.latent_size
    assert config.ldm.model.embedding_dim == encoder.dim
    assert (config.ldm.model.latent_channels, side, side) == autoencoder.latent_shape
    assert config.autoencoder.model.image_size == 256
    assert config.dino.encoder.image_size == 224


def test_the_tiny_family_fits_the_night_that_its_note_promises() -> None:
    config = resolve("vit-tiny-imagenet")
    plan = plan_pretrain(config, 100_000, STAGES)
    hours = sum(stage.flops for stage in plan) / 15e12 / 3600
    said = re.search(r"= ([\d.]+) hours", config.note)
    assert said
    assert hours == pytest.approx(float(said[1]), abs=0.06)
    assert hours < 10
    assert max(stage.memory_bytes for stage in plan) < 24e9


def test_dino_costs_what_counting_by_hand_gives() -> None:
    """12 blocks of width 384 on 196 + 1 or 36 + 1 tokens; a head 384-2048-2048-256-65536."""
    config, images = resolve("vits16-imagenet"), 51_200
    (dino,) = plan_pretrain(config, images, ["dino"])

    def forward(tokens: int) -> float:
        width = 384
        block = 12 * tokens * width**2 + 2 * tokens**2 * width
        return 2 * (12 * block + (tokens - 1) * 3 * 16**2 * width)

    head = 2 * (384 * 2048 + 2048 * 2048 + 2048 * 256 + 256 * 65536)
    large, small = forward(197) + head, forward(37) + head
    each = 3 * (2 * large + 8 * small) + 2 * large
    assert dino.flops / (dino.steps * dino.batch_size) == pytest.approx(each, rel=0.001)
    assert each == pytest.approx(114e9, rel=0.01)
    assert (dino.steps, dino.batch_size) == (100 * images // 512, 512)


def test_costs_follow_the_options() -> None:
    def flops(stage: str, *settings: str) -> float:
        (plan,) = plan_pretrain(resolve("tiny", settings), 1000, [stage])
        return plan.flops

    plain = flops("dino")
    assert flops("gen-dino", "gen_dino.views.blend=off") == plain
    assert flops("gen-dino", "augment.interpolated=0") == plain
    assert flops("gen-dino", "gen_dino.disentangle_weight=0") == plain
    assert flops("gen-dino", "augment.interpolated_sources=3") > flops("gen-dino")
    assert plain < flops("gen-dino", "gen_dino.blend_as=positive") < flops("gen-dino")
    one, every = flops("gen-dino"), flops("gen-dino", "gen_dino.views.dis_pairs=all")
    assert plain < one < every
    assert flops("gen-dino", "gen_dino.views.blend=pixel") == one
    assert flops("autoencoder", "autoencoder.perceptual_weight=1") > flops("autoencoder")
    assert flops("ldm", "ldm.model.kind=dit") != flops("ldm")
    # One more look of the backbone at each patch of each step, at two views of it.
    config = resolve("tiny")
    look = extraction_flops(config.dino.encoder)  # 64 px, as the global views are
    ldm, dino = config.ldm.optim, config.dino.optim
    more = flops("ldm", "ldm.align_weight=0.5") - flops("ldm")
    assert more == pytest.approx(look * ldm.steps * ldm.batch_size, rel=1e-6)
    more = flops("dino", "dino.quality_weight=1") - plain
    assert more == pytest.approx(2 * look * dino.steps * dino.batch_size, rel=1e-6)
    judged, critic = "autoencoder.perceptual_weight=1", "autoencoder.discriminator_weight=1"
    start = "autoencoder.discriminator_start=1000"
    both = flops("autoencoder", judged, critic, start) - flops("autoencoder", judged)
    late = (config.autoencoder.optim.steps - 1000) * config.autoencoder.optim.batch_size
    more = both - (flops("autoencoder", critic, start) - flops("autoencoder"))
    assert more == pytest.approx(look * late, rel=1e-6)

    def memory(*settings: str) -> int:
        (plan,) = plan_pretrain(resolve("tiny", settings), 1000, ["dino"])
        return plan.memory_bytes

    assert memory("dino.run.accumulate=4") < memory()


# --- the paper's rows ----------------------------------------------------------------------


@pytest.mark.parametrize("row", LADDER)
def test_every_row_of_the_ladder_is_one_setting(row: str) -> None:
    plain, changed = resolve("vits16-pathology"), resolve("vits16-pathology", [row])
    assert LADDER[row](changed)
    assert not LADDER[row](plain)
    if row.startswith("gen_dino"):
        assert changed.dino == plain.dino  # the baseline stays the baseline


# --- stages brought from elsewhere ---------------------------------------------------------


def test_a_second_round_learns_from_the_first_rounds_encoder(
    whole: PretrainResult, images: Path, tmp_path: Path
) -> None:
    second = pretrain(
        images, tmp_path / "second", "tiny", overrides=MINUTE,
        from_encoder=whole.out, from_autoencoder=whole.out,
    )  # fmt: skip
    assert tuple(second.stages) == ("ldm", "augment", "gen-dino")
    first = load_encoder(whole.out / "gen-dino", device="cpu")
    ldm = json.loads((second.out / "ldm" / "provenance.json").read_text())
    assert ldm["inputs"]["encoder"] == first.id
    before = json.loads((whole.out / "ldm" / "provenance.json").read_text())
    assert ldm["inputs"]["autoencoder"] == before["inputs"]["autoencoder"]
    for path in find_stores(second.out / "augment", kind="augmentations"):
        with SelfAugmentationStore.open(path) as store:
            assert store.provenance.inputs["encoder"] == first.id
    assert not (second.out / "dino").exists()


def test_an_ablation_of_gen_dino_uses_the_images_that_are_there(
    whole: PretrainResult, images: Path, tmp_path: Path
) -> None:
    settings = [*MINUTE, "gen_dino.views.blend=pixel"]
    (tried,) = rehearse(images, "tiny", overrides=settings, from_augment=whole.out)
    assert tried.plan.stage == "gen-dino"
    pixel = pretrain(images, tmp_path / "pixel", "tiny", overrides=settings, from_augment=whole.out)
    assert tuple(pixel.stages) == ("gen-dino",)
    theirs, ours = (
        json.loads((run.out / "gen-dino" / "provenance.json").read_text())["inputs"]
        for run in (whole, pixel)
    )
    assert theirs == ours
    assert load_encoder(pixel.out, device="cpu").id != load_encoder(whole.out, device="cpu").id


def test_what_is_brought_must_be_finished_and_fit(
    whole: PretrainResult, images: Path, tmp_path: Path
) -> None:
    half = tmp_path / "half"
    shutil.copytree(whole.out / "augment", half / "augment")
    (half / "augment" / "done.json").unlink()
    with pytest.raises(RunError, match="no finished synthetic images"):
        pretrain(images, tmp_path / "a", "tiny", overrides=MINUTE, from_augment=half)
    with pytest.raises(RunError, match="PG-T04"):
        pretrain(images, tmp_path / "b", "tiny", overrides=MINUTE, from_encoder=tmp_path / "no",
                 from_autoencoder=whole.out)  # fmt: skip
    wide = EncoderConfig(
        name="vit_tiny_patch16_224", image_size=32, drop_path=0.0,
        kwargs={"patch_size": 16, "embed_dim": 64, "depth": 1, "num_heads": 2},
    )  # fmt: skip
    save_model(tmp_path / "wide", Encoder(wide))
    with pytest.raises(ConfigError, match=r"[Ss]et ldm\.model\.embedding_dim=64"):
        pretrain(images, tmp_path / "c", "tiny", overrides=MINUTE, from_encoder=tmp_path / "wide",
                 from_autoencoder=whole.out, stages=["ldm"])  # fmt: skip


def test_recipes_say_nothing_of_places() -> None:
    """A recipe is for everybody; where a run took its parts from is that run's own matter."""
    for name in recipe_names():
        assert not {"from_encoder", "from_autoencoder", "from_augment"} & read_recipe(name).keys()
        assert resolve(name).given == ()
    assert PretrainConfig(from_augment="x").given == STAGES[:-1]
