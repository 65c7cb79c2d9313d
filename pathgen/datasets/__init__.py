"""Public cohorts as they are on disk, and the protocols results are compared by."""

from pathgen.datasets.cohort import Cohort, Member, read_cohort, write_cohort
from pathgen.datasets.protocols import PROTOCOLS, Protocol, Splits, divide

__all__ = [
    "PROTOCOLS", "Cohort", "Member", "Protocol", "Splits", "divide", "read_cohort", "write_cohort"
]  # fmt: skip
