"""Respond: a phrase in the prompt ("without fire", "fair gender") does what another edit would do.

The teacher adds the edit's effect, or a direction of the phrase's own, to prompts that do not say the phrase;
the student learns it from the text, in the text branch alone: the same prompts without the phrase, and the
empty prompt, stay where they are, along these trajectories and along those that the base itself takes for the
prompts. (METHODS, section 7; Li et al. 2024, on responsible phrases.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from compiler.bank_request import BankRequest
from compiler.effects import Along, Effect, effect_of
from compiler.groups import group_names, group_shares, neutral_prompts
from compiler.guided_request import GuidedRequest, checking_evals, held_out, scales_around
from compiler.lessons import Lesson, Reading, held, lessons_cost, quarter, too_few, too_long
from compiler.mining import edited_words
from compiler.passes import EditPass, PassContext, PassCost, PassResult
from compiler.passes.guide import guided_prompts
from compiler.selections import select
from compiler.teaching import teach
from compiler.unet import unsuited
from editspec import Balance, Direction, Guide, Respond, Shift

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.safetensors_file import TensorEntry
    from editspec import Edit, EditSpec

# How a prompt may say a phrase: "a house without fire" and "a house, without fire".
SAID = ("{prompt} {phrase}", "{prompt}, {phrase}")


class RespondPhrases(EditPass):
    """One respond edit. Each step: `batch` examples, shared by its phrases, and as many without a phrase."""

    name = "respond/phrases"
    version = 6
    order = 50
    merges = False

    def accepts(self, edit: Edit) -> bool:
        return isinstance(edit, Respond)

    def check(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        edit = _only(edits)
        pointer = spec.pointer(edit)
        if reason := unsuited(checkpoint.config("unet")):
            return [(f"{pointer}/edit", f"'respond' cannot edit this base: {reason}")]
        meanings = _meanings(edit, spec)
        for place, meaning in enumerate(meanings):
            if isinstance(meaning.does, Along) and not meaning.does.given_by_prompts:
                what = "its direction comes from a file; a phrase learns one that prompts give"
                return [(f"{pointer}/phrases/{place}", what)]
        for meaning in meanings:
            if few := too_few(pointer, meaning.banked, edit, shared_by=len(meanings)):
                return few
        return too_long(pointer, _lessons(edit, spec), checkpoint)

    def reads(self, edits: Sequence[Edit], spec: EditSpec) -> Any:
        used = {phrase.use for phrase in _only(edits).phrases}
        documents = [document for document in spec.document["edits"] if document["id"] in used]
        edited = edited_words(spec) if spec.preserve.auto else ()
        return {**super().reads(edits, spec), "edited": edited, "used": documents}

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        return select(entries, _only(edits).selection)

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        edit = _only(edits)
        targets = self.targets(edits, checkpoint.weights("unet").entries)
        cost = lessons_cost(edit, _lessons(edit, spec), spec, checkpoint, targets)
        checking = _checking_evals(_guided(edit, spec), checkpoint)
        return replace(cost, evals=cost.evals + checking)

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        edit = _only(edits)
        targets = self.targets(edits, context.checkpoint.weights("unet").entries)
        result = teach(edit, _lessons(edit, context.spec), targets, None, context)
        return PassResult(result.deltas, {**result.record, **_checked(edit, result, context)})


def _checked(edit: Respond, result: PassResult, context: PassContext) -> dict[str, Any]:
    """For the record: how near each phrase comes to what it stands for, from noise not learned on."""
    guided = _guided(edit, context.spec)
    if not guided:
        return {}
    from compiler.faithfulness import faithfulness_of

    evals = _checking_evals(guided, context.checkpoint)
    found, scales = [], scales_around(edit.guidance_scale)
    with context.progress.task(f"compare {edit.id} with what it stands for", evals) as task:
        for meaning, learned in guided:
            facts = faithfulness_of(held_out(learned), result.deltas, scales, context, meaning.first)
            found += [{"phrase": meaning.phrase, **one} for one in facts]
        task.advance(evals)
    return {"evals": result.record["evals"] + evals, "faithfulness": found}


def _checking_evals(guided: Sequence[tuple[_Meaning, GuidedRequest]], checkpoint: Checkpoint) -> int:
    return sum(checking_evals(learned, checkpoint.config("scheduler")) for _, learned in guided)


@dataclass(frozen=True)
class _Meaning:
    """A phrase, what it does, and the prompts it is added to."""

    phrase: str
    does: Effect | Balance
    prompts: tuple[str, ...]

    @property
    def banked(self) -> int:
        """Number of prompts whose trajectories it is learned on."""
        groups = len(group_names(self.does)) if isinstance(self.does, Balance) else 1
        return groups * len(self.prompts)

    def said(self, prompt: str) -> tuple[str, ...]:
        """The prompt with the phrase, in every way of saying it."""
        return tuple(way.format(prompt=prompt, phrase=self.phrase) for way in SAID)

    def first(self, prompt: str) -> str:
        """The prompt with the phrase, in the first of these ways."""
        return self.said(prompt)[0]


def _meanings(edit: Respond, spec: EditSpec) -> tuple[_Meaning, ...]:
    """What each phrase does. A balance brings its own neutral prompts: those it knows under each group."""
    used = {other.id: other for other in spec.edits}
    found = []
    for phrase in edit.phrases:
        source = used[phrase.use] if phrase.use is not None else phrase.direction
        if isinstance(source, Balance):
            prompts = tuple(neutral.prompt for neutral in neutral_prompts(source))
            found.append(_Meaning(phrase.text, source, prompts))
        elif isinstance(source, Guide):
            found.append(_Meaning(phrase.text, effect_of(source), edit.prompts or guided_prompts(source)))
        else:
            assert isinstance(source, Shift | Direction)  # nothing else has an effect that a phrase can use
            directions, strength = (
                (source.directions, source.strength) if isinstance(source, Shift) else ((source,), 1.0)
            )
            along = Along(directions, edit.guidance_scale, strength)
            found.append(_Meaning(phrase.text, along, edit.prompts or _starts(directions)))
    return tuple(found)


def _starts(directions: Sequence[Direction]) -> tuple[str, ...]:
    """The prompts that directions start from."""
    starts = (d.base_prompt if d.base_prompt is not None else d.prompt for d in directions)
    return tuple(dict.fromkeys(start for start in starts if start is not None))


def _lessons(edit: Respond, spec: EditSpec) -> tuple[Lesson, ...]:
    meanings = _meanings(edit, spec)
    share = edit.trajectories // len(meanings)
    batch = -(-edit.batch // len(meanings))
    lessons: list[Lesson] = []
    for meaning in meanings:
        if isinstance(meaning.does, Balance):
            lessons.extend(_fair_lessons(edit, meaning, meaning.does, spec.seed, share, batch))
        else:
            lessons.extend(_guided_lessons(edit, meaning, meaning.does, spec.seed, share, batch))
    return tuple(lessons)


def _guided(edit: Respond, spec: EditSpec) -> list[tuple[_Meaning, GuidedRequest]]:
    """The phrases that stand for guidance, each with the trajectories that it is learned on."""
    meanings = _meanings(edit, spec)
    share = edit.trajectories // len(meanings)
    return [
        (meaning, _request(edit, meaning, meaning.does, spec.seed, share))
        for meaning in meanings
        if not isinstance(meaning.does, Balance)
    ]


def _request(edit: Respond, meaning: _Meaning, effect: Effect, seed: int, trajectories: int) -> GuidedRequest:
    plain = BankRequest.of(edit, seed, meaning.prompts, trajectories)
    return GuidedRequest(plain, effect, (edit.guidance_scale,))


def _guided_lessons(
    edit: Respond, meaning: _Meaning, effect: Effect, seed: int, trajectories: int, batch: int
) -> Iterator[Lesson]:
    """With the phrase, the prompt's own prediction and the effect's text branch; without it, as before.

    The effect's trajectories end without what it leads away from. A prompt without the phrase still goes
    where the base takes it, so half of what is held is held there.
    """
    request = _request(edit, meaning, effect, seed, trajectories)
    plain = request.plain
    said = tuple(meaning.said(prompt) for prompt in plain.prompts)
    change, _ = effect.changes("text", edit.guidance_scale)
    name = f"phrase '{meaning.phrase}'"
    obeyed = Reading(name, said, plain.prompts, 1.0, batch, change)
    half = -(-batch // 2)
    yield Lesson(request, (obeyed, *_kept(edit, name, plain.prompts, 1.0, half)))
    if own := _kept(edit, f"{name}, of the base", plain.prompts, 1.0, half):
        yield Lesson(plain, own)


def _fair_lessons(
    edit: Respond, meaning: _Meaning, balance: Balance, seed: int, trajectories: int, batch: int
) -> Iterator[Lesson]:
    """With the phrase, the mixture of the groups, as in compiler.passes.balance; without it, as before."""
    neutrals, groups = neutral_prompts(balance), group_names(balance)
    said = tuple(meaning.said(neutral.prompt) for neutral in neutrals)
    part = -(-batch // len(groups))
    for place, (group, share) in enumerate(zip(groups, group_shares(balance), strict=True)):
        named = tuple(neutral.named[place] for neutral in neutrals)
        request = BankRequest.of(edit, seed, named, trajectories // len(groups))
        name = f"phrase '{meaning.phrase}', {group}"
        kept = _kept(edit, name, tuple(neutral.prompt for neutral in neutrals), share, part)
        yield Lesson(request, (Reading(name, said, named, share, part), *kept))


def _kept(
    edit: Respond, name: str, prompts: tuple[str, ...], share: float, batch: int
) -> tuple[Reading, ...]:
    """The same trajectories without the phrase and with the empty prompt."""
    weight = share * edit.keep_weight
    if not weight:
        return ()
    return (
        held(f"{name}, without", prompts, weight, batch),
        held(f"{name}, empty", (None,) * len(prompts), weight, quarter(batch)),
    )


def _only(edits: Sequence[Edit]) -> Respond:
    (edit,) = edits
    assert isinstance(edit, Respond)
    return edit
