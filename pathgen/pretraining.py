"""`pathgen pretrain`: DINO -> autoencoder -> E-LDM -> synthetic views -> Gen-DINO, resumable.

Gen-SIS (arXiv 2412.01672) in one run folder. Each stage is the function of its own module;
this file only says in which order they go and what each hands on. Gen-DINO is `train_dino`
given self-augmentations, on the same recipe as DINO unless the recipe says otherwise, so that
the two are compared at the same number of real-image epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pathgen import commit, parallel
from pathgen.config import Config, read_yaml, to_yaml
from pathgen.data.sources import PatchSource, open_sources
from pathgen.errors import RunError
from pathgen.pretrainconfig import STAGES, PretrainConfig, check_stages, resolve
from pathgen.progress import Progress, Silent
from pathgen.provenance import environment
from pathgen.runs import Run, hold
from pathgen.train.engine import find_device

if TYPE_CHECKING:
    from pathgen.models.autoencoder import Autoencoder
    from pathgen.models.encoder import Encoder
    from pathgen.stores.augmentations import SelfAugmentationStore
    from pathgen.stores.features import FeatureStore

__all__ = [
    "STAGES",
    "Flow",
    "PretrainConfig",
    "PretrainResult",
    "check_stages",
    "pretrain",
    "resolve",
]


@dataclass(frozen=True)
class PretrainResult:
    """Where things are: `stages` maps each finished stage to its folder."""

    out: Path
    config: PretrainConfig
    stages: Mapping[str, Path] = field(default_factory=dict)

    @property
    def encoder(self) -> Path:
        """The best encoder there is: Gen-DINO's, else DINO's."""
        for stage in ("gen-dino", "dino"):
            if stage in self.stages:
                return self.stages[stage]
        raise RunError("no encoder in this run", where=self.out.name, hint="run the dino stage")


def pretrain(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    recipe: str | Path = "tiny",
    *,
    stages: Sequence[str] = STAGES,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    device: str | None = None,
    workers: int | None = None,
    from_encoder: str | Path | None = None,
    from_autoencoder: str | Path | None = None,
    from_augment: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PretrainResult:
    """Run the stages of a recipe on patch stores or an image folder, or go on where they stopped.

    Args:
        inputs: patch stores, folders of them, or ImageNet-style image folders.
        out: the run folder; see docs/formats.md.
        recipe: a name from `pathgen.recipes`, or a YAML file.
        stages: which of `STAGES` to do; a stage that needs an unfinished one says so.
        from_encoder: a finished encoder in place of the dino stage, as for a second round.
        from_autoencoder: a run with a finished autoencoder, in place of that stage.
        from_augment: a run with synthetic images of these patches, in place of all stages before
            gen-dino, as for an ablation of that stage.
        overwrite: start the chosen stages anew instead of resuming them.

    Raises:
        NoInputError: no patches. ConfigError: bad recipe or setting. RunError: the folder was
        made with other settings or inputs. Stopped: stopped on request with a checkpoint.
    """
    check_stages(stages)
    progress = progress if progress is not None and parallel.leads() else Silent()
    config = resolve(
        recipe, overrides, seed=seed, device=device, workers=workers, from_encoder=from_encoder,
        from_autoencoder=from_autoencoder, from_augment=from_augment,
    )  # fmt: skip
    for stage in set(stages) - set(config.given):  # before a folder is made
        group = "ldm" if stage == "augment" else stage.replace("-", "_")
        find_device(getattr(config, group).run.device)
    paths = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    sources = open_sources([Path(path) for path in paths])
    folder = commit.writable_folder(Path(out))
    # Synthesis alone may be done by several commands at a time, on several machines.
    with hold(folder, shared=set(stages) == {"augment"}):
        parallel.first(lambda: commit.sweep(folder))
        flow = Flow(folder, config, sources, overwrite, progress)
        for stage in STAGES:
            if stage in stages:
                progress.say(f"{stage}: {flow.status(stage)}")
                if stage not in config.given:
                    flow.do(stage)
    done = {stage: folder / stage for stage in STAGES if (folder / stage / "done.json").exists()}
    return PretrainResult(out=folder, config=config, stages=done)


def data_facts(sources: Sequence[PatchSource]) -> dict[str, Any]:
    """What `data.json` of a run folder says of the training images."""
    facts = []
    for source in sources:
        attrs = getattr(source, "attrs", {})
        size = {key: attrs.get(key) for key in ("patch_size", "target_mpp")}
        facts.append({"name": source.name, "id": source.id, "patches": len(source), **size})
    return {"patches": sum(map(len, sources)), "sources": facts}


class Flow:
    """The stages over one run folder; each loads what it needs from the folders before it."""

    runs: ClassVar[type[Run]] = Run
    #: Whether synthesis also draws a sheet to judge by.
    sheet: ClassVar[bool] = True

    def __init__(
        self,
        out: Path,
        config: PretrainConfig,
        sources: Sequence[PatchSource],
        overwrite: bool,
        progress: Progress,
    ) -> None:
        self.out, self.config, self.sources = out, config, sources
        self.overwrite, self.progress = overwrite, progress
        self.extracted = False
        self.patches = {f"{i:05d} {source.name}": source.id for i, source in enumerate(sources)}

    def do(self, stage: str) -> None:
        steps: dict[str, Callable[[], None]] = {
            "dino": self.dino, "autoencoder": self.autoencoder, "ldm": self.ldm,
            "augment": self.augment, "gen-dino": self.gen_dino,
        }  # fmt: skip
        steps[stage]()

    def status(self, stage: str) -> str:
        if stage in self.config.given:
            return "left out, a finished one is given"
        if self._there(stage) and not self.overwrite:
            return "finished before"
        return "going on" if (self.out / stage).exists() and not self.overwrite else "starting"

    def start(self, stage: str, config: Config, **inputs: str) -> Run:
        run = self.runs.start(
            self.out / stage, stage, config, {**self.patches, **inputs}, overwrite=self.overwrite
        )
        self.agreed()
        return run

    def agreed(self) -> None:
        """Say what is asked, once the folder has turned out not to be another run's."""
        parallel.first(self._note)

    def _note(self) -> None:
        commit.write_text(self.out / "config.yaml", to_yaml(self._as_run()))
        commit.write_json(self.out / "environment.json", environment())
        commit.write_json(self.out / "data.json", data_facts(self.sources))

    def _as_run(self) -> dict[str, Any]:
        """The recipe, with the settings that finished stages were really run with."""
        values = self.config.model_dump(mode="json")
        for stage in STAGES:
            own = self.out / stage / "config.yaml"
            if self._there(stage) and own.exists():
                values[stage.replace("-", "_")] = read_yaml(own)
        return values

    def dino(self) -> None:
        from pathgen.train.dino import train_dino

        run = self.start("dino", self.config.dino)
        if not run.finished:
            train_dino(self.config.dino, self.sources, run, progress=self.progress)

    def autoencoder(self) -> None:
        from pathgen.train.autoencoder import train_autoencoder

        config = self.config.autoencoder
        # Without a weight the encoder only says how alike reconstructions are to it.
        wanted = config.perceptual_weight or self._there("dino")
        judge = self._encoder("autoencoder") if wanted else None
        inputs = {"encoder": judge.id} if judge and config.perceptual_weight else {}
        run = self.start("autoencoder", config, **inputs)
        if not run.finished:
            train_autoencoder(config, self.sources, run, progress=self.progress, encoder=judge)

    def ldm(self) -> None:
        from pathgen.models.weights import weights_id
        from pathgen.train.ldm import train_ldm

        encoder, autoencoder = self._encoder("ldm"), self._autoencoder("ldm")
        # By their weights, not by what was asked for: another device gives other weights.
        run = self.start(
            "ldm", self.config.ldm, encoder=encoder.id, autoencoder=weights_id(autoencoder)
        )
        if not run.finished:
            features = self._features(encoder)
            train_ldm(
                self.config.ldm, self.sources, features, autoencoder, run,
                progress=self.progress, encoder=encoder,
            )  # fmt: skip

    def augment(self) -> None:
        from pathgen.augment import augment
        from pathgen.models.ldm import EmbeddingConditionedLDM
        from pathgen.runs import load_model

        encoder, autoencoder = self._encoder("augment"), self._autoencoder("augment")
        self._need("ldm", "augment")
        ldm = load_model(self.out / "ldm" / "model", EmbeddingConditionedLDM)
        # Adaptive noise reads the foreground off the patches, pictures or not.
        patches = self.sources if self.sheet or self.config.augment.adaptive.noise else None
        # Of several processes each draws a part.
        augment(
            ldm,
            autoencoder,
            encoder,
            self._features(encoder),
            self.out / "augment",
            self.config.augment,
            sources=patches,
            overwrite=self.overwrite,
            device=self.config.ldm.run.device,
            progress=self.progress,
        )
        self.agreed()

    def gen_dino(self) -> None:
        from pathgen.train.dino import train_dino

        augmentations = self._augmentations()
        made = {f"augmentation {i:05d}": store.id for i, store in enumerate(augmentations)}
        run = self.start("gen-dino", self.config.gen_dino, **made)
        if not run.finished:
            train_dino(
                self.config.gen_dino, self.sources, run, augmentations, progress=self.progress
            )

    def _there(self, stage: str) -> bool:
        return stage in self.config.given or (self.out / stage / "done.json").exists()

    def _need(self, stage: str, wanted_by: str) -> None:
        if not self._there(stage):
            missing = [s for s in STAGES[: STAGES.index(wanted_by)] if not self._there(s)]
            raise RunError(
                f"the {wanted_by} stage needs a finished {stage} stage", where=self.out.name,
                hint=f"run what is missing too: --stages {','.join([*missing, wanted_by])}",
            )  # fmt: skip

    def _encoder(self, wanted_by: str) -> Encoder:
        from pathgen.encoders import load_trained

        device = self.config.dino.run.device
        if self.config.from_encoder:
            return load_trained(self.config.from_encoder, device=device)
        self._need("dino", wanted_by)
        return load_trained(self.out / "dino", device=device)

    def _autoencoder(self, wanted_by: str) -> Autoencoder:
        from pathgen.models.autoencoder import Autoencoder
        from pathgen.runs import load_model

        if self.config.from_autoencoder:
            place = Path(self.config.from_autoencoder)
            inside = place / "autoencoder"
            return load_model(inside if inside.is_dir() else place, Autoencoder)
        self._need("autoencoder", wanted_by)
        return load_model(self.out / "autoencoder" / "model", Autoencoder)

    def _features(self, encoder: Encoder) -> list[FeatureStore]:
        """The condition of every real patch: the frozen DINO teacher's embedding."""
        from pathgen.extract import extract_features
        from pathgen.stores.features import FeatureStore

        settings = self.config.features
        if settings.precision == "auto":  # the E-LDM and the filter compute embeddings in full
            settings = settings.model_copy(update={"precision": "fp32"})
        paths = parallel.first(
            lambda: extract_features(
                encoder,
                self.sources,
                self.out / "features",
                settings,
                overwrite=self.overwrite and not self.extracted,
                progress=self.progress,
            )
        )
        self.extracted = True
        return [FeatureStore.open(path) for path in paths]

    def _augmentations(self) -> list[SelfAugmentationStore]:
        from pathgen.stores.augmentations import SelfAugmentationStore

        if self.config.from_augment:
            place = Path(self.config.from_augment)
            inside = place / "augment"
            folder = inside if inside.is_dir() else place
            if not (folder / "done.json").is_file():
                raise RunError("no finished synthetic images here", where=place,
                               hint="give a run whose augment stage is finished")  # fmt: skip
        else:
            self._need("augment", "gen-dino")
            folder = self.out / "augment"
        names = commit.read_json(folder / "done.json")["stores"]
        return [SelfAugmentationStore.open(folder / name) for name in names]
