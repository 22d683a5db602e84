from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler import artifact as layout
from compiler.artifact import AFTERWARDS, Artifact
from editspec.errors import InputError
from exporters.manifest import (
    Difference,
    check_manifest,
    encoded,
    is_canonical,
    read_manifest,
    statement,
    write_manifest,
)

Copy = Callable[[Path], Path]
UNET = "unet/diffusion_pytorch_model.safetensors"


def predicate(artifact: Path) -> dict[str, Any]:
    found: dict[str, Any] = Artifact(artifact).read(layout.MANIFEST)["predicate"]
    return found


def test_every_file_is_a_subject_with_its_sha256(tiny_artifact: Path) -> None:
    listed = read_manifest(tiny_artifact)
    assert set(listed) == set(Artifact(tiny_artifact).files()) - set(AFTERWARDS)
    assert {"README.md", UNET, layout.SPEC, layout.DELTAS} <= set(listed)
    for name, digest in listed.items():
        assert hashlib.sha256((tiny_artifact / name).read_bytes()).hexdigest() == digest


def test_it_is_a_statement_that_the_specifications_own_types_accept(tiny_artifact: Path) -> None:
    from google.protobuf.json_format import ParseDict
    from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    document = Artifact(tiny_artifact).read(layout.MANIFEST)
    parsed = ParseDict(document, statement_pb2.Statement())  # an unknown field is an error
    Statement.copy_from_pb(parsed).validate()
    ParseDict(document["predicate"], provenance_pb2.Provenance())


def test_the_build_definition_is_the_spec_and_all_inputs_are_named_by_digest(
    tiny_artifact: Path, tiny_checkpoint: Path
) -> None:
    built = predicate(tiny_artifact)["buildDefinition"]
    spec = Artifact(tiny_artifact).read(layout.SPEC)
    assert built["externalParameters"] == {"spec": spec}
    named = {entry["name"]: entry for entry in built["resolvedDependencies"]}
    for name in ("model_index.json", UNET):
        digest = hashlib.sha256((tiny_checkpoint / name).read_bytes()).hexdigest()
        assert named[f"base/{name}"]["digest"] == {"sha256": digest}
    assert named[layout.SPEC]["digest"]["sha256"] == Artifact(tiny_artifact).sha256(layout.SPEC)
    assert named[layout.LOCK]["digest"]["sha256"] == Artifact(tiny_artifact).sha256(layout.LOCK)


def test_the_byproducts_are_gates_plan_edits_and_deltas(tiny_artifact: Path) -> None:
    found = {
        entry["name"]: entry["digest"]["sha256"]
        for entry in predicate(tiny_artifact)["runDetails"]["byproducts"]
    }
    assert found == {
        name: Artifact(tiny_artifact).sha256(name)
        for name in (layout.DELTAS, layout.EDITS, layout.GATES, layout.PLAN)
    }


def test_a_hub_base_evaluators_and_imported_files_are_dependencies() -> None:
    records: dict[str, Any] = {
        layout.SPEC: {"name": "x"},
        layout.LOCK: {
            "base": {
                "repo": "org/sd",
                "revision": "a" * 40,
                "digest": "b" * 64,
                "files": {"unet/config.json": "c" * 64},
                "license": [{"id": "creativeml-openrail-m"}],
            },
            "inputs": {"calm/calm.safetensors": "d" * 64},
            "device": {"class": "cpu"},
            "libraries": {"excise": "1"},
        },
        layout.GATES: {"evaluators": [{"id": "oracle", "files": {"model.safetensors": "e" * 64}}]},
    }
    made = statement(records, dict.fromkeys((layout.SPEC, layout.LOCK, *map(str, BYPRODUCTS)), "f" * 64))
    found = {entry["name"]: entry for entry in made["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert found["base"]["uri"] == f"pkg:huggingface/org/sd@{'a' * 40}"
    assert found["base"]["digest"]["gitCommit"] == "a" * 40
    assert found["base"]["annotations"] == {"license": [{"id": "creativeml-openrail-m"}]}
    assert found["base/unet/config.json"]["downloadLocation"].endswith(
        f"/resolve/{'a' * 40}/unet/config.json"
    )
    assert found["input/calm/calm.safetensors"]["digest"] == {"sha256": "d" * 64}
    assert found["evaluator/oracle/model.safetensors"]["digest"] == {"sha256": "e" * 64}


BYPRODUCTS = (layout.DELTAS, layout.EDITS, layout.GATES, layout.PLAN)


def test_it_tells_of_no_time_host_or_local_path(tiny_artifact: Path, tiny_checkpoint: Path) -> None:
    text = (tiny_artifact / layout.MANIFEST).read_text("utf-8")
    assert str(tiny_checkpoint.parent) not in text
    assert str(Path.home()) not in text
    assert "startedOn" not in text


def test_writing_it_again_gives_the_same_bytes(tiny_artifact: Path, copy_of: Copy) -> None:
    copy = copy_of(tiny_artifact)
    (copy / layout.MANIFEST).unlink()
    write_manifest(Artifact(copy))
    assert (copy / layout.MANIFEST).read_bytes() == (tiny_artifact / layout.MANIFEST).read_bytes()


def test_every_file_missing_unexpected_or_changed_is_named(tiny_artifact: Path, copy_of: Copy) -> None:
    assert check_manifest(tiny_artifact) == ()
    copy = copy_of(tiny_artifact)
    (copy / "model_index.json").write_text("{}", "utf-8")
    (copy / UNET).rename(copy / "unet/other.safetensors")
    assert check_manifest(copy) == (
        Difference("model_index.json", "changed"),
        Difference(UNET, "missing"),
        Difference("unet/other.safetensors", "unexpected"),
    )


def test_a_link_to_a_folder_is_not_overlooked(tiny_artifact: Path, copy_of: Copy, tmp_path: Path) -> None:
    copy = copy_of(tiny_artifact)
    (copy / "more").symlink_to(tmp_path)
    assert check_manifest(copy) == (Difference("more", "unexpected"),)
    with pytest.raises(InputError, match="is a link"):
        write_manifest(Artifact(copy))


def test_what_downloading_adds_is_no_difference(tiny_artifact: Path, copy_of: Copy) -> None:
    copy = copy_of(tiny_artifact)
    (copy / ".gitattributes").write_text("*", "utf-8")
    (copy / ".cache/huggingface").mkdir(parents=True)
    (copy / ".cache/huggingface/x").write_text("", "utf-8")
    assert check_manifest(copy) == ()
    (copy / ".cache/other").write_text("", "utf-8")
    assert check_manifest(copy) == (Difference(".cache/other", "unexpected"),)


@pytest.mark.parametrize(
    "subjects",
    [
        None,
        [{}],
        [{"name": "a", "digest": {"sha256": "0"}}],
        [{"name": "a", "digest": {"sha256": "0" * 64, "md5": "1"}}],
        [{"name": "../a", "digest": {"sha256": "0" * 64}}],
        [{"name": "model.sig", "digest": {"sha256": "0" * 64}}],
        [{"name": "A", "digest": {"sha256": "0" * 64}}, {"name": "a", "digest": {"sha256": "0" * 64}}],
    ],
)
def test_a_damaged_list_of_files_is_refused(subjects: Any, tiny_artifact: Path, copy_of: Copy) -> None:
    copy = copy_of(tiny_artifact)
    document = Artifact(copy).read(layout.MANIFEST) | {"subject": subjects}
    (copy / layout.MANIFEST).write_bytes(encoded(document))
    with pytest.raises(InputError, match="damaged list of files"):
        check_manifest(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"_type": "https://in-toto.io/Statement/v1"})])
def test_a_manifest_of_another_kind_is_refused(text: str, tiny_artifact: Path, copy_of: Copy) -> None:
    copy = copy_of(tiny_artifact)
    (copy / layout.MANIFEST).write_text(text, "utf-8")
    with pytest.raises(InputError, match=r"manifest\.json"):
        check_manifest(copy)


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an artifact"):
        check_manifest(tmp_path)


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "./a", "a/../b", "a\\b", "c:a", "a\nb", "a\u202eb"])
def test_names_that_can_be_read_two_ways_are_not_canonical(name: str) -> None:
    assert not is_canonical(name)
    assert is_canonical("unet/diffusion_pytorch_model-00001-of-00002.safetensors")
