"""What is drawn of a slide."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pathgen.config import Config


class HeatmapConfig(Config):
    """How maps look and which files are written. No setting changes what the heads say."""

    attention: Literal["percentile", "min-max"] = "percentile"
    """colors of the attention map: the share of the slide's patches that weigh less, or the raw
    weight between the slide's least and greatest"""
    opacity: float = Field(default=0.6, gt=0, le=1)
    """of the colors over the tissue"""
    longest: int = Field(default=1000, ge=200, le=8192)
    """pixels of the longer side of each picture of the slide"""
    top: int = Field(default=16, ge=0, le=400)
    """patches on each contact sheet; 0 writes none"""
    evidence: bool = True
    """maps of what speaks for and against each class, where the head tells it"""
    qupath: bool = True
    """`heatmap.geojson`: every patch as a tile with its measurements"""
    bounds_shift: bool = True
    """count the tiles from the corner of the scanned part, as QuPath does"""
    ome: Literal["overlay", "values", "none"] = "overlay"
    """`heatmap.ome.tiff`: the colored slide (RGB), or a float32 channel a measurement"""
    deepzoom: bool = False
    """`heatmap.dzi` and its tiles: the colored slide for a browser"""
    mpp: float = Field(default=4.0, gt=0, le=64)
    """microns per pixel of OME-TIFF and DeepZoom"""
    batch_size: int = Field(default=256, ge=1)
    """patches encoded at a time, where features are extracted"""
    overlap: float = Field(default=0.0, ge=0, le=0.9)
    """share of a patch that neighbors have in common, where features are extracted: a finer map"""
