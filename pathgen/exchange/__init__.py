"""Stores to and from the files of other tools, and what those tools would make of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathgen.exchange.export import ExportConfig, ExportReport, export_stores
    from pathgen.exchange.findings import Finding
    from pathgen.exchange.importing import ImportConfig, ImportReport, import_files
    from pathgen.exchange.verification import VerifyReport, verify

_WHERE = {
    "ExportConfig": "export",
    "ExportReport": "export",
    "Finding": "findings",
    "ImportConfig": "importing",
    "ImportReport": "importing",
    "VerifyReport": "verification",
    "export_stores": "export",
    "import_files": "importing",
    "verify": "verification",
}
__all__ = [
    "ExportConfig", "ExportReport", "Finding", "ImportConfig", "ImportReport", "VerifyReport",
    "export_stores", "import_files", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"pathgen.exchange.{_WHERE[name]}"), name)
