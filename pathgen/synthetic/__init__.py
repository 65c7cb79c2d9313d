"""Synthetic H&E slides with known truth: for tests, documentation and the demo."""

from pathgen.synthetic.cohort import CohortConfig, make_slide, make_slides
from pathgen.synthetic.spec import CLASSES, SlideSpec, isup
from pathgen.synthetic.truth import SlideTruth

__all__ = [
    "CLASSES",
    "CohortConfig",
    "SlideSpec",
    "SlideTruth",
    "isup",
    "make_slide",
    "make_slides",
]
