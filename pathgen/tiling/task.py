"""What is asked of one slide: the settings, and the task a worker gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pathgen.config import Config, WrongValue
from pathgen.provenance import Provenance
from pathgen.stores import FORMAT_VERSION
from pathgen.stores.patches import PatchSpec
from pathgen.tiling.inputs import SlideInput
from pathgen.tiling.masks import MaskConfig, mask_digest, read_regions
from pathgen.tiling.normalize import NormalizeConfig, content
from pathgen.tiling.overview import NATIVE_TOLERANCE
from pathgen.tiling.presets import in_pixels
from pathgen.tiling.readers import open_with
from pathgen.tiling.readers.base import BaseReader
from pathgen.tiling.readers.check import slide_identity
from pathgen.tiling.regions import Regions
from pathgen.tiling.slide import Scale, SlideReader
from pathgen.tiling.tissue import TissueConfig


class TileConfig(Config):
    """What is cut from each slide, and what of it is kept."""

    patch_size: int = Field(default=256, ge=16, le=4096)
    """pixels a side"""
    mpp: float | None = Field(default=0.5, gt=0)
    """microns per pixel of the patches; None = level 0 as it is"""
    overlap: int = Field(default=0, ge=-65536)
    """pixels that neighbors share; below 0, the gap between them"""
    edge: Literal["drop", "pad", "shift"] = "drop"
    """a rest at the far edge smaller than a patch is left out; or a patch reaches beyond, white
    there; or the last patch is moved back to end with the slide"""
    min_tissue: float = Field(default=0.5, ge=0, le=1)
    """least share of a patch that the tissue mask covers"""
    min_hematoxylin: float = Field(default=0.01, ge=0, le=1)
    """least share of a patch's pixels with hematoxylin; see `pathgen.tiling.stain`"""
    min_focus: float = Field(default=0, ge=0, le=1)
    """least sharpness; see `pathgen.tiling.quality`, also for those that follow"""
    max_pen: float = Field(default=1, ge=0, le=1)
    """largest share of a patch's pixels with colors of felt pen"""
    max_black: float = Field(default=1, ge=0, le=1)
    max_white: float = Field(default=1, ge=0, le=1)
    max_fold: float = Field(default=1, ge=0, le=1)
    tissue: TissueConfig = TissueConfig()
    masks: MaskConfig = MaskConfig()
    write_tissue: bool = False
    """write the tissue's outline to ``tissue/<slide>.geojson``, to be corrected in QuPath and given
    back as a mask"""
    store: Literal["h5", "zarr"] = "h5"
    codec: Literal["jpeg", "png"] = "jpeg"
    quality: int = Field(default=92, ge=1, le=100)
    """of JPEG, always 4:4:4"""
    copy_tiles: bool = True
    """store the slide's own JPEG bytes where a patch is one of its tiles as it stands"""
    align: Literal["bounds", "native"] = "bounds"
    """where the grid starts: at the scanned bounds, or at the slide's first whole tile in them"""
    max_damaged: float = Field(default=0.001, ge=0, le=1)
    """share of the patches that damaged tiles may take along before the slide fails"""
    color: Literal["as-is", "srgb"] = "as-is"
    """srgb: colors by the profile in the slide file, where there is one"""
    normalize: NormalizeConfig = NormalizeConfig()
    allow_upsample: bool = False
    """tile slides coarser than `mpp` by more than 3 % too, by enlarging"""
    mpp_tolerance: float = Field(default=NATIVE_TOLERANCE, ge=0, le=0.05)
    """a level this close to `mpp`, relative, is taken as it is; the rest is stored as mpp_error"""
    reader: Literal[
        "auto", "openslide", "native", "tiffslide", "dicom", "omezarr", "flat"
    ] = "auto"  # fmt: skip
    slide_mpp: float | None = Field(default=None, ge=0.05, le=10)
    """microns per level-0 pixel of slides that do not say it, or say what cannot be"""
    thumbnail_px: int = Field(default=1024, ge=64, le=8192)
    """longer side of the thumbnails"""

    @model_validator(mode="before")
    @classmethod
    def _geometry(cls, values: Any) -> Any:
        """`patch_um` and `step` are other words for `patch_size` and `overlap`."""
        return in_pixels(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _some_step(self) -> Self:
        if self.overlap >= self.patch_size:
            raise WrongValue(
                "overlap", f"overlap {self.overlap} leaves no step for patches of {self.patch_size}"
            )
        return self

    @property
    def spec(self) -> PatchSpec:
        return PatchSpec(size=self.patch_size, mpp=self.mpp, overlap=self.overlap)


#: Settings that choose among the patches, and the measure each is a limit of.
LIMITS: Mapping[str, str] = {
    "min_tissue": "tissue", "min_hematoxylin": "hematoxylin", "min_focus": "focus",
    "max_pen": "pen", "max_black": "black", "max_white": "white", "max_fold": "fold",
}  # fmt: skip
#: Settings that leave the content of a store alone.
COSMETIC = frozenset({"thumbnail_px", "write_tissue"})


@dataclass(frozen=True)
class TileTask:
    """All a worker needs to tile one slide into `out`."""

    slide: SlideInput
    out: Path
    config: TileConfig
    plan: bool = False
    overwrite: bool = False
    stale: tuple[Path, ...] = ()
    """patch stores to remove when this one is made; with `overwrite`, also when it cannot be"""
    threads: int = 1
    """that work on this slide"""
    paths: tuple[str, str] = field(init=False)

    def __post_init__(self) -> None:
        name = self.slide.name
        paths = f"{name}.{self.config.store}", f"thumbnails/{name}.jpg"
        object.__setattr__(self, "paths", paths)

    @property
    def store(self) -> Path:
        return self.out / self.paths[0]

    @property
    def thumbnail(self) -> Path:
        return self.out / self.paths[1]

    def open(self) -> BaseReader:
        """The slide; a CSV's pixel size wins over its own, the setting's stands in for one."""
        listed, given = self.slide.mpp, self.config.slide_mpp
        return open_with(
            self.slide.path, self.config.reader,
            None if listed is None else Scale(listed, listed, "csv"),
            fallback=None if given is None else Scale(given, given, "option"),
        )  # fmt: skip

    def absolute(self) -> Self:
        """With no relative path, for a process whose current folder is another."""
        slide, config = self.slide, self.config
        if isinstance(slide.path, Path):
            slide = replace(slide, path=slide.path.absolute())
        if slide.mask is not None:
            slide = replace(slide, mask=slide.mask.absolute())
        if config.normalize.target is not None:
            target = str(Path(config.normalize.target).absolute())
            normalize = config.normalize.model_copy(update={"target": target})
            config = config.model_copy(update={"normalize": normalize})
        return replace(self, slide=slide, out=self.out.absolute(), config=config)

    @property
    def place(self) -> Path | None:
        """Where the slide lies; None where that is no path, as of a URL."""
        return self.slide.path if isinstance(self.slide.path, Path) else None

    @property
    def known(self) -> dict[str, Any]:
        return {"label": self.slide.label, "patient": self.slide.patient}

    @property
    def settings(self) -> dict[str, Any]:
        """All that the content of the store may depend on, besides the slide file."""
        settings = self.config.model_dump(mode="json", exclude=set(COSMETIC))
        facts = {"name": self.slide.name, "format": FORMAT_VERSION, **self.known}
        if self.slide.mpp is not None:
            settings["slide_mpp"] = None  # not asked
            facts["mpp"] = self.slide.mpp
        target = self.config.normalize.target
        if target is not None:  # what is in it counts, not where it lies
            settings["normalize"]["target"] = content(target)
        return {**settings, "slide": facts}

    def settings_for(self, mpp_source: str | None) -> dict[str, Any]:
        """All that it depends on, of a slide whose pixel size comes from `mpp_source`: the
        setting `slide_mpp` counts only where it was used."""
        settings = self.settings
        if mpp_source != "option":
            settings["slide_mpp"] = None
        return settings

    def provenance(self, mpp_source: str | None) -> Provenance:
        """Its id says whether a store on disk is what this task would make.

        Raises:
            NoInputError, SlideError: as `slide_identity`.
        """
        inputs = {"slide": slide_identity(self.slide.path)}
        if self.slide.mask is not None:
            inputs["mask"] = mask_digest(self.slide.mask)
        return Provenance(stage="tile", config=self.settings_for(mpp_source), inputs=inputs)

    def regions(self, slide: SlideReader) -> Regions | None:
        """What the slide's mask draws; None without a mask.

        Raises:
            SlideError: as `read_regions`.
        """
        if self.slide.mask is None:
            return None
        return read_regions(self.slide.mask, slide, self.config.masks)
