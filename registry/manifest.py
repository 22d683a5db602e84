"""The manifest: every file of an artifact with size and sha256, and the check that nothing changed since."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compiler.artifact import MANIFEST, Artifact
from editspec.errors import InputError

VERSION = 1
# What downloading adds to a folder (the Hub client's bookkeeping); never part of what was built.
DOWNLOAD_FILES = (".gitattributes",)
DOWNLOAD_FOLDERS = (".cache/",)


@dataclass(frozen=True)
class Difference:
    """One file that is not as the manifest says."""

    path: str
    what: Literal["missing", "unexpected", "changed"]


def write_manifest(artifact: Artifact) -> None:
    """Write provenance/manifest.json over every other file. Call it last: what is added later is unlisted."""
    files = {
        name: {"size": artifact.path(name).stat().st_size, "sha256": artifact.sha256(name)}
        for name in artifact.files()
        if name != MANIFEST
    }
    artifact.write(MANIFEST, {"manifest": VERSION, "files": files})


def check_manifest(folder: Path) -> tuple[Difference, ...]:
    """Every file that is missing, unexpected or changed, by path; () says the artifact is as it was built.

    `InputError` where there is no readable manifest. This finds damage, not deceit: who can change a file
    can change the manifest; a signature is what ties it to a maker.
    """
    artifact = Artifact.open(folder)
    listed = _listed(artifact)
    present = {name for name in artifact.files() if name != MANIFEST and not _is_bookkeeping(name)}
    differences = [Difference(name, "missing") for name in listed.keys() - present]
    differences += [Difference(name, "unexpected") for name in present - listed.keys()]
    for name in listed.keys() & present:
        expected = listed[name]
        same_size = artifact.path(name).stat().st_size == expected["size"]
        if not same_size or artifact.sha256(name) != expected["sha256"]:
            differences.append(Difference(name, "changed"))
    return tuple(sorted(differences, key=lambda difference: difference.path))


def _listed(artifact: Artifact) -> dict[str, dict[str, Any]]:
    manifest = artifact.read(MANIFEST)
    where = str(artifact.path(MANIFEST))
    if not isinstance(manifest, dict) or manifest.get("manifest") != VERSION:
        raise InputError(
            where, f"not a manifest of version {VERSION}", "check it with the Excise that wrote it"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not all(_is_entry(entry) for entry in files.values()):
        raise InputError(where, "its list of files is damaged", "compile or download the artifact again")
    return files


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("size"), int)
        and isinstance(entry.get("sha256"), str)
    )


def _is_bookkeeping(name: str) -> bool:
    return name in DOWNLOAD_FILES or name.startswith(DOWNLOAD_FOLDERS)
