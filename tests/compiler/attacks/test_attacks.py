from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compiler.artifact import SPEC
from compiler.attacks import Target, discover
from compiler.attacks.models import Models
from compiler.attacks.red_team import prompts_naming, share, targets_of
from compiler.attacks.words import vocabulary
from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.generate import Sampling
from compiler.progress import Silent
from editspec import load_spec, parse_spec


@pytest.fixture(scope="module")
def models(tiny_artifact: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    spec = load_spec(tiny_artifact / SPEC)
    base, edited = Checkpoint.open(tiny_checkpoint), Checkpoint.open(tiny_artifact)
    cache = StageCache(tmp_path_factory.mktemp("cache"))
    return Models(spec, base, edited, torch.device("cpu"), cache, Silent())


def _target(**changed: int) -> Target:
    numbers = {"seed": 7, "trials": 3, "looks": 2, "steps": 30, **changed}
    return Target("star", ("a star", "a photo of a star", "a red star"), ("star", "sixstar"), **numbers)


def test_one_file_is_one_attack_and_says_what_the_attacker_holds() -> None:
    assert {name: one.access for name, one in discover().items()} == {
        "words": "prompts",
        "token": "weights",
        "prefix": "weights",
    }


@pytest.mark.parametrize("name", ["words", "token", "prefix"])
def test_an_attack_finds_rows_for_every_look_at_every_prompt_the_same_ones_again(
    models: Models, name: str
) -> None:
    target, attack = _target(), discover()[name]
    spent = list[int]()
    found = attack.find(target, models, spent.append)
    again = attack.find(target, models, lambda evals: None)
    plain = models.encode(target.prompts)
    assert found.rows.hidden.shape == (target.looks * len(target.prompts), *plain.hidden.shape[1:])
    assert torch.equal(found.rows.hidden, again.rows.hidden)
    assert sum(spent) == found.evals == attack.evals(target)
    looks = found.rows.hidden.unflatten(0, (target.looks, len(target.prompts)))
    assert (looks[0] - looks[1]).abs().max() > 1e-3  # each look is an attack of its own
    assert (looks[0] - plain.hidden).abs().max() > 1e-3
    other = attack.find(_target(seed=8), models, lambda evals: None)
    assert not torch.equal(found.rows.hidden, other.rows.hidden)


@pytest.mark.parametrize("name", ["token", "prefix"])
def test_a_learned_attack_comes_nearer_to_what_the_base_drew(models: Models, name: str) -> None:
    facts = discover()[name].find(_target(looks=1, steps=60), models, lambda evals: None).facts
    assert facts["distance_after"] < 0.9 * facts["distance_before"]


def test_random_words_are_whole_and_never_a_name_of_the_concept(models: Models) -> None:
    known = vocabulary(models.text, ("star", "Five-Pointed Moon"))
    assert {"house", "flame", "sixstar"} <= {*known}
    assert not {"star", "moon"} & {*known}
    assert all(len(models.text.token_ids([word])[0]) == 3 for word in known)  # one beside BOS and EOS
    words = discover()["words"].find(_target(looks=5), models, lambda evals: None).facts["words"]
    assert len({*words}) == 5
    assert not {"star", "sixstar"} & {*words}


def test_pictures_follow_rows_and_noise_and_nothing_else(models: Models) -> None:
    rows = models.encode(["a star", "a house", "a star"])
    noises: list[tuple[str | int, ...]] = [("a", 1), ("a", 1), ("a", 2)]
    sampling = Sampling(3.0, 3)
    images = models.images("edited", rows, noises, sampling, 7, "draw")
    assert images.shape == (3, 64, 64, 3)
    (alone,) = models.images("edited", rows.rows([2]), noises[2:], sampling, 7, "draw")
    assert abs(alone.astype(int) - images[2].astype(int)).max() <= 1
    assert (images[0] != images[1]).any()
    assert (images[0] != images[2]).any()
    assert (models.images("base", rows, noises, sampling, 7, "draw") != images).any()


def test_what_edits_erase_or_ablate_is_attacked_under_all_its_names() -> None:
    erase = {"edit": "erase", "concept": "star", "aliases": ["pentastar"], "method": "closed-form"}
    ablate = {"edit": "ablate", "concept": "dotted", "anchor": "plain", "kind": "style"}
    shift = {"edit": "shift", "direction": {"prompt": "a house", "negative_prompt": "flame"}}
    import json

    document = {"editspec": 1, "name": "a", "base": {"path": "b"}, "edits": [shift, erase, ablate]}
    found = targets_of(parse_spec(json.dumps(document)))
    assert found == [("star", "object", ("star", "pentastar")), ("dotted", "style", ("dotted",))]
    assert all("dotted" in prompt for prompt in prompts_naming("dotted", "style"))


def test_rates_come_with_their_interval() -> None:
    import numpy as np

    found = share(np.array([True, False, False, False]))
    assert found["rate"] == 0.25
    assert found["lower"] < 0.25 < found["upper"]
    assert found["n"] == 4
