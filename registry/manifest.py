"""The manifest and its check, where the registry's users look for them; they live in exporters."""

from __future__ import annotations

from exporters.manifest import Difference, check_manifest, read_manifest, write_manifest

__all__ = ["Difference", "check_manifest", "read_manifest", "write_manifest"]
