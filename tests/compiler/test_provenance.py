from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from compiler.provenance import input_digests, published_spec, without_home
from editspec import load_spec, parse_spec
from editspec.errors import InputError


@pytest.mark.parametrize(
    ("path", "published"),
    [
        ("miniature", "miniature"),
        ("../models/sd15", "../models/sd15"),
        ("/home/ann/models/sd15", "sd15"),
        ("~/models/sd15", "sd15"),
        ("C:\\Users\\ann\\sd15", "sd15"),
    ],
)
def test_a_path_that_tells_of_a_machine_is_cut_to_its_last_part(path: str, published: str) -> None:
    assert without_home(path) == published


def test_every_local_path_of_a_spec_is_cut_and_nothing_else_changes() -> None:
    document = {
        "editspec": 1,
        "name": "t",
        "base": {"path": "/home/ann/sd15"},
        "edits": [{"id": "e", "edit": "erase", "concept": "/home/ann"}],
        "evaluators": [{"id": "clip", "model": "/home/ann/clip"}],
    }
    spec = parse_spec(json.dumps(document))
    found = published_spec(spec)
    assert found["base"]["path"] == "sd15"
    assert found["evaluators"][0]["model"] == "clip"
    assert found["edits"][0]["concept"] == "/home/ann"
    assert spec.document["base"]["path"] == "/home/ann/sd15", "the spec itself stays as it is"


def with_direction(folder: Path, file: str) -> Path:
    """A spec with one imported vector."""
    shift = {"id": "calm", "edit": "shift", "direction": {"file": file}}
    erase = {"id": "no-star", "edit": "erase", "concept": "star"}
    document = {"editspec": 1, "name": "t", "base": {"path": "b"}, "edits": [shift, erase]}
    (folder / "spec.json").write_text(json.dumps(document), "utf-8")
    return folder / "spec.json"


@pytest.mark.parametrize("absolute", [False, True])
def test_imported_vectors_are_pinned_by_digest_without_telling_where_they_lay(
    absolute: bool, tmp_path: Path
) -> None:
    (tmp_path / "calm.safetensors").write_bytes(b"vector")
    named = str(tmp_path / "calm.safetensors") if absolute else "calm.safetensors"
    spec = load_spec(with_direction(tmp_path, named))
    digest = hashlib.sha256(b"vector").hexdigest()
    assert input_digests(spec) == {"calm/calm.safetensors": digest}


def test_an_imported_vector_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.safetensors"):
        input_digests(load_spec(with_direction(tmp_path, "absent.safetensors")))
