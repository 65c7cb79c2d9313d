"""Before slides are tiled: can each be read, what does it say of itself, what will it take."""

from __future__ import annotations

from pathgen.doctor.diagnosis import Diagnosis, diagnose
from pathgen.doctor.page import write_diagnosis

__all__ = ["Diagnosis", "diagnose", "write_diagnosis"]
