"""The manifest and its check, where the registry's users look for them; they live in exporters."""

from __future__ import annotations

from exporters.manifest import Difference, check_manifest, read_manifest, write_manifest
from exporters.verify import Finding, VerifyReport, verify_artifact

__all__ = [
    "Difference",
    "Finding",
    "VerifyReport",
    "check_manifest",
    "read_manifest",
    "verify_artifact",
    "write_manifest",
]
