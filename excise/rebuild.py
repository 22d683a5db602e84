"""Compiles an artifact's recorded spec anew, with an empty cache, and compares every digest."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.artifact import LOCK, SPEC, Artifact
from editspec import GateFailed, InputError, load_spec
from editspec.source import Source
from excise.recorded import on_folder

if TYPE_CHECKING:
    from editspec import EditSpec


@dataclass(frozen=True)
class Rebuild:
    """What a second build gave: each file that differs, and what about this machine may explain it."""

    differences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every file came out the same, byte for byte."""
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        return {"ok": self.ok, "differences": list(self.differences), "notes": list(self.notes)}


def rebuilt(
    folder: Path, *, spec: Path | None = None, base: Path | None = None, device: str = "auto"
) -> Rebuild:
    """Build the artifact in `folder` again in a temporary folder; it must verify already.

    `spec` is the file that it was built from, where relative paths start at that; they start at the current
    folder otherwise. `base` says where the base lies now. `InputError` where an input is not there.
    """
    from compiler.base import open_base
    from excise import embedded
    from excise.commands.compile import build
    from exporters.manifest import read_manifest

    embedded.register()
    artifact = Artifact.open(folder)
    lock = artifact.read(LOCK)
    if derived := lock.get("derived"):
        what = f"came out of the build {derived['build'][:12]} by `excise {derived['relation']}`"
        raise InputError(str(folder), what, "rebuild that one, do the same again and compare")
    chosen = _spec_of(artifact, lock, spec, base)
    if open_base(chosen.base, chosen.folder).digest != lock["base"]["digest"]:
        return Rebuild(("the base: its files are not those that this artifact was made from",), ())
    notes = tuple(_changes(lock, device))
    with tempfile.TemporaryDirectory(prefix="excise-rebuild-") as place:
        try:
            again = build(chosen, Path(place) / "again", device=device, cache=Path(place) / "cache")
        except GateFailed as failed:
            first = str(failed).partition("\n")[0]
            return Rebuild((f"this time a gate failed: {first}",), notes)
        found, expected = read_manifest(again.folder), read_manifest(folder)
    return Rebuild(tuple(_differences(expected, found)), notes)


def _spec_of(artifact: Artifact, lock: dict[str, Any], given: Path | None, base: Path | None) -> EditSpec:
    from compiler.provenance import published_spec
    from editspec.canonical import digest

    loaded = load_spec(given or artifact.path(SPEC))
    if digest(published_spec(loaded)) != lock["spec"]:
        where = str(given or artifact.path(SPEC))
        raise InputError(where, "is not the spec that this artifact was built from", "give that one")
    if given is None and loaded.source is not None:  # paths then start at the current folder
        loaded = replace(loaded, source=Source(str(Path.cwd() / "editspec.json"), loaded.source.text))
    return on_folder(loaded, base)


def _changes(lock: dict[str, Any], device: str) -> list[str]:
    """What differs from the machine of the first build: other bits may come of it."""
    from compiler.device import choose
    from compiler.versions import library_versions

    here, there = library_versions(), lock["libraries"]
    found = [
        f"{name} {here.get(name)} here, {there[name]} then" for name in there if here.get(name) != there[name]
    ]
    now, then = choose(device).device_class, lock["device"]["class"]
    return found + ([f"{now} here, {then} then"] if now != then else [])


def _differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            lines.append(f"{name}: did not come out this time")
        elif name not in expected:
            lines.append(f"{name}: came out this time only")
        elif expected[name] != found[name]:
            lines.append(f"{name}: {found[name][:16]}… instead of {expected[name][:16]}…")
    return lines
