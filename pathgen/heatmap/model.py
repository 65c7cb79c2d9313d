"""A trained slide classifier, asked where it looked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pathgen.errors import DataError, NoInputError
from pathgen.heatmap.answer import Answer, Evidence
from pathgen.heatmap.embed import Vectors, embedded, stored
from pathgen.heatmap.heads import Head, Heads, load_heads
from pathgen.heatmap.pixels import NoPixels, Pixels, SlidePixels, StorePixels, opened
from pathgen.heatmap.place import Place
from pathgen.heatmap.result import Heatmap
from pathgen.heatmap.settings import HeatmapConfig
from pathgen.heatmap.subjects import Paths, Subject, find_subjects
from pathgen.progress import Progress, Silent
from pathgen.tiling.inputs import safe_name

if TYPE_CHECKING:
    from pathgen.encoders import PatchEncoder
    from pathgen.tiling.slide import SlideReader
    from pathgen.tiling.task import TileConfig


class Said:
    """What heads say of one bag: means over them."""

    def __init__(
        self, answer: Answer, attention: NDArray[np.float32], evidence: Evidence | None
    ) -> None:
        self.answer, self.attention, self.evidence = answer, attention, evidence


class SlideModel:
    """The heads of a run, and where to find what they need of a slide.

    Args:
        heads: from `load_heads`.
        features: feature stores, or folders of them, in which slides are looked up.
        patches: patch stores, for pixels and for features where there are none.
        encoder: that of the heads' features, or its name; needed for slides without features.
        tiling: how such slides are cut; default: as the training's slides were.
        device: of heads and encoder.
        work: folder for features made on the spot, which stay there, each slide's in its own;
            default: they are thrown away.
        overwrite: make features anew where others are in the way.
    """

    def __init__(
        self,
        heads: Heads,
        *,
        features: Paths | None = None,
        patches: Paths | None = None,
        encoder: PatchEncoder | str | Path | None = None,
        tiling: TileConfig | None = None,
        device: str = "auto",
        config: HeatmapConfig | None = None,
        work: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        from pathgen.train.engine import find_device

        self.heads, self.features, self.patches = heads, features, patches
        self.config = config or HeatmapConfig()
        self.work, self.overwrite = work, overwrite
        self.device = find_device(device)
        for head in heads.heads:
            head.module.to(self.device).eval()
        self._encoder, self._tiling = encoder, tiling

    def __repr__(self) -> str:
        heads = self.heads
        what = ", ".join(heads.classes) or heads.target
        return f"SlideModel({len(heads.heads)} heads, {heads.dim} numbers a patch -> {what})"

    @property
    def encoder(self) -> PatchEncoder | None:
        """The encoder, loaded when first needed."""
        if isinstance(self._encoder, str | Path):
            from pathgen.encoders import load_encoder

            self._encoder = load_encoder(self._encoder, str(self.device))
        return self._encoder

    def tiling(self, config: HeatmapConfig | None = None) -> TileConfig:
        """How slides without features are cut.

        Raises:
            DataError: PG-H01, the run does not say how its own were cut.
        """
        from pathgen.heatmap.tilings import training_tiling

        found = self._tiling or training_tiling(self.heads)
        share = (config or self.config).overlap
        return found.model_copy(
            update={"overlap": max(found.overlap, round(share * found.patch_size))}
        )

    def heatmap(
        self,
        slide: Path | str | Subject,
        *,
        config: HeatmapConfig | None = None,
        progress: Progress | None = None,
    ) -> Heatmap:
        """What the heads say of one slide, patch by patch.

        Args:
            slide: a slide file, a patch store or a feature store.

        Raises:
            DataError: PG-H01, no features and no encoder; PG-H02, features of another encoder;
                PG-H03, the patches have no place; PG-H05, stores of another slide.
            NoInputError: PG-H06, the slide has no patches.
            SlideError, StoreError: as their names say.
        """
        subject = slide if isinstance(slide, Subject) else self.subject(slide)
        if subject.problem is not None:
            raise subject.problem
        config, progress = config or self.config, progress or Silent()
        vectors = self.vectors(subject, progress, config)
        if not len(vectors):
            raise NoInputError(
                "slide without patches", code="PG-H06", where=subject.name,
                why="no tissue was found, or no patch passed the filters of tiling",
                hint="look at its thumbnail and at the ledger of its tiling",
            )  # fmt: skip
        name = self.heads.known_as(vectors.name)
        heads, voices = self.heads.for_slide(name)
        said = self.ask(heads, vectors)
        pixels, reader = _pixels(subject)
        place = Place.of(vectors.facts, vectors.coords, subject.name).on(reader)
        evidence = said.evidence if config.evidence else None
        return Heatmap(
            subject.name, vectors.source, place, said.attention,
            None if evidence is None else evidence.values,
            () if evidence is None else evidence.names,
            said.answer, voices, pixels, config, _notes(vectors, name),
        )  # fmt: skip

    def subject(self, slide: Path | str) -> Subject:
        """What there is of one slide. Raises DataError (PG-H05) where several are meant."""
        found = find_subjects(slide, features=self.features, patches=self.patches)
        if len(found) != 1:
            raise DataError(
                "one slide at a time", code="PG-H05", where=slide,
                why=f"there are {len(found)}", hint="give one, or use pathgen heatmap",
            )  # fmt: skip
        return found[0]

    def vectors(
        self,
        subject: Subject,
        progress: Progress | None = None,
        config: HeatmapConfig | None = None,
    ) -> Vectors:
        """The vectors of a slide's patches, stored or made. Errors as `heatmap`."""
        config = config or self.config
        finer = config.overlap > 0
        if subject.features is not None and not finer:
            return stored(subject, self.heads)
        encoder = self.encoder
        if encoder is None or (finer and subject.slide is None):
            raise DataError(
                "a finer map needs the slide and the encoder" if finer else
                "no features of this slide", code="PG-H01", where=subject.name,
                why="stored features are where they are" if finer else
                "none was found in the folders given",
                hint="give the slide and --encoder" if finer else
                "give --features with its feature store, or --encoder to make them now",
            )  # fmt: skip
        # Stored patches will do, but for a finer map: they are where they are.
        cut = finer or subject.patches is None
        tiling = self.tiling(config) if cut else None
        with ExitStack() as stack:
            folder = self.work
            if folder is None:
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="pathgen-")))
            return embedded(
                subject, self.heads, encoder, tiling, folder / safe_name(subject.name), config,
                overwrite=self.overwrite, progress=progress or Silent(),
            )  # fmt: skip

    def ask(self, heads: Sequence[Head], vectors: Vectors) -> Said:
        """Means over heads of probabilities (or value, or risk), attention and evidence."""
        import torch

        from pathgen.models.mil import targets

        features = torch.from_numpy(np.ascontiguousarray(vectors.features))[None].to(self.device)
        coords = torch.from_numpy(np.ascontiguousarray(vectors.coords))[None].to(self.device)
        mask = torch.ones(features.shape[:2], dtype=torch.bool, device=self.device)
        answers, attention, evidence = [], [], []
        target = self.heads.target
        with torch.inference_mode():
            for head in heads:
                output = head.module(features, mask, coords)
                logits = output.logits.cpu().double()
                answers.append(
                    targets.probabilities(target, logits)
                    if self.heads.classes else logits[:, :1]
                )  # fmt: skip
                attention.append(output.attention[0].cpu().double().numpy())
                if output.evidence is not None:
                    evidence.append(output.evidence[0].cpu().double().numpy())
        mean = torch.stack(answers).mean(0)
        classes = self.heads.classes
        names = classes or (("risk",) if target == "survival" else ("value",))
        choice = int(targets.choices(target, mean)) if classes else 0
        answer = Answer(target, names, mean[0].numpy(), choice)
        parts = np.mean(evidence, axis=0) if len(evidence) == len(heads) else None
        return Said(
            answer, np.mean(attention, axis=0).astype(np.float32),
            Evidence.of(target, classes, parts),
        )  # fmt: skip


def load_model(
    run: Path | str,
    *,
    features: Paths | None = None,
    patches: Paths | None = None,
    encoder: PatchEncoder | str | Path | None = None,
    device: str = "auto",
    config: HeatmapConfig | None = None,
) -> SlideModel:
    """A run of `pathgen train-mil`, one fold of it or a head's folder, ready to be asked.

    ``load_model("runs/panda").heatmap("slides/B12.svs").save("B12.png")``

    Raises:
        RunError: PG-T04, no finished head is there.
    """
    return SlideModel(
        load_heads(run), features=features, patches=patches, encoder=encoder, device=device,
        config=config,
    )  # fmt: skip


def _notes(vectors: Vectors, name: str) -> tuple[str, ...]:
    same = "" if name == vectors.name else f"Taken for the slide {name} of the run."
    return tuple(note for note in (vectors.made, same) if note)


def _pixels(subject: Subject) -> tuple[Pixels, SlideReader | None]:
    """Of the slide, else of its patches, else none."""
    if subject.slide is not None:
        slide = opened(subject.slide)
        slide.close()  # until it is read from
        return SlidePixels(slide), slide
    if subject.patches is not None:
        return StorePixels(subject.patches), None
    return NoPixels(), None
