"""Is an artifact what its maker built? Every byte and every statement is checked; whatever fails is named.

In this order: ordinary files only, all of them as the manifest says and nothing
else; the manifest as the record makes it; spec, lock, plan, edits and gates in agreement; strict weight
files in a stock layout; where the base is at hand, the checkpoint as that plus the published change; the
signature, by a key that comes from elsewhere, and the attestations by the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from compiler.artifact import (
    ATTESTATIONS,
    CARD,
    EDITS,
    GATES,
    LOCK,
    MANIFEST,
    PLAN,
    SIGNATURE,
    SPEC,
    Artifact,
    is_artifact,
)
from compiler.checkpoint import Checkpoint
from compiler.json_file import read_object
from editspec.errors import InputError
from exporters.attestations import attestation_flaws
from exporters.inventory import Inventory
from exporters.manifest import differences, encoded, read_manifest, statement
from exporters.record import (
    Disagreement,
    disagreements,
    doubtful_weights,
    failed_gates,
    misplaced,
    stray_deltas,
)
from exporters.relink import relinked
from exporters.signature import Trust, signature_flaws

Check = Literal["files", "manifest", "record", "weights", "gates", "base", "signature"]
CHECKS: tuple[Check, ...] = get_args(Check)
RECORDS = (SPEC, LOCK, PLAN, EDITS, GATES)

#: What a record that Excise did not write makes the readers of it raise.
_NOT_OURS = (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError)


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be: which check, which file (relative), what."""

    check: Check
    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}" if self.path else self.what

    def as_dict(self) -> dict[str, str]:
        """The same as JSON."""
        return {"check": self.check, "path": self.path, "what": self.what}


@dataclass(frozen=True)
class VerifyReport:
    """What was checked and found. `digest` is the build's: sha256 of its manifest, "" where that is missing.

    `signature` is "verified" only when a trusted key or certificate was given and its signature held.
    """

    folder: Path
    findings: tuple[Finding, ...]
    digest: str
    files: Mapping[str, str] = field(repr=False)
    bytes: int = 0
    signature: Literal["verified", "not checked", "absent"] = "absent"
    skipped: tuple[Check, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON."""
        failed = {finding.check for finding in self.findings}
        return {
            "ok": self.ok,
            "artifact": str(self.folder),
            "digest": self.digest,
            "files": len(self.files),
            "bytes": self.bytes,
            "signature": self.signature,
            "checks": {
                check: "failed" if check in failed else "skipped" if check in self.skipped else "passed"
                for check in CHECKS
            },
            "findings": [finding.as_dict() for finding in self.findings],
        }


def verify_artifact(
    folder: Path,
    key: Path | None = None,
    *,
    trust: Trust | None = None,
    base: Path | None = None,
    edited_card: bool = False,
) -> VerifyReport:
    """Check the artifact in `folder`; nothing in it is changed or remembered, every byte is read once.

    `key` is a PEM public key that the signature must be by; `trust` says more (certificates, an identity).
    Without either the signature is not checked, and the report shows integrity, not a maker. With `base`, the
    base's folder, the checkpoint must be that plus the published change. `edited_card` lets README.md differ.
    `InputError`: not an artifact, an unusable key, or a file that cannot be read.
    """
    if not (is_artifact(folder) or (folder / MANIFEST).is_file()):
        Artifact.open(folder)  # says that it is none
    trust = trust or (Trust(key=key) if key is not None else None)
    if trust is not None:
        trust.require_usable()
    inventory = Inventory.of(folder)
    return _Verification(inventory, inventory.digests(), edited_card).run(trust, base)


class _Verification:
    """One run over one folder: findings are collected, so that all are told at once."""

    def __init__(self, inventory: Inventory, digests: Mapping[str, str], edited_card: bool) -> None:
        self.artifact = Artifact(inventory.folder)
        self.inventory = inventory
        self.digests = digests
        self.edited_card = edited_card
        self.findings: list[Finding] = []
        self.skipped: list[Check] = []

    def run(self, trust: Trust | None, base: Path | None) -> VerifyReport:
        listed = self._files()
        changed = {finding.path for finding in self.findings}
        checkpoint = self._weights()
        if listed is None or changed.intersection((*RECORDS, MANIFEST)):
            self.skipped += ["record", "gates"]  # what is known to be damaged is not interpreted
        else:
            self._records(listed, checkpoint)
        if base is None or self.findings:
            self.skipped.append("base")  # nothing new can be learnt of a checkpoint known to be damaged
        else:
            self._understood(LOCK, "base", lambda: relinked(self.artifact, base, self.digests))
        state = self._signature(trust)
        order = {check: number for number, check in enumerate(CHECKS)}
        found = sorted(dict.fromkeys(self.findings), key=lambda one: (order[one.check], one.path, one.what))
        size = sum(self.inventory.files.values())
        digest = self.digests.get(MANIFEST, "")
        return VerifyReport(
            self.inventory.folder, tuple(found), digest, self.digests, size, state, tuple(self.skipped)
        )

    def _add(self, check: Check, found: Iterable[Disagreement]) -> None:
        self.findings += [Finding(check, path, what) for path, what in found]

    def _files(self) -> dict[str, str] | None:
        """What the manifest lists, where it can be read."""
        self._add(
            "files", ((name, f"is {kind}, not a file") for name, kind in self.inventory.strange.items())
        )
        if ATTESTATIONS in self.digests and SIGNATURE not in self.digests:
            self._add("files", [(ATTESTATIONS, "is unexpected: the artifact is not signed")])
        if MANIFEST not in self.digests:
            if MANIFEST not in self.inventory.strange:
                self._add("manifest", [(MANIFEST, "is missing")])
            return None
        try:
            listed = read_manifest(self.artifact.folder)
        except InputError as error:
            self._add("manifest", [(MANIFEST, error.what)])
            return None
        for difference in differences(self.inventory, self.digests, listed):
            if difference.path == CARD and difference.what == "changed" and self.edited_card:
                continue
            if difference.path not in self.inventory.strange:
                self._add("files", [(difference.path, f"is {difference.what}")])
        return listed

    def _weights(self) -> Checkpoint | None:
        """The checkpoint, where all of it can be read in one way only."""
        self._add("weights", doubtful_weights(self.artifact, self.digests))
        if self.inventory.strange:
            return None  # opening would follow links
        try:
            checkpoint = Checkpoint.open(self.artifact.folder)
        except InputError as error:
            self._add("weights", [(self._relative(error.where), error.what)])
            return None
        self._add("files", misplaced(self.digests, checkpoint))
        return checkpoint

    def _records(self, listed: Mapping[str, str], checkpoint: Checkpoint | None) -> None:
        try:
            records = {name: read_object(self.artifact.path(name)) for name in RECORDS}
        except InputError as error:
            self._add("record", [(self._relative(error.where), error.what)])
            return
        self._understood(MANIFEST, "manifest", lambda: self._as_recorded(records, listed))
        if checkpoint is not None:
            files = {name: self.digests[name] for name in checkpoint.files()}
            self._understood(LOCK, "record", lambda: disagreements(records, files))
            self._understood(EDITS, "record", lambda: stray_deltas(self.artifact, records[EDITS], checkpoint))
        self._understood(GATES, "gates", lambda: failed_gates(records[GATES]))

    def _as_recorded(self, records: Mapping[str, Any], listed: Mapping[str, str]) -> Iterator[Disagreement]:
        if self.artifact.path(MANIFEST).read_bytes() != encoded(statement(records, listed)):
            yield MANIFEST, "does not say what the record says"

    def _understood(self, path: str, check: Check, found: Callable[[], Iterable[Disagreement]]) -> None:
        try:
            self._add(check, list(found()))
        except InputError as error:
            self._add(check, [(self._relative(error.where), error.what)])
        except _NOT_OURS as error:
            what = f"lacks what a build records ({type(error).__name__}: {str(error)[:80]})"
            self._add(check, [(path, what)])

    def _signature(self, trust: Trust | None) -> Literal["verified", "not checked", "absent"]:
        if SIGNATURE not in self.digests:
            self.skipped.append("signature")
            if trust is not None:
                self._add("signature", [(SIGNATURE, "is missing: nobody signed this artifact")])
            return "absent"
        flaws = list(signature_flaws(self.artifact, self.digests, trust, self.edited_card))
        self._add("signature", ((SIGNATURE, what) for what in flaws))
        if not flaws and ATTESTATIONS in self.digests:  # a signature that holds covers them
            self._understood(ATTESTATIONS, "signature", lambda: self._attested(trust))
        held = not any(finding.check == "signature" for finding in self.findings)
        return "verified" if held and trust is not None else "not checked"

    def _attested(self, trust: Trust | None) -> Iterator[Disagreement]:
        yield from ((ATTESTATIONS, what) for what in attestation_flaws(self.artifact, trust))

    def _relative(self, where: str) -> str:
        path = Path(where)
        return (
            path.relative_to(self.artifact.folder).as_posix()
            if path.is_relative_to(self.artifact.folder)
            else ""
        )
