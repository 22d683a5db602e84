from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.passes import PassContext, PassResult
from compiler.passes.balance import EARLY_TIMES, BalanceDistil, balance_lessons
from compiler.progress import Silent
from compiler.sampling import predict
from compiler.seeds import gaussian
from compiler.selections import select
from compiler.teacher import Teacher
from compiler.teaching import predicted_before, terms_of
from compiler.unet import add_deltas
from editspec import Balance, EditSpec, parse_spec

BALANCE = BalanceDistil()
FAIR: dict[str, Any] = {
    "edit": "balance", "id": "fair", "prompts": ["a photo of a {}"], "professions": ["baker", "nurse"],
    "groups": ["zan", "zin"], "group_template": "{group} {profession}", "steps": 2, "learning_rate": 0.002,
    "batch": 8, "trajectories": 8, "timesteps": 2, "sampling_steps": 2, "guidance_scale": 2.0,
    "selection": "cross-attention",
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
    return BALANCE.run(spec.edits, _context(spec, base))


@torch.no_grad()
def _predicted(teacher: Teacher, prompts: list[str], count: int = 64) -> list[torch.Tensor]:
    """What each prompt predicts at the same pure noises, flattened together."""
    noise, read = gaussian((count, 4, 8, 8), 11, "held out"), teacher.encode(prompts)
    timestep = torch.full((count,), 501.0)
    return [
        predict(teacher.unet, noise, timestep, read.rows([place] * count)).flatten()
        for place in range(len(prompts))
    ]


def _lean(one: torch.Tensor, other: torch.Tensor, found: torch.Tensor) -> float:
    """Where between the other group (0) and the one (1) a neutral prompt's predictions are."""
    return float((found - other) @ (one - other) / (one - other).square().sum())


@pytest.mark.parametrize(("decided", "steps"), [(0.2, 2), (0.6, 6), (1.0, 10)])
def test_a_neutral_prompt_learns_most_where_its_group_is_decided(
    decided: float, steps: int, base: Checkpoint
) -> None:
    spec = _spec({**FAIR, "sampling_steps": 10, "timesteps": 10})
    (edit,) = spec.edits
    assert isinstance(edit, Balance)
    lesson = balance_lessons(edit, 7, decided)[0]
    teacher = Teacher(_context(spec, base))
    bank = teacher.bank(lesson.request)  # type: ignore[arg-type]
    texts = lesson.student_prompts
    number = {text: place + 1 for place, text in enumerate(texts)}
    prompts = teacher.unconditional.join(teacher.encode(texts))
    found = predicted_before(lesson, bank, number, teacher.unet, prompts)
    neutral, *kept = terms_of(lesson, bank, number, found)
    times = neutral.examples[:, 0].bincount()
    timestep = bank.column("timestep")
    early = timestep >= timestep.unique().sort(descending=True).values[steps - 1]
    assert (times[early] == EARLY_TIMES).all()
    assert (times[~early] == 1).all()
    assert all((term.examples[:, 0].bincount() == 1).all() for term in kept)


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_at_pure_noise_a_neutral_prompt_predicts_the_mixture_of_its_groups(
    telling_checkpoint: Path, share: float
) -> None:
    base = Checkpoint.open(telling_checkpoint)
    shares = {} if share == 0.5 else {"shares": [share, 1 - share]}
    longer = {"steps": 150, "learning_rate": 0.0005, "schedule": "cosine", "trajectories": 64, "batch": 16}
    spec = _spec({**FAIR, **shares, **longer, "professions": ["baker"], "selection": "full"})
    context = _context(spec, base)
    prompts = [f"a photo of a {who}baker" for who in ("", "zan ", "zin ")]
    teacher = Teacher(context)
    before = _predicted(teacher, prompts)
    add_deltas(teacher.unet, BALANCE.run(spec.edits, context).deltas)
    after = _predicted(teacher, prompts)
    wanted = share * before[1] + (1 - share) * before[2]
    assert (after[0] - wanted).norm() < 0.8 * (before[0] - wanted).norm()
    assert abs(_lean(before[1], before[2], after[0]) - share) < 0.25


def test_it_moves_exactly_what_it_declares_and_records_the_shares(base: Checkpoint) -> None:
    spec = _spec(FAIR)
    result = _run(spec, base)
    entries = base.weights("unet").entries
    assert tuple(sorted(result.deltas)) == BALANCE.targets(spec.edits, entries)
    assert BALANCE.targets(spec.edits, entries) == select(entries, "cross-attention")
    assert all(torch.isfinite(delta).all() and delta.any() for delta in result.deltas.values())
    assert result.record["shares"] == {"zan": 0.5, "zin": 0.5}
    assert json.loads(json.dumps(result.record)) == result.record


@pytest.mark.parametrize("calibrate", [0, 2])
@pytest.mark.parametrize("preserve", [{}, {"concepts": ["house"], "auto": 1}], ids=["nothing", "preserve"])
def test_the_run_takes_the_evals_that_were_planned_and_gives_the_same_bits_twice(
    base: Checkpoint,
    preserve: dict[str, Any],
    calibrate: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = _spec({**FAIR, "calibrate": calibrate}, preserve=preserve)
    counted = 0
    forward = torch.nn.Module.__call__

    def counting(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal counted
        if type(module).__name__ == "UNet2DConditionModel":
            counted += len(args[0]) * (3 if torch.is_grad_enabled() else 1)
        return forward(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "__call__", counting)
    first = _run(spec, base)
    assert first.record["evals"] == BALANCE.cost(spec.edits, spec, base).evals == counted
    monkeypatch.setenv("EXCISE_CACHE", str(tmp_path / "another"))
    second = _run(spec, base)
    assert second.record == first.record
    assert all(torch.equal(second.deltas[name], delta) for name, delta in first.deltas.items())


def test_the_share_in_which_it_is_open_who_is_drawn_is_measured_unless_it_is_given(base: Checkpoint) -> None:
    half, whole = ({**FAIR, "decided": share} for share in (0.5, 1.0))
    measured, *given = (_run(_spec(edit), base) for edit in (FAIR, half, whole))
    assert 0 < measured.record["decided"] <= 1
    assert len(measured.record["doubt"]) == FAIR["sampling_steps"]
    assert all("doubt" not in one.record and one.record["evals"] < measured.record["evals"] for one in given)
    assert any(not torch.equal(given[0].deltas[name], delta) for name, delta in given[1].deltas.items())


def test_calibrated_weights_are_the_mean_of_the_rounds_later_ones_counting_for_more(
    base: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compiler import distil

    changes: list[dict[str, torch.Tensor]] = []
    trained = distil.distil

    def remembering(*arguments: Any, **named: Any) -> Any:
        done = trained(*arguments, **named)
        changes.append(done.deltas)
        return done

    monkeypatch.setattr(distil, "distil", remembering)
    found = _run(_spec({**FAIR, "calibrate": 3}), base).deltas
    assert len(changes) == 4
    for name, delta in found.items():
        reached = torch.stack([one[name] for one in changes]).cumsum(0)
        expected = (reached[1] + 2 * reached[2] + 3 * reached[3]) / 6
        torch.testing.assert_close(delta, expected)


def test_a_prompt_that_names_a_group_is_kept_along_the_same_trajectories() -> None:
    (edit,) = _spec({**FAIR, "shares": [0.75, 0.25], "keep_weight": 2.0}).edits
    assert isinstance(edit, Balance)
    zan, zin = balance_lessons(edit, 0)
    neutral, named, empty = zan.readings
    assert zan.request.prompts == ("a photo of a zan baker", "a photo of a zan nurse")
    assert neutral.prompts == (("a photo of a baker",), ("a photo of a nurse",))
    assert named.prompts == tuple((prompt,) for prompt in zan.request.prompts)
    assert neutral.wanted == named.wanted == zan.request.prompts
    assert empty.wanted == (None, None)
    assert [reading.weight for reading in zan.readings] == [0.75, 1.5, 1.5]
    assert [reading.weight for reading in zin.readings] == [0.25, 0.5, 0.5]


def test_too_few_trajectories_for_its_prompts_are_refused_with_the_number_it_takes(base: Checkpoint) -> None:
    spec = _spec({**FAIR, "trajectories": 3})
    ((pointer, message),) = BALANCE.check(spec.edits, spec, base)
    assert pointer == "/edits/0/trajectories"
    assert message == "3 are too few: 4 prompts need one each"


def test_a_named_prompt_over_the_window_is_refused_while_planning(base: Checkpoint) -> None:
    spec = _spec({**FAIR, "groups": ["zan", " ".join(["very big red star"] * 3)]})
    ((pointer, message),) = BALANCE.check(spec.edits, spec, base)
    assert pointer == "/edits/0"
    assert "tokens" in message


def test_calibrating_a_base_that_predicts_neither_noise_nor_v_is_refused_while_planning(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    path = tmp_path / "base" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "sample"}))
    base = Checkpoint.open(tmp_path / "base")
    spec = _spec({**FAIR, "calibrate": 1})
    ((pointer, message),) = BALANCE.check(spec.edits, spec, base)
    assert pointer == "/edits/0/calibrate"
    assert "'sample'" in message
    assert BALANCE.check(_spec(FAIR).edits, _spec(FAIR), base) == []
