"""How much later passes disturb what an earlier one did, measured on the prompts that the earlier one is for.

Edits are learned one after the other, each on the result of those before it. For each pass: `done` is how far
it moved the predictions for its own prompts, `later` how far all passes after it moved them again, both root
mean squares along the base's own trajectories. A ratio near 0 says that its effect is still there; near 1,
that later edits moved these prompts as much as it did itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compiler.bank_request import BankRequest
from compiler.groups import neutral_prompts
from editspec import Ablate, Balance, Direction, Erase, Guide, Respond, Shift
from editspec.templates import TEMPLATES, fill

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.passes import PassContext
    from compiler.plan import PlannedPass
    from editspec import Edit, EditSpec

PROMPTS = 4  # for each pass: a merged pass of a hundred edits is probed at a few of them
PROMPTS_MADE = 32  # that a taught edit keeps, of all that was made before
STEPS, ROWS = 10, 4  # of each trajectory
GUIDANCE_SCALE = 5.0
VERSION = 2  # raise it whenever the same build may give other figures


def probes(edits: Sequence[Edit], spec: EditSpec) -> tuple[str, ...]:
    """At most `PROMPTS` prompts that some edits are for, spread over the edits."""
    return _in_turn([prompts_of(edit, spec) for edit in edits], PROMPTS)


def beside(edits: Sequence[Edit], spec: EditSpec) -> tuple[str, ...]:
    """The prompts that the spec's other edits are for, without those that name what these edits change.

    A closed form keeps them as it finds them: of all that it does not name it would else move most what is
    most like its own concepts, and undo there what passes before it have done.
    """
    return tuple(dict.fromkeys(prompt for found in _of_others(edits, spec.edits, spec) for prompt in found))


def named_beside(edits: Sequence[Edit], spec: EditSpec) -> tuple[str, ...]:
    """The concepts that the spec's other edits erase, ablate or guide away from, each once, with aliases."""
    own = {edit.id for edit in edits}
    others = [edit for edit in spec.edits if edit.id not in own and isinstance(edit, Erase | Ablate | Guide)]
    return tuple(dict.fromkeys(name for edit in others for name in _named(edit)))


def made_already(edit: Edit, spec: EditSpec) -> tuple[str, ...]:
    """A few such prompts of each edit that is made before this one: what a taught edit must not undo."""
    from compiler.passes import made_before

    every = _of_others([edit], made_before(edit, spec), spec)
    return _in_turn([found[:PROMPTS] for found in every], PROMPTS_MADE)


def interference(
    passes: Sequence[PlannedPass], changes: Sequence[Mapping[str, Tensor]], context: PassContext
) -> list[dict[str, Any]]:
    """For each pass but the last its `done`, `later` and their ratio, and the prompts it was probed at.

    `changes` are the fp32 changes of each pass by U-Net name, in order. `context` is that of no pass: its
    upstream is not read.
    """
    from compiler.predictions import predictions
    from compiler.teacher import Teacher
    from compiler.unet import add_deltas

    spec = context.spec
    asked = [probes([spec.edits[at] for at in planned.edits], spec) for planned in passes]
    teacher = Teacher(context)
    banks = [teacher.bank(_request(prompts, spec.seed)) for prompts in asked[:-1]]
    read = [teacher.encode(prompts) for prompts in asked[:-1]]
    numbers = [bank.column("prompt").tolist() for bank in banks]
    found: list[list[Tensor]] = [[] for _ in banks]  # before the pass, after it, after all passes

    def look(place: int) -> None:
        if place < len(banks):
            found[place].append(predictions(teacher.unet, banks[place], read[place], numbers[place]))

    for place, deltas in enumerate(changes):
        look(place)
        add_deltas(teacher.unet, deltas)
        look(place)
    for place in range(len(banks)):
        look(place)
    rows = []
    for planned, prompts, (before, after, last) in zip(passes, asked, found, strict=False):
        done, later = (
            float(difference.square().mean().sqrt()) for difference in (after - before, last - after)
        )
        rows.append(
            {
                "pass": planned.edit_pass.name,
                "edits": list(planned.ids),
                "prompts": list(prompts),
                "done": _short(done),
                "later": _short(later),
                "ratio": _short(later / done) if done else None,
            }
        )
    return rows


def prompts_of(edit: Edit, spec: EditSpec) -> tuple[str, ...]:
    """What an edit is for, in prompts."""
    if isinstance(edit, Erase | Ablate):
        return tuple(fill(template, edit.concept) for template in TEMPLATES.get(edit.kind, ("{}",)))
    if isinstance(edit, Guide):
        concepts = (*edit.away_from, *edit.toward)
        named = (fill(template, g.concept) for template in TEMPLATES[edit.kind] for g in concepts)
        return edit.prompts or tuple(named)
    if isinstance(edit, Balance):
        return tuple(neutral.prompt for neutral in neutral_prompts(edit))
    if isinstance(edit, Respond):
        return tuple(f"{prompt} {p.text}" for p in edit.phrases for prompt in edit.prompts or ("a picture",))
    assert isinstance(edit, Shift)
    ends = (text for direction in edit.directions for text in _ends(direction))
    return tuple(dict.fromkeys((*ends, *edit.prompts)))


def _of_others(edits: Sequence[Edit], others: Sequence[Edit], spec: EditSpec) -> list[tuple[str, ...]]:
    """For each of `others` what it is for, without what `edits` are for or name."""
    own = {edit.id for edit in edits}
    names = {name for edit in edits for name in _named(edit)}
    theirs = {prompt for edit in edits for prompt in prompts_of(edit, spec)}
    return [
        tuple(
            prompt
            for prompt in prompts_of(other, spec)
            if prompt not in theirs and not any(f" {name} " in f" {prompt} " for name in names)
        )
        for other in others
        if other.id not in own
    ]


def _in_turn(groups: Sequence[Sequence[str]], limit: int) -> tuple[str, ...]:
    """At most `limit` different prompts, spread over the groups, which take turns."""
    every = [found for found in groups if found]
    listed = every[:: max(1, -(-len(every) // limit))]
    turns = max((len(found) for found in listed), default=0)
    taken = dict.fromkeys(found[turn] for turn in range(turns) for found in listed if turn < len(found))
    return tuple(taken)[:limit]


def _named(edit: Edit) -> tuple[str, ...]:
    """The words by which prompts ask for what an edit changes."""
    if isinstance(edit, Erase | Ablate):
        return (edit.concept, *edit.aliases)
    if isinstance(edit, Guide):
        return tuple(guided.concept for guided in (*edit.away_from, *edit.toward))
    if isinstance(edit, Respond):
        return tuple(phrase.text for phrase in edit.phrases)
    return edit.professions if isinstance(edit, Balance) else ()


def _ends(direction: Direction) -> list[str]:
    found = (direction.base_prompt, direction.prompt, direction.negative_prompt)
    return [text for text in found if text] or ["a picture"]


def _request(prompts: tuple[str, ...], seed: int) -> BankRequest:
    return BankRequest(
        prompts, (1,) * len(prompts), seed, steps=STEPS, guidance_scale=GUIDANCE_SCALE, strata=ROWS
    )


def _short(value: float) -> float:
    """Four digits: what the last bits of a machine class cannot change."""
    return float(f"{value:.4g}")
