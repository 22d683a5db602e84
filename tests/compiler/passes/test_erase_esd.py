from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.device import choose
from compiler.esd_plan import ROUNDS
from compiler.passes import PassContext, PassResult
from compiler.passes.erase_esd import EraseEsd, erase_from_target, negative_guidance_target
from compiler.pipeline import run_pass
from compiler.plan import make_plan
from compiler.progress import Silent
from compiler.seeds import gaussian
from compiler.selections import select
from compiler.teacher import Teacher
from editspec import EditSpec, parse_spec
from editspec.errors import InputError

ESD = EraseEsd()
STAR: dict[str, Any] = {
    "edit": "erase",
    "method": "esd",
    "concept": "star",
    "aliases": ["sixstar"],
    "steps": 12,
    "learning_rate": 0.002,
    "batch": 4,
    "trajectories": 6,
    "timesteps": 3,
    "sampling_steps": 4,
}


def _spec(*edits: Mapping[str, Any], **changed: Any) -> EditSpec:
    document = {
        "editspec": 1,
        "name": "test",
        "base": {"path": "tiny"},
        "seed": 7,
        "edits": [dict(edit) for edit in edits],
        "preserve": {"concepts": ["house"], "auto": 3},
        **changed,
    }
    return parse_spec(json.dumps(document))


@pytest.fixture
def base(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


def _context(
    spec: EditSpec, base: Checkpoint, upstream: Mapping[str, torch.Tensor] | None = None
) -> PassContext:
    return PassContext(spec, base, upstream or {}, spec.seed, torch.device("cpu"), StageCache(), Silent())


def _run(spec: EditSpec, base: Checkpoint, upstream: Mapping[str, torch.Tensor] | None = None) -> PassResult:
    return ESD.run(spec.edits[:1], _context(spec, base, upstream))


def test_the_target_is_the_papers() -> None:
    uncond, cond = torch.tensor([1.0]), torch.tensor([3.0])
    assert negative_guidance_target(uncond, cond, 1.0).item() == -1.0
    assert negative_guidance_target(uncond, cond, 0.0).item() == 1.0
    assert erase_from_target(torch.tensor([5.0]), uncond, cond, 2.0).item() == 1.0


def test_it_accepts_erase_by_esd_alone() -> None:
    spec = _spec(STAR, {"edit": "erase", "method": "closed-form", "concept": "moon"})
    assert [ESD.accepts(edit) for edit in spec.edits] == [True, False]


@pytest.mark.parametrize("selection", ["cross-attention", "non-cross-attention"])
def test_every_selected_weight_moves_and_no_other(base: Checkpoint, selection: str) -> None:
    spec = _spec({**STAR, "selection": selection, "steps": 2})
    result = _run(spec, base)
    names = select(base.weights("unet").entries, selection)
    assert tuple(sorted(result.deltas)) == names == ESD.targets(spec.edits, base.weights("unet").entries)
    assert all(torch.isfinite(delta).all() and delta.any() for delta in result.deltas.values())


@pytest.mark.parametrize(
    ("edit", "preserve"),
    [
        (STAR, {"concepts": ["house"], "auto": 3}),
        (STAR, {}),
        (STAR, {"auto": 100}),  # more than the vocabulary holds
        ({**STAR, "keep_weight": 0}, {"concepts": ["house"], "auto": 3}),
        ({**STAR, "preserve": ["moon", "house"], "trajectories": 2}, {"concepts": ["house"]}),
        ({**STAR, "from": "nurse", "aliases": []}, {"concepts": ["house"]}),
        ({**STAR, "schedule": "published", "aliases": []}, {"concepts": ["house"]}),
        ({**STAR, "robust": True, "batch": 2, "trajectories": 2}, {"concepts": ["house"]}),
        ({**STAR, "refresh": 1}, {"concepts": ["house"]}),
        ({**STAR, "refresh": 1, "from": "nurse", "aliases": []}, {}),
        ({**STAR, "composed": 5, "preserve": ["moon"]}, {"concepts": ["house"]}),
        ({**STAR, "implicit": ["a night sky", "a flag"]}, {"concepts": ["house"]}),
    ],
    ids=[
        "preserve",
        "nothing",
        "many",
        "no keep term",
        "own",
        "from",
        "published",
        "robust",
        "refresh",
        "refresh from",
        "composed",
        "implicit",
    ],
)
def test_the_run_takes_the_evals_that_were_planned(
    base: Checkpoint, edit: dict[str, Any], preserve: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ROUNDS + 2 if edit.get("robust") else 2
    spec = _spec({**edit, "steps": steps, "sampling_steps": 2}, preserve=preserve)
    counted = 0
    forward = torch.nn.Module.__call__

    def counting(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal counted
        if type(module).__name__ == "UNet2DConditionModel":
            counted += len(args[0]) * (3 if torch.is_grad_enabled() else 1)
        return forward(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", counting)
    record = _run(spec, base).record
    planned = ESD.cost(spec.edits[:1], spec, base).evals
    assert record["evals"] == planned == counted


def test_the_same_edit_gives_the_same_bits_with_a_warm_and_a_cold_cache(
    base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(STAR)
    cold, warm = _run(spec, base), _run(spec, base)
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "another"))
    again = _run(spec, base)
    for other in (warm, again):
        assert other.record == cold.record
        assert all(torch.equal(other.deltas[name], delta) for name, delta in cold.deltas.items())


def test_the_loss_falls(base: Checkpoint) -> None:
    losses = _run(_spec({**STAR, "steps": 40, "aliases": []}), base).record["loss"]["erase"]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_edits_of_one_spec_share_the_bank_of_what_is_preserved(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(STAR, {**STAR, "concept": "moon", "aliases": []}, preserve={"concepts": ["house", "tree"]})
    sampled: list[tuple[str, ...]] = []
    sample = Teacher._sample

    def watched(self: Teacher, request: Any, folder: Path) -> None:
        sampled.append(request.prompts)
        sample(self, request, folder)

    monkeypatch.setattr(Teacher, "_sample", watched)
    context = _context(spec, base)
    ESD.run(spec.edits[:1], context)
    ESD.run(spec.edits[1:], context)
    assert [["star" in prompts[0], "moon" in prompts[0], "house" in prompts[0]] for prompts in sampled] == [
        [True, False, False],
        [False, False, True],
        [False, True, False],
    ]


def test_neighbours_are_mined_beside_what_the_spec_edits_and_shown(base: Checkpoint) -> None:
    spec = _spec({**STAR, "steps": 1}, {**STAR, "concept": "moon", "aliases": ["flame"]})
    record = _run(spec, base).record
    words = [word for word, _ in record["neighbours"]["erase-star"]]
    assert len(words) == 3
    assert not {"star", "sixstar", "moon", "flame", "house"} & set(words)
    assert all(any(word in prompt for prompt in record["kept_prompts"]) for word in [*words, "house"])
    assert {"a star", "a sixstar", "a photo of a sixstar"} <= set(record["prompts"])
    assert json.loads(json.dumps(record)) == record


def test_training_starts_where_earlier_passes_left_the_weights(base: Checkpoint) -> None:
    spec = _spec({**STAR, "steps": 1, "learning_rate": 1e-12})
    names = ESD.targets(spec.edits, base.weights("unet").entries)
    weights = {name: base.weights("unet").read(name) for name in names}
    upstream = {name: gaussian(weight.shape, 1, name) / 10 for name, weight in weights.items()}
    alone, after = _run(spec, base).record["loss"], _run(spec, base, upstream).record["loss"]
    assert after["erase"] != alone["erase"]
    assert after["empty"][0] > alone["empty"][0]  # the base alone predicts what was banked
    assert alone["empty"][0] < 1e-10


def test_a_prompt_over_the_token_window_is_refused(base: Checkpoint) -> None:
    spec = _spec({**STAR, "aliases": [" ".join(["very big red star"] * 4)]}, preserve={})
    with pytest.raises(InputError, match="tokens") as caught:
        _run(spec, base)
    assert caught.value.where == "/edits/0"


def test_training_that_diverges_is_bad_input_with_a_remedy(base: Checkpoint) -> None:
    spec = _spec({**STAR, "steps": 2}, preserve={})
    names = ESD.targets(spec.edits, base.weights("unet").entries)
    upstream = {name: torch.full_like(base.weights("unet").read(name), 1e30) for name in names}
    with pytest.raises(InputError, match="diverged") as caught:
        _run(spec, base, upstream)
    assert caught.value.where == "/edits/0/learning_rate"


def test_an_inpainting_base_is_refused_when_planning(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec(STAR)
    assert ESD.check(spec.edits, spec, base) == []
    monkeypatch.setitem(base.config("unet"), "in_channels", 9)
    ((pointer, message),) = ESD.check(spec.edits, spec, base)
    assert pointer == "/edits/0/method"
    assert "inpainting" in message


def test_another_edits_words_count_only_where_neighbours_are_mined() -> None:
    moon = {**STAR, "concept": "moon", "aliases": []}
    mined, fixed = {"auto": 2}, {"concepts": ["house"]}
    one, two = _spec(STAR, preserve=mined), _spec(STAR, moon, preserve=mined)
    assert ESD.reads(one.edits, one) != ESD.reads(two.edits[:1], two)
    one, two = _spec(STAR, preserve=fixed), _spec(STAR, moon, preserve=fixed)
    assert ESD.reads(one.edits, one) == ESD.reads(two.edits[:1], two)


def test_edits_with_one_word_are_one_run_and_each_loss_falls(base: Checkpoint) -> None:
    both = {"together": "sky", "steps": 30, "aliases": []}
    moon = {**STAR, **both, "concept": "moon", "negative_guidance": 2.0}
    spec = _spec({**STAR, **both}, {**STAR, "concept": "tree", "aliases": []}, moon)
    plan = make_plan(spec, base, StageCache(), choose("cpu"))
    assert [planned.ids for planned in plan.passes] == [("erase-star", "erase-moon"), ("erase-tree",)]
    edits = (spec.edits[0], spec.edits[2])
    result = ESD.run(edits, _context(spec, base))
    assert result.record["evals"] == plan.passes[0].evals
    for name in ("erase erase-star", "erase erase-moon"):
        losses = result.record["loss"][name]
        assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_edits_trained_together_must_agree_on_how(base: Checkpoint) -> None:
    moon = {**STAR, "concept": "moon", "aliases": [], "together": "sky", "steps": 99}
    spec = _spec({**STAR, "together": "sky"}, moon)
    ((pointer, message),) = ESD.check(spec.edits, spec, base)
    assert pointer == "/edits/1/steps"
    assert "together with edit 'erase-star'" in message


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"robust": True, "strength": "auto"}, "robust"),
        ({"robust": True, "steps": 3}, "steps"),
        ({"schedule": "published", "aliases": ["sixstar"]}, "aliases"),
        ({"strength": "auto"}, "strength"),
        ({"refresh": 12}, "refresh"),
        ({"refresh": 1, "robust": True}, "refresh"),
        ({"composed": 4, "from": "nurse", "aliases": []}, "from"),
    ],
    ids=[
        "two ways of training",
        "too few steps for rounds",
        "published with aliases",
        "nothing says when",
        "too few steps for blocks",
        "rounds and blocks",
        "composed and from",
    ],
)
def test_settings_that_exclude_each_other_are_refused(
    base: Checkpoint, changed: dict[str, Any], key: str
) -> None:
    spec = _spec({**STAR, **changed})
    assert f"/edits/0/{key}" in [pointer for pointer, _ in ESD.check(spec.edits, spec, base)]


def test_attacks_make_headway_and_are_recorded(base: Checkpoint) -> None:
    edit = {**STAR, "robust": True, "steps": 16, "aliases": []}
    result = _run(_spec(edit, preserve={"concepts": ["house"]}), base)
    attacks = result.record["attacks"]
    assert [(one["round"], one["attack"]) for one in attacks] == [
        (number, way) for number in range(1, ROUNDS + 1) for way in ("token", "prefix")
    ]
    assert all(one["after"] < one["before"] for one in attacks[:2])
    assert result.record["loss"]["attacked"]


def test_killed_in_mid_training_and_run_again_it_gives_the_same_bits(
    base: Checkpoint, tmp_path: Path
) -> None:
    spec = _spec(STAR)
    planned = make_plan(spec, base, StageCache(), choose("cpu")).passes[0]
    child = os.fork()
    if not child:  # pragma: no cover - it ends by its own hand
        context = PassContext(spec, base, {}, spec.seed, torch.device("cpu"), StageCache(), Fatal())
        run_pass(planned, context)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL
    deltas, record = run_pass(planned, _context(spec, base))
    elsewhere = PassContext(
        spec, base, {}, spec.seed, torch.device("cpu"), StageCache(tmp_path / "other"), Silent()
    )
    undisturbed, same = run_pass(planned, elsewhere)
    assert record == same
    assert all(torch.equal(deltas[name], delta) for name, delta in undisturbed.items())


class Fatal(Silent):
    """Kills its process in the middle of training."""

    @contextmanager
    def task(self, name: str, total: float | None = None) -> Iterator[Any]:
        done = 0

        def advance(count: float = 1) -> None:
            nonlocal done
            done += name.startswith("distil")
            if done == 6:
                os.kill(os.getpid(), signal.SIGKILL)

        yield SimpleNamespace(advance=advance)


def test_planning_imports_no_tensors() -> None:
    code = "import sys, compiler.passes.erase_esd; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("folder", ["tiny_checkpoint_sdxl", "tiny_checkpoint_fp16"])
def test_other_families_and_precisions_are_edited_in_fp32(
    folder: str, request: pytest.FixtureRequest
) -> None:
    base = Checkpoint.open(request.getfixturevalue(folder))
    spec = _spec({**STAR, "steps": 2, "sampling_steps": 2}, preserve={"concepts": ["house"]})
    result = _run(spec, base)
    assert result.record["evals"] == ESD.cost(spec.edits, spec, base).evals
    assert all(delta.dtype == torch.float32 and delta.any() for delta in result.deltas.values())
    assert result.record["loss"]["empty"][0] < 1e-10
