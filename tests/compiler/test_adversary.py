from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.adversary import WAYS, Victim, _read, attack
from compiler.bank import build_bank, load_bank
from compiler.bank_request import BankRequest
from compiler.checkpoint import Checkpoint
from compiler.conditioning import encode, encode_unconditional
from compiler.sampling import load_scheduler
from compiler.selections import select
from compiler.text import TextEncoder
from compiler.unet import add_deltas, build_unet

PROMPTS = ("a star", "a photo of a star")


class World:
    """A tiny base with a bank of "star", and a student whose cross-attention was moved at random."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        checkpoint = Checkpoint.open(folder)
        self.text = TextEncoder.from_checkpoint(checkpoint)
        self.student = build_unet(checkpoint)
        unconditional = encode_unconditional(self.text, checkpoint)
        request = BankRequest(PROMPTS, (2, 2), seed=5, steps=3, strata=3)
        scratch.mkdir()
        build_bank(
            self.student,
            load_scheduler(checkpoint),
            lambda prompts: encode(self.text, prompts, checkpoint),
            unconditional,
            request,
            scratch,
        )
        bank = load_bank(scratch)
        read = encode(self.text, PROMPTS, checkpoint)
        rows = torch.arange(len(bank))
        self.victim = Victim("star", PROMPTS, read, bank, rows, bank.column("prompt"))
        random = torch.Generator().manual_seed(0)
        entries = checkpoint.weights("unet").entries
        names = [name for name in select(entries, "cross-attention") if name.endswith("weight")]
        moved = {name: 0.3 * torch.randn(entries[name].shape, generator=random) for name in names}
        add_deltas(self.student, moved)


@pytest.fixture(scope="module", params=["tiny_checkpoint", "tiny_checkpoint_sdxl"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(request.getfixturevalue(request.param), tmp_path_factory.mktemp("world") / "bank")


def test_the_concepts_own_embedding_in_its_place_is_the_prompt_itself(world: World) -> None:
    token = world.text.token_ids(["star"])[0][1]
    own = torch.cat([part.input_embeddings[token] for part in world.text.parts])[None]
    read = _read(world.text, world.victim, "token", own[None])
    torch.testing.assert_close(read.hidden, world.victim.read.hidden, atol=1e-5, rtol=1e-5)


def test_a_word_as_prefix_is_the_prompt_with_that_word_in_front(world: World) -> None:
    token = world.text.token_ids(["red"])[0][1]
    red = torch.cat([part.input_embeddings[token] for part in world.text.parts])[None]
    read = _read(world.text, world.victim, "prefix", red[None])
    wanted = world.text.encode([f"red {prompt}" for prompt in PROMPTS])
    torch.testing.assert_close(read.hidden, wanted, atol=1e-5, rtol=1e-5)


def test_restarts_find_ways_of_their_own_for_every_prompt(world: World) -> None:
    found = attack(world.student, world.text, world.victim, "token", batch=6, seed=3, steps=4, restarts=3)
    hidden = found.rows.hidden.unflatten(0, (3, len(PROMPTS)))
    assert hidden.shape[1:] == world.victim.read.hidden.shape
    assert all(not torch.allclose(hidden[a], hidden[b], atol=1e-3) for a, b in ((0, 1), (0, 2), (1, 2)))
    # One restart reads the same words in all prompts: both hold BOS and "a" before anything else differs.
    assert torch.allclose(hidden[:, 0, 0], hidden[:, 1, 0], atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_an_attack_comes_nearer_to_the_base_and_is_the_same_twice(world: World, way: Any) -> None:
    before = {name: weight.clone() for name, weight in world.student.named_parameters()}
    settings: dict[str, Any] = {"batch": 4, "seed": 3, "steps": 12}
    first = attack(world.student, world.text, world.victim, way, **settings)
    again = attack(world.student, world.text, world.victim, way, **settings)
    assert first.after < first.before
    assert torch.equal(first.rows.hidden, again.rows.hidden)
    assert not first.rows.hidden.requires_grad
    assert first.rows.hidden.shape == world.victim.read.hidden.shape
    assert all(torch.equal(weight, before[name]) for name, weight in world.student.named_parameters())
    assert all(weight.grad is None for weight in world.student.parameters())
