from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.debias import tilt_of
from compiler.groups import neutral_prompts
from compiler.passes import PassContext, PassResult, balance_closed_form
from compiler.passes.balance_closed_form import BalanceClosedForm
from compiler.progress import Silent
from compiler.selections import select
from editspec import Balance, EditSpec, parse_spec

SOLVED = BalanceClosedForm()
FAIR: dict[str, Any] = {
    "edit": "balance", "method": "closed-form", "id": "fair", "prompts": ["a photo of a {}", "a {}"],
    "professions": ["baker", "nurse"], "groups": ["zan", "zin"], "group_template": "{group} {profession}",
    "ridge": 0.001, "scale": 10,
}  # fmt: skip


def _spec(edit: Mapping[str, Any], **changed: Any) -> EditSpec:
    document = {
        "editspec": 1,
        "name": "test",
        "base": {"path": "tiny"},
        "seed": 7,
        "edits": [edit],
        **changed,
    }
    return parse_spec(json.dumps(document))


@pytest.fixture
def base(tiny_checkpoint: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint)


def _context(spec: EditSpec, base: Checkpoint) -> PassContext:
    return PassContext(spec, base, {}, spec.seed, torch.device("cpu"), StageCache(), Silent())


def _run(spec: EditSpec, base: Checkpoint) -> PassResult:
    return SOLVED.run(spec.edits, _context(spec, base))


@pytest.mark.parametrize("shares", [[0.5, 0.5], [0.9, 0.1]])
def test_what_the_model_believes_of_neutral_prompts_moves_to_the_wanted_shares(
    base: Checkpoint, shares: list[float]
) -> None:
    record = _run(_spec({**FAIR, "shares": shares}), base).record
    assert min(record["leans"]) < 0.5 * record["leans"][0]
    assert set(record["believed"]) == {"a photo of a baker", "a photo of a nurse", "a baker", "a nurse"}
    for groups in record["believed"].values():
        assert sum(after for _, after in groups.values()) == pytest.approx(1, abs=1e-3)


def test_prompts_that_name_a_group_and_the_empty_prompt_move_less_than_neutral_ones(base: Checkpoint) -> None:
    spec = _spec({**FAIR, "scale": 1})
    context = _context(spec, base)
    deltas = SOLVED.run(spec.edits, context).deltas
    moved = {
        prompt: sum(float((state @ delta.T).square().sum()) for delta in deltas.values())
        for prompt, state in zip(
            ("a photo of a baker", "a photo of a zan baker", "a photo of a zin baker", ""),
            context.text().encode(
                ["a photo of a baker", "a photo of a zan baker", "a photo of a zin baker", ""]
            ),
            strict=True,
        )
    }
    for prompt in ("a photo of a zan baker", "a photo of a zin baker", ""):
        assert moved[prompt] < 0.7 * moved["a photo of a baker"]


def test_keys_and_values_alone_change_as_declared(base: Checkpoint) -> None:
    spec = _spec(FAIR)
    result = _run(spec, base)
    targets = SOLVED.targets(spec.edits, base.weights("unet").entries)
    assert tuple(sorted(result.deltas)) == targets
    assert set(targets) <= set(select(base.weights("unet").entries, "cross-attention-kv"))
    assert all(torch.isfinite(delta).all() and delta.any() for delta in result.deltas.values())
    assert json.loads(json.dumps(result.record)) == result.record


def test_it_takes_the_evals_that_were_planned_and_gives_the_same_bits_twice(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = _spec({**FAIR, "groups": [["zan", "zin"], ["big", "small"]], "prompts": ["a {}"]})
    counted = 0
    forward = torch.nn.Module.__call__

    def counting(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal counted
        if type(module).__name__ == "UNet2DConditionModel":
            counted += len(args[0])
        return forward(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", counting)
    first = _run(spec, base)
    assert first.record["evals"] == SOLVED.cost(spec.edits, spec, base).evals == counted
    second = _run(spec, base)
    assert second.record == first.record
    assert all(torch.equal(second.deltas[name], delta) for name, delta in first.deltas.items())


def test_a_neutral_prompt_tilted_wholly_to_a_group_reads_as_that_group_from_its_place_on(
    base: Checkpoint,
) -> None:
    (edit,) = _spec({**FAIR, "prompts": ["a photo of a {} in red"], "professions": ["baker"]}).edits
    assert isinstance(edit, Balance)
    text = _context(_spec(FAIR), base).text()
    tilt = tilt_of(text, neutral_prompts(edit)[0])
    neutral, zan = text.encode(["a photo of a baker in red", "a photo of a zan baker in red"])
    tilted = tilt.tilted(torch.tensor([1.0, 0.0]))
    assert tilt.positions[0] == 5  # BOS, a, photo, of, a: alike in both
    torch.testing.assert_close(tilted[:5], neutral[:5])
    torch.testing.assert_close(tilted[5:9], zan[6:10])  # baker, in, red, EOS
    torch.testing.assert_close(tilted[10:], zan[10:])


def test_a_group_over_the_window_is_refused_while_planning(base: Checkpoint) -> None:
    spec = _spec({**FAIR, "groups": ["zan", " ".join(["very big red star"] * 3)]})
    ((pointer, message),) = SOLVED.check(spec.edits, spec, base)
    assert pointer == "/edits/0"
    assert "tokens" in message


def test_what_another_edit_changes_is_kept_in_prompts_that_say_more_of_it(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablate = {"edit": "ablate", "concept": "moon", "anchor": "circle"}
    document = {"editspec": 1, "name": "test", "base": {"path": "tiny"}, "seed": 7, "edits": [ablate, FAIR]}
    spec = parse_spec(json.dumps(document))
    context = _context(spec, base)
    (said,) = context.text().encode(["a red moon"])
    moved = []
    for weight in (balance_closed_form.COMPOSED_WEIGHT, 1e-9):
        monkeypatch.setattr(balance_closed_form, "COMPOSED_WEIGHT", weight)
        deltas = SOLVED.run(spec.edits[-1:], context).deltas
        moved.append(sum(float((said @ delta.T).square().sum()) for delta in deltas.values()))
    assert moved[0] < 0.8 * moved[1]
