"""The manifest: an in-toto statement with SLSA provenance that names every file and all it was made from.

It is a function of the artifact's other files: no time, host or path of a machine is in it, and whoever
holds the artifact can compute it again. https://in-toto.io/Statement/v1, https://slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compiler.artifact import (
    AFTERWARDS,
    DELTAS,
    EDITS,
    GATES,
    LOCK,
    MANIFEST,
    PLAN,
    SPEC,
    Artifact,
)
from compiler.json_file import read_object
from editspec.errors import InputError
from exporters.inventory import Inventory

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:excise:build:1"  # raise it when a build's statement is put together in another way
BUILDER = "urn:excise:self-run"  # whoever ran it vouches for it: SLSA Build L1

BYPRODUCTS = (DELTAS, EDITS, GATES, PLAN)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_RECORDS = (SPEC, LOCK, PLAN, EDITS, GATES)
_MEDIA = {".json": "application/json", ".safetensors": "application/vnd.safetensors"}


@dataclass(frozen=True)
class Difference:
    """One file that is not as the manifest says."""

    path: str
    what: Literal["missing", "unexpected", "changed"]


def write_manifest(artifact: Artifact) -> None:
    """Write provenance/manifest.json over every other file. Call it last: what is added later is unlisted.

    `InputError` where the folder holds a link or another thing that is no file.
    """
    inventory = Inventory.of(artifact.folder)
    for name, kind in inventory.strange.items():
        raise InputError(str(artifact.path(name)), f"is {kind}, not an ordinary file", "put the file there")
    digests = inventory.digests(name for name in inventory.files if name not in AFTERWARDS)
    records = {name: artifact.read(name) for name in _RECORDS}
    path = artifact.path(MANIFEST)
    path.write_bytes(encoded(statement(records, digests)))
    path.chmod(0o644)


def statement(records: Mapping[str, Any], digests: Mapping[str, str]) -> dict[str, Any]:
    """The statement about files with these sha256, made as `records` say: SPEC, LOCK, PLAN, EDITS, GATES.

    Raises `KeyError`, `TypeError` or `AttributeError` for records that Excise did not write.
    """
    lock = records[LOCK]
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digests[name]}} for name in sorted(digests)],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"spec": records[SPEC]},
                "internalParameters": {"device": lock["device"], "license": lock.get("license")},
                "resolvedDependencies": [
                    *_base(lock["base"]),
                    *({"name": name, "digest": {"sha256": digests[name]}} for name in (SPEC, LOCK)),
                    *_evaluators(records[GATES]),
                    *_inputs(lock.get("inputs", {})),
                ],
            },
            "runDetails": {
                "builder": {"id": BUILDER, "version": lock["libraries"]},
                "byproducts": [
                    {
                        "name": name,
                        "digest": {"sha256": digests[name]},
                        "mediaType": _MEDIA[Path(name).suffix],
                    }
                    for name in BYPRODUCTS
                ],
            },
        },
    }


def encoded(value: Mapping[str, Any]) -> bytes:
    """A statement as it is stored: equal statements give equal bytes."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


def read_manifest(folder: Path) -> dict[str, str]:
    """Name -> sha256 (hex) of all files that the manifest lists. `InputError` where it is damaged.

    Names are relative, canonical, and differ in more than the case of their letters.
    """
    path = folder / MANIFEST
    found = read_object(path)
    if found.get("_type") != STATEMENT_TYPE or found.get("predicateType") != PREDICATE_TYPE:
        raise InputError(
            str(path), "is no in-toto statement with SLSA provenance", "compile the artifact again"
        )
    listed: dict[str, str] = {}
    seen: set[str] = set()
    subjects = found.get("subject")
    for subject in subjects if isinstance(subjects, list) else [None]:
        name, digest = _subject(subject)
        if name is None or digest is None or name.casefold() in seen:
            what = f"has a damaged list of files at {str(subject)[:120]}"
            raise InputError(str(path), what, "compile or download the artifact again")
        seen.add(name.casefold())
        listed[name] = digest
    return listed


def check_manifest(folder: Path) -> tuple[Difference, ...]:
    """Every file that is missing, unexpected or changed, by path; () says the files are as they were built.

    `InputError` where there is no readable manifest. This finds damage, not deceit;
    `verify_artifact` asks more.
    """
    Artifact.open(folder)
    inventory = Inventory.of(folder)
    return differences(inventory, inventory.digests(), read_manifest(folder))


def differences(
    inventory: Inventory, digests: Mapping[str, str], listed: Mapping[str, str]
) -> tuple[Difference, ...]:
    """What of the folder is not as `listed`."""
    present = {*inventory.files, *inventory.strange}.difference(AFTERWARDS)
    found = [Difference(name, "missing") for name in listed.keys() - present]
    found += [Difference(name, "unexpected") for name in present - listed.keys()]
    found += [
        Difference(name, "changed") for name in listed.keys() & present if digests.get(name) != listed[name]
    ]
    return tuple(sorted(found, key=lambda difference: difference.path))


def is_canonical(name: str) -> bool:
    """Whether `name` is a relative path with one spelling on every system."""
    parts = name.split("/")
    return name.isprintable() and not set(name) & set('\\:*?"<>|') and not {"", ".", ".."} & set(parts)


def _subject(subject: Any) -> tuple[str | None, str | None]:
    if not isinstance(subject, dict) or set(subject) != {"name", "digest"}:
        return None, None
    name, digest = subject["name"], subject["digest"]
    if not isinstance(name, str) or not is_canonical(name) or name in AFTERWARDS:
        return None, None
    sha256 = digest.get("sha256") if isinstance(digest, dict) and set(digest) == {"sha256"} else None
    return name, sha256 if isinstance(sha256, str) and _DIGEST.fullmatch(sha256) else None


def _base(base: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The base as a whole, then file by file: a git commit alone does not bind large files strongly."""
    hub = f"https://huggingface.co/{base['repo']}/resolve/{base['revision']}/" if "repo" in base else None
    whole: dict[str, Any] = {"name": "base", "digest": {"sha256-listing": base["digest"]}}
    if hub:
        whole["uri"] = f"pkg:huggingface/{base['repo']}@{base['revision']}"
        whole["digest"]["gitCommit"] = base["revision"]
    facts = {key: base[key] for key in ("path", "variant", "family", "license") if base.get(key) is not None}
    yield whole | {"annotations": facts}
    for name, digest in sorted(base["files"].items()):
        entry = {"name": f"base/{name}", "digest": {"sha256": digest}}
        yield entry | ({"downloadLocation": hub + name} if hub else {})


def _evaluators(gates: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for evaluator in gates.get("evaluators", []):
        for name, digest in sorted(evaluator["files"].items()):
            yield {"name": f"evaluator/{evaluator['id']}/{name}", "digest": {"sha256": digest}}


def _inputs(inputs: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Imported vectors and images that the spec names."""
    for name, digest in sorted(inputs.items()):
        yield {"name": f"input/{name}", "digest": {"sha256": digest}}
