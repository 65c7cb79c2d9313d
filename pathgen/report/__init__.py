"""One self-contained HTML page of what a folder holds. Works without torch."""

from __future__ import annotations

from pathgen.report.page import write_report

__all__ = ["write_report"]
