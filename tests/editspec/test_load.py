from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from editspec import HubBase, HubModel, InputError, PathBase, SpecErrors, load_spec, parse_spec
from editspec.load import LARGEST_FILE

GOOD: dict[str, Any] = {
    "editspec": 1,
    "name": "good",
    "base": {"path": "miniature"},
    "edits": [{"edit": "erase", "concept": "star"}],
}


def write(folder: Path, data: bytes | dict[str, Any], name: str = "spec.json") -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
    return path


def test_a_good_spec_knows_where_it_lies(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path, GOOD))
    assert spec.folder == tmp_path
    assert spec.base == PathBase(path="miniature")


def test_a_hub_base_and_a_hub_evaluator_keep_their_pinned_revisions() -> None:
    hub = {"repo": "org/name", "revision": "0123456789abcdef" * 2 + "01234567"}
    document = {**GOOD, "base": {**hub, "variant": "fp16"}, "evaluators": [{"id": "judge", "model": hub}]}
    spec = parse_spec(json.dumps(document))
    assert spec.base == HubBase(**hub, variant="fp16")
    assert spec.evaluators[0].model == HubModel(**hub)


def test_a_byte_order_mark_means_nothing(tmp_path: Path) -> None:
    assert load_spec(write(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode())).name == "good"


def test_a_missing_file_suggests_the_one_that_was_meant(tmp_path: Path) -> None:
    write(tmp_path, GOOD, "hardened.json")
    with pytest.raises(InputError, match=r"did you mean '.*/hardened\.json'"):
        load_spec(tmp_path / "hardend.json")


def test_a_missing_folder_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        load_spec(tmp_path / "nowhere" / "spec.json")


def test_a_folder_is_no_spec_but_may_hold_one(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(InputError, match=r"it holds spec\.json"):
        load_spec(tmp_path)


def test_utf_16_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="UTF-16"):
        load_spec(write(tmp_path, json.dumps(GOOD).encode("utf-16")))


def test_a_broken_byte_is_pointed_at(tmp_path: Path) -> None:
    with pytest.raises(SpecErrors) as caught:
        load_spec(write(tmp_path, b'{\n  "name": "caf\xe9"\n}'))
    diagnostic = caught.value.diagnostics[0]
    assert (diagnostic.line, diagnostic.column) == (2, 15)
    assert "0xe9" in diagnostic.message


def test_a_file_too_large_to_be_a_spec_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    with path.open("wb") as file:
        os.truncate(file.fileno(), LARGEST_FILE + 1)
    with pytest.raises(InputError, match="larger than"):
        load_spec(path)


def test_errors_are_data_too() -> None:
    with pytest.raises(SpecErrors) as caught:
        parse_spec('{"editspec": 1}', "spec.json")
    data = caught.value.as_dict()
    assert {d["pointer"] for d in data["diagnostics"]} == {""}
    assert json.loads(json.dumps(data)) == data


def test_a_later_stage_can_point_into_the_spec() -> None:
    spec = parse_spec(json.dumps(GOOD, indent=2), "spec.json")
    errors = spec.errors(
        [("/edits/0/concept", "'star' takes 99 tokens", "shorten it"), ("/gates/3", "no such gate")]
    )
    assert [(d.line, d.column) for d in errors.diagnostics] == [(1, 1), (10, 18)]
    assert "'star' takes 99 tokens" in errors.render()


def test_a_terminal_cannot_be_driven_by_a_spec() -> None:
    with pytest.raises(SpecErrors) as caught:
        parse_spec('{"\\u001b[31m": 1, "name": "\x9b31m\u202e"}')
    assert not {"\x1b", "\x9b", "\u202e"} & set(caught.value.render())


def test_two_thousand_edits_are_no_burden() -> None:
    edits = [
        {"edit": "erase", "concept": f"word{i}", "method": "closed-form", "templates": []}
        for i in range(2_000)
    ]
    assert len(parse_spec(json.dumps({**GOOD, "edits": edits})).edits) == 2_000
