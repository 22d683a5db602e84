from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.baselines.hspace import MidBlockVector, SiteVectors
from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.conditioning import Conditioning
from compiler.device import choose
from compiler.directions import Found, direction_header, load_direction, save_direction
from compiler.discovery import SLACK, discover, own_request, scales
from compiler.passes import PassContext, PassResult
from compiler.passes.shift import ShiftDirections
from compiler.plan import make_plan
from compiler.progress import Silent
from compiler.sampling import classifier_free_guidance, predict
from compiler.seeds import gaussian
from compiler.sites import bias_sites, mid_output, text_sites
from compiler.teacher import Teacher
from compiler.unet import add_deltas, build_unet
from editspec import EditSpec, parse_spec
from editspec.errors import InputError, SpecErrors

SHIFT = ShiftDirections()
CALM: dict[str, Any] = {
    "edit": "shift",
    "direction": {"prompt": "a house", "negative_prompt": "flame"},
    "steps": 6,
    "learning_rate": 0.02,
    "batch": 4,
    "trajectories": 4,
    "timesteps": 3,
    "sampling_steps": 4,
}


def _spec(*edits: Mapping[str, Any], folder: Path | None = None, **changed: Any) -> EditSpec:
    document = {
        "editspec": 1,
        "name": "test",
        "base": {"path": "tiny"},
        "seed": 7,
        "edits": [dict(edit) for edit in edits],
        "preserve": {"concepts": ["moon"]},
        **changed,
    }
    return parse_spec(json.dumps(document), str((folder or Path()) / "spec.json"))


@pytest.fixture(scope="module")
def base(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


def _context(spec: EditSpec, base: Checkpoint, cache: StageCache | None = None) -> PassContext:
    return PassContext(spec, base, {}, spec.seed, torch.device("cpu"), cache or StageCache(), Silent())


def _run(spec: EditSpec, base: Checkpoint, cache: StageCache | None = None) -> PassResult:
    return SHIFT.run(spec.edits[:1], _context(spec, base, cache))


def _halves(count: int, side: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    """Inputs of both halves of classifier-free guidance, as the U-Net reads them."""
    latents = gaussian((count, 4, side, side), seed, "latents").repeat(2, 1, 1, 1)
    timestep = torch.tensor([400.0]).expand(2 * count)
    return latents, timestep, Conditioning(gaussian((2 * count, 16, 32), seed, "text"))


@settings(deadline=None, max_examples=6, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    count=st.integers(1, 3),
    side=st.sampled_from([4, 8, 12]),
    seed=st.integers(0, 99),
    strength=st.sampled_from([-1.0, 0.5, 2.0]),
)
def test_a_folded_shift_equals_the_hook_with_the_same_vector_in_both_halves(
    base: Checkpoint, count: int, side: int, seed: int, strength: float
) -> None:
    entries = base.weights("unet").entries
    name = mid_output(entries)
    assert name is not None
    vector = gaussian(entries[name].shape, seed, "vector")
    hooked, folded = build_unet(base), build_unet(base)
    add_deltas(folded, {name: strength * vector})
    inputs = _halves(count, side, seed)
    with torch.no_grad():
        with MidBlockVector(vector, strength, halves="both").hooked(hooked):
            expected = predict(hooked, *inputs)
        assert (predict(folded, *inputs) - expected).abs().max() <= 1e-5
        assert (predict(hooked, *inputs) - expected).abs().max() > 1e-3  # the hook is gone, and mattered


@pytest.mark.parametrize("sites", ["decoder", "all"])
def test_vectors_folded_at_many_sites_equal_hooks_at_their_layers(base: Checkpoint, sites: Any) -> None:
    entries = base.weights("unet").entries
    names = bias_sites(entries, sites)
    vectors = {name: 0.02 * gaussian(entries[name].shape, 1, name) for name in names}
    hooked, folded = build_unet(base), build_unet(base)
    add_deltas(folded, vectors)
    inputs = _halves(2, 8, 3)
    with torch.no_grad(), SiteVectors(vectors).hooked(hooked):
        expected = predict(hooked, *inputs)
        assert (predict(folded, *inputs) - expected).abs().max() <= 1e-5


def test_vectors_that_a_gate_opens_equal_a_hook_that_reads_the_text(base: Checkpoint) -> None:
    entries = base.weights("unet").entries
    names = (*bias_sites(entries, "all"), *text_sites(entries, "all"))
    vectors = {name: 0.05 * gaussian(entries[name].shape[:1], 1, name) for name in names}
    found = Found(vectors, {}, gaussian((32,), 1, "gate"))
    inputs, unet = _halves(2, 8, 3), build_unet(base)
    with torch.no_grad():
        biases_alone = {name: vector for name, vector in vectors.items() if name.endswith(".bias")}
        with SiteVectors(biases_alone, 2.0).hooked(unet):
            ungated = predict(unet, *inputs)
        with SiteVectors(vectors, 2.0, found.gate).hooked(unet):
            expected = predict(unet, *inputs)
        add_deltas(unet, found.deltas(2.0))
        assert (predict(unet, *inputs) - expected).abs().max() <= 1e-5
    assert (expected - ungated).abs().max() > 1e-3


def test_the_text_half_alone_moves_under_the_published_hook(base: Checkpoint) -> None:
    unet, inputs = build_unet(base), _halves(2, 8, 3)
    with torch.no_grad():
        plain = predict(unet, *inputs)
        with MidBlockVector(gaussian((64, 4, 4), 1, "spatial")).hooked(unet):
            moved = predict(unet, *inputs)
    assert torch.equal(moved[:2], plain[:2])
    assert (moved[2:] - plain[2:]).abs().max() > 1e-3


def test_sites_nest(base: Checkpoint) -> None:
    entries = base.weights("unet").entries
    mid, decoder, every = (set(bias_sites(entries, sites)) for sites in ("mid", "decoder", "all"))
    assert mid < decoder < every
    assert mid == {"mid_block.resnets.1.conv2.bias"}
    assert every == {name for name in entries if name.endswith(".bias")}
    assert all(name.endswith("attn2.to_v.weight") for name in text_sites(entries, "all"))


def _guided(
    unet: torch.nn.Module,
    teacher: Teacher,
    prompts: list[str],
    x: tuple[torch.Tensor, torch.Tensor],
    w: float,
) -> torch.Tensor:
    """Guided predictions of `unet` at inputs x for (empty or negative prompt, prompt)."""
    count = len(x[1])
    uncond, cond = (
        predict(unet, *x, (teacher.encode([text]) if text else teacher.unconditional).expand(count))
        for text in prompts
    )
    return classifier_free_guidance(uncond, cond, w)


@pytest.mark.parametrize(
    ("gated", "overshoot"), [(False, 1.0), (True, 1.0), (False, 3.0)], ids=["biases", "gated", "overshooting"]
)
def test_a_learned_shift_changes_guided_predictions_as_the_teacher_does_and_at_its_size(
    base: Checkpoint, gated: bool, overshoot: float
) -> None:
    learning = {"steps": 30, "learning_rate": 0.003, "gated": gated, "overshoot": overshoot}
    spec = _spec({**CALM, **learning}, preserve={"concepts": []})
    context = _context(spec, base)
    edit: Any = spec.edits[0]
    teacher, shifted = Teacher(context), build_unet(base)
    add_deltas(shifted, _run(spec, base).deltas)
    bank = teacher.bank(own_request(edit, edit.directions[0], spec.seed))
    rows = torch.arange(len(bank))
    x = bank.take("model_input", rows), bank.take("timestep", rows)
    with torch.no_grad():
        for w in scales(edit):
            plain = _guided(teacher.unet, teacher, ["", "a house"], x, w)
            wanted = overshoot * (_guided(teacher.unet, teacher, ["flame", "a house"], x, w) - plain)
            moved = _guided(shifted, teacher, ["", "a house"], x, w) - plain
            assert (moved - wanted).square().mean() < 0.9 * wanted.square().mean()
            # learned for both halves: it is neither w times too weak nor too strong
            best = float((moved * wanted).sum() / moved.square().sum())
            assert 0.4 < best < 2.5


@pytest.mark.parametrize("sites", ["mid", "decoder", "all"])
def test_only_its_sites_move_and_no_more_evals_are_spent_than_planned(base: Checkpoint, sites: str) -> None:
    spec = _spec({**CALM, "sites": sites, "steps": 2})
    result = _run(spec, base)
    targets = SHIFT.targets(spec.edits, base.weights("unet").entries)
    assert set(result.deltas) == set(targets) == set(bias_sites(base.weights("unet").entries, sites))  # type: ignore[arg-type]
    assert all(delta.isfinite().all() for delta in result.deltas.values())
    planned = SHIFT.cost(spec.edits, spec, base).evals
    assert 0.7 * planned <= result.record["evals"] <= planned
    (record,) = result.record["directions"]
    losses = record["loss_measured"]
    assert losses["end"] <= losses["start"] <= losses["zero"]
    assert record["negative_prompt"] == "flame"


def test_by_default_a_direction_takes_a_fraction_of_the_published_evals(base: Checkpoint) -> None:
    published = 62_000 + 20_000 + 2 * 20_000  # pictures, forwards, backwards
    kept = {"concepts": ["ball", "box", "tent", "star", "ring", "heart", "moon", "house"]}
    away: dict[str, Any] = {"edit": "shift", "direction": CALM["direction"]}
    for edit in (away, {**away, "gated": True}):
        spec = _spec(edit, preserve=kept)
        assert 0 < SHIFT.cost(spec.edits, spec, base).evals <= published / 10


def test_the_empty_prompt_stays_under_a_gated_shift_and_others_move(base: Checkpoint) -> None:
    spec = _spec({**CALM, "gated": True, "direction": {"prompt": "a red house", "base_prompt": "a house"}})
    result = _run(spec, base)
    assert all(torch.linalg.matrix_rank(delta) <= 1 for delta in result.deltas.values())
    teacher, shifted = Teacher(_context(spec, base)), build_unet(base)
    add_deltas(shifted, result.deltas)
    latents, timestep, _ = _halves(1, 8, 5)
    with torch.no_grad():
        for text, moves in ((teacher.unconditional, False), (teacher.encode(["a house"]), True)):
            change = predict(shifted, latents[:1], timestep[:1], text) - predict(
                teacher.unet, latents[:1], timestep[:1], text
            )
            assert (float(change.abs().max()) > 1e-4) == moves


def test_what_overshoots_stays_though_its_loss_is_no_lower_and_a_random_walk_does_not(
    base: Checkpoint,
) -> None:
    walk = {**CALM, "steps": 2, "learning_rate": 0.002}
    (plain,) = _run(_spec(walk), base).record["directions"]
    assert plain["loss_measured"]["end"] == plain["loss_measured"]["start"]
    (over,) = _run(_spec({**walk, "overshoot": 1.001}), base).record["directions"]
    ratio = over["loss_measured"]["end"] / over["loss_measured"]["start"]
    assert 1.0 < ratio < SLACK


NAMED: dict[str, Any] = {**CALM, "prompts": ["a house with flame", "a moon with spill"], "words": True}


def test_with_words_biases_move_and_values_where_the_text_says_one_of_them(base: Checkpoint) -> None:
    spec = _spec({**NAMED, "steps": 20, "learning_rate": 0.001})
    entries = base.weights("unet").entries
    result = _run(spec, base)
    moved = {name for name, delta in result.deltas.items() if delta.any()}
    assert moved == set(result.deltas) == {*bias_sites(entries, "all"), *text_sites(entries, "all")}
    assert set(result.deltas) <= set(SHIFT.targets(spec.edits, entries))
    planned = SHIFT.cost(spec.edits, spec, base).evals
    assert 0.7 * planned <= result.record["evals"] <= planned
    assert result.record["directions"][0]["words"] == ["flame"]
    empty, named, other = _context(spec, base).text().encode(["", "a house with flame", "a photo of a moon"])
    for name in text_sites(entries, "all"):
        change = result.deltas[name]
        assert torch.linalg.matrix_rank(change) == 1
        assert (empty @ change.T).abs().max() <= 1e-4 * (named[4] @ change.T).abs().max()
        assert (other @ change.T).abs().max() <= 0.5 * (named[4] @ change.T).abs().max()


def test_words_are_read_from_both_text_encoders_of_sdxl(tiny_checkpoint_sdxl: Path) -> None:
    base = Checkpoint.open(tiny_checkpoint_sdxl)
    spec = _spec({**NAMED, "steps": 4, "learning_rate": 1e-4, "overshoot": 1.001})
    assert make_plan(spec, base, StageCache(), choose("cpu")).passes
    result = _run(spec, base)
    text = _context(spec, base).text()
    (named,) = text.encode(["a house with flame"])
    assert text.width == named.shape[1] == sum(part.width for part in text.parts)
    for name in text_sites(base.weights("unet").entries, "all"):
        change = result.deltas[name]
        assert torch.linalg.matrix_rank(change) == 1
        assert all(half.any() for half in change.split([part.width for part in text.parts], dim=1))


def test_a_direction_with_words_is_saved_with_its_gate_and_serves_another_spec(
    base: Checkpoint, tmp_path: Path
) -> None:
    spec = _spec(NAMED)
    edit: Any = spec.edits[0]
    found = discover(edit, edit.directions[0], _context(spec, base))
    save_direction(found, tmp_path / "calm.safetensors")
    saved = {"edit": "shift", "direction": {"file": "calm.safetensors"}, "strength": -2}
    reused = _spec(saved, folder=tmp_path)
    assert make_plan(reused, base, StageCache(), choose("cpu")).passes
    result, once = _run(reused, base), _run(spec, base)
    assert all(torch.equal(result.deltas[name], -2 * delta) for name, delta in once.deltas.items())


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"gated": True}, "reads every word alike"),
        ({"prompts": ["a house with spill"]}, "no prompt that it is learned on has a word of 'flame'"),
        ({"direction": {"prompt": "a flame", "base_prompt": "a house"}}, "has a word of ''"),
        ({"direction": {"file": "saved.safetensors"}}, "carried as it was learned"),
    ],
    ids=["gated", "unnamed", "towards", "from a file"],
)
def test_words_without_a_word_to_read_are_refused(
    base: Checkpoint, tmp_path: Path, changed: dict[str, Any], what: str
) -> None:
    save_direction(Found({"conv_out.bias": torch.ones(4)}, {}), tmp_path / "saved.safetensors")
    with pytest.raises(SpecErrors, match=what) as caught:
        make_plan(_spec({**NAMED, **changed}, folder=tmp_path), base, StageCache(), choose("cpu"))
    assert "/edits/0/words" in str(caught.value)


def test_strength_scales_and_turns_round_and_directions_add_up(base: Checkpoint) -> None:
    cache = StageCache()
    other = {"prompt": "a red house", "base_prompt": "a house", "weight": -0.5}
    first = _run(_spec(CALM), base, cache).deltas
    turned = _run(_spec({**CALM, "strength": -2}), base, cache).deltas
    second = _run(_spec({**CALM, "direction": {**other, "weight": 1}}), base, cache).deltas
    both = _run(_spec({**CALM, "direction": [CALM["direction"], other]}), base, cache)
    assert len(both.record["directions"]) == 2
    for name, vector in first.items():
        assert torch.equal(turned[name], -2 * vector)
        assert torch.allclose(both.deltas[name], vector - 0.5 * second[name], atol=1e-7)


def test_a_saved_direction_is_small_says_what_it_is_and_serves_another_spec(
    base: Checkpoint, tmp_path: Path
) -> None:
    spec = _spec(CALM)
    edit: Any = spec.edits[0]
    found = discover(edit, edit.directions[0], _context(spec, base))
    for name in ("calm", "again"):
        save_direction(found, tmp_path / f"{name}.safetensors")
    path = tmp_path / "calm.safetensors"
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert path.stat().st_size < 100_000
    _, facts = direction_header(path)
    assert (facts["prompt"], facts["negative_prompt"], facts["sites"]) == ("a house", "flame", "all")
    reused = _spec(
        {"edit": "shift", "direction": {"file": "calm.safetensors", "weight": 0.5}, "strength": 3},
        folder=tmp_path,
    )
    plan = make_plan(reused, base, StageCache(), choose("cpu"))
    assert plan.passes[0].evals == 0
    result = _run(reused, base)
    assert set(result.deltas) <= set(plan.passes[0].targets)
    for name, vector in load_direction(path).vectors.items():
        assert torch.allclose(result.deltas[name], 1.5 * vector)


def test_the_planner_takes_a_shift_and_its_key_knows_the_files(base: Checkpoint, tmp_path: Path) -> None:
    plan = make_plan(_spec(CALM), base, StageCache(), choose("cpu"))
    assert [planned.edit_pass.name for planned in plan.passes] == ["shift/direction"]
    assert plan.passes[0].evals > 0
    with pytest.raises(SpecErrors, match="there is no file"):
        make_plan(
            _spec({"edit": "shift", "direction": {"file": "calm.safetensors"}}, folder=tmp_path),
            base,
            StageCache(),
            choose("cpu"),
        )


def test_a_direction_from_a_file_cannot_overshoot(base: Checkpoint, tmp_path: Path) -> None:
    spec = _spec(CALM)
    edit: Any = spec.edits[0]
    save_direction(discover(edit, edit.directions[0], _context(spec, base)), tmp_path / "calm.safetensors")
    from_file = {"edit": "shift", "direction": {"file": "calm.safetensors"}, "overshoot": 2}
    with pytest.raises(SpecErrors, match="so nothing overshoots; change 'strength' instead"):
        make_plan(_spec(from_file, folder=tmp_path), base, StageCache(), choose("cpu"))
    both = {**from_file, "direction": [from_file["direction"], CALM["direction"]]}
    assert make_plan(_spec({**CALM, **both}, folder=tmp_path), base, StageCache(), choose("cpu")).passes


def test_a_direction_for_another_architecture_is_refused(base: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_direction(Found({"mid_block.resnets.1.conv2.bias": torch.ones(1280)}, {}), path)
    spec = _spec({"edit": "shift", "direction": {"file": path.name}}, folder=tmp_path)
    with pytest.raises(SpecErrors, match=r"is \[64\] in this base, the direction is for \[1280\]"):
        make_plan(spec, base, StageCache(), choose("cpu"))
    path.write_bytes(b"no safetensors at all")
    with pytest.raises(InputError):
        make_plan(spec, base, StageCache(), choose("cpu"))
