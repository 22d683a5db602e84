from __future__ import annotations

import json

import pytest

from compiler.provenance import published_spec, without_home
from editspec import parse_spec


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
