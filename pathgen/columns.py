"""Names that people give to the columns of their CSV files."""

from __future__ import annotations

PATIENT = (
    "patient", "patient_id", "case_id", "case", "case_submitter_id", "bcr_patient_barcode",
    "patient_barcode", "subject", "subject_id", "participant", "participant_id",
)  # fmt: skip


def folded(header: str) -> str:
    """What spellings of a column's name share: ``Patient ID``, ``patient-id``, ``patientid``."""
    return "".join(c for c in header.casefold() if not c.isspace() and c not in "_-")
