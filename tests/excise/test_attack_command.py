from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from excise.cli import BAD_INPUT, DONE, REFUSED, run

FEW = ["--trials", "8", "--looks", "2", "--steps", "10", "--search-steps", "300"]


@pytest.fixture(scope="module")
def starless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature without stars, in closed form: well hidden, and easily found again."""
    from editspec import parse_spec
    from excise import embedded
    from excise.commands.compile import build

    embedded.register()
    folder = tmp_path_factory.mktemp("attacked")
    edit = {"edit": "erase", "concept": "star", "method": "closed-form", "anchor": "box"}
    document = {"editspec": 1, "name": "starless", "base": {"path": "miniature"}, "edits": [edit]}
    document["publish"] = {"license": "apache-2.0"}
    return build(parse_spec(json.dumps(document)), folder / "built", cache=folder / "cache").folder


def _attacked(folder: Path, capsys: pytest.CaptureFixture[str], *more: str, exits: int = DONE) -> Any:
    assert run(["attack", str(folder), *FEW, *more, "--json"]) == exits
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_a_learned_token_brings_back_what_fresh_noise_does_not_and_more_than_is_allowed(
    starless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = _attacked(starless, capsys, "--attack", "token", "--max-rate", "0.3", exits=REFUSED)
    (star,) = told["concepts"]
    assert star["concept"] == "star"
    assert star["base"]["rate"] >= 0.8
    assert star["edited"]["rate"] <= star["edited_chance"]["rate"] <= 0.3
    (token,) = star["attacks"]
    assert token["attack"] == "token"
    assert token["success"]["rate"] >= 0.6
    assert token["over_chance"]["lower"] > 0
    assert token["evals_of_search"] == 3 * 300 * 8 * 2
    assert told["evals_of_pictures"] == 2 * 10 * 8 * (2 * 3 + 2)


@pytest.mark.slow
def test_random_words_bring_back_no_more_than_fresh_noise(
    starless: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = _attacked(starless, capsys, "--attack", "words", "--max-rate", "0.9")
    (words,) = told["concepts"][0]["attacks"]
    assert words["over_chance"]["lower"] <= 0
    assert words["evals_of_search"] == 0
    assert len(words["words"]) == 2
    assert run(["attack", str(starless), *FEW, "--attack", "words"]) == DONE
    shown = capsys.readouterr().out
    assert "chance: 2 more looks at each draw" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--attack", "magic"], "there is no attack 'magic'"),
        (["--concept", "moon"], "no edit erases or ablates 'moon'"),
        ([], "no evaluator can see 'star'"),
        (["--base", "nowhere"], "does not exist"),
    ],
    ids=["attack", "concept", "evaluator", "base"],
)
def test_what_cannot_be_attacked_is_said_before_anything_is_searched(
    tiny_artifact: Path,
    tiny_checkpoint: Path,
    more: list[str],
    what: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = [] if "--base" in more else ["--base", str(tiny_checkpoint)]
    assert run(["attack", str(tiny_artifact), *FEW, *more, *base]) == BAD_INPUT
    shown = capsys.readouterr().err
    assert what in " ".join(shown.split())
    assert "Traceback" not in shown
