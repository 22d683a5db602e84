"""Guide: semantic guidance, safe latent diffusion or a negative prompt, learned by the weights themselves.

The teacher is the runtime original on the frozen base: it walks its own trajectories, and the guidance it
adds is recorded on the way, momentum and warm-up included. The student learns it in the branch of
classifier-free guidance where it does not depend on the guidance scale (compiler.effects), so that plain
sampling of the artifact does at any scale what the original does at that scale. (SEGA: Brack et al. 2023;
SLD: Schramowski et al. 2023.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import harmonic_mean
from typing import TYPE_CHECKING, Any

from compiler.bank_request import BankRequest
from compiler.contexts import without
from compiler.effects import Effect, effect_of
from compiler.guided_request import GuidedRequest, checking_evals, held_out, scales_around
from compiler.lessons import Guiding, Lesson, Reading, held, lessons_cost, too_few, too_long
from compiler.mining import Mining, edited_words, mining_of
from compiler.passes import EditPass, PassContext, PassCost, PassResult
from compiler.selections import select
from compiler.teaching import teach
from compiler.unet import unsuited
from editspec import Guide
from editspec.templates import TEMPLATES, fill

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.safetensors_file import TensorEntry
    from editspec import Edit, EditSpec


class _GuidePass(EditPass):
    """One guide edit. Each step: `batch` examples of both branches together, and what is kept."""

    version = 9
    order = 30
    merges = False

    def check(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        edit = _only(edits)
        pointer = spec.pointer(edit)
        if reason := unsuited(checkpoint.config("unet")):
            return [(f"{pointer}/edit", f"'guide' cannot edit this base: {reason}")]
        one_text = edit.method in ("sld", "negative-prompt")
        weighted = one_text and any(guided.weight != 1 for guided in edit.away_from)
        if weighted:
            return [
                (f"{pointer}/away_from", f"'{edit.method}' reads its concepts as one text, without weights")
            ]
        if edit.method == "sega" and any(g.weight < 0 for g in (*edit.away_from, *edit.toward)):
            side = "away_from" if any(g.weight < 0 for g in edit.away_from) else "toward"
            return [(f"{pointer}/{side}", "a weight is not negative; list the concept on the other side")]
        if edit.guidance_scale == 1 and edit.method == "negative-prompt" and edit.branch != "empty":
            return [(f"{pointer}/guidance_scale", "at 1 a negative prompt does nothing to this branch")]
        if few := too_few(pointer, len(guided_prompts(edit)), edit):
            return few
        lesson = _lesson(edit, spec.seed)
        return too_long(pointer, [lesson], checkpoint, effect_of(edit).prompts)

    def reads(self, edits: Sequence[Edit], spec: EditSpec) -> Any:
        # What another edit erases is no neighbour of this one's concepts.
        return {**super().reads(edits, spec), "edited": edited_words(spec) if spec.preserve.auto else ()}

    def mining(self, edits: Sequence[Edit], spec: EditSpec) -> Mapping[str, Mining | None]:
        edit = _only(edits)
        return {edit.id: mining_of(edit, tuple(guided.concept for guided in edit.away_from), spec)}

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        return select(entries, _only(edits).selection)

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        edit = _only(edits)
        targets = self.targets(edits, checkpoint.weights("unet").entries)
        lesson = _lesson(edit, spec.seed)
        cost = lessons_cost(edit, [lesson], spec, checkpoint, targets, _together(edit))
        checking = checking_evals(_guided(lesson), checkpoint.config("scheduler"))
        return replace(cost, evals=cost.evals + checking)

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        edit = _only(edits)
        lesson = _lesson(edit, context.spec.seed)
        targets = self.targets(edits, context.checkpoint.weights("unet").entries)
        mining = self.mining(edits, context.spec)[edit.id]
        result = teach(edit, [lesson], targets, mining, context, _together(edit))
        facts = {**_when(edit, context), **_checked(edit, _guided(lesson), result, context)}
        return PassResult(result.deltas, {**result.record, **facts})


class GuideSega(_GuidePass):
    """Semantic guidance: several concepts with weights, away from some and toward others."""

    name = "guide/sega"

    def accepts(self, edit: Edit) -> bool:
        return isinstance(edit, Guide) and edit.method == "sega"


class GuideSld(_GuidePass):
    """Safe latent diffusion: weak, medium, strong, max, or parameters of its own."""

    name = "guide/sld"

    def accepts(self, edit: Edit) -> bool:
        return isinstance(edit, Guide) and edit.method == "sld"


class GuideNegativePrompt(_GuidePass):
    """A negative prompt that the empty prompt has learned."""

    name = "guide/negative-prompt"

    def accepts(self, edit: Edit) -> bool:
        return isinstance(edit, Guide) and edit.method == "negative-prompt"


def guided_prompts(edit: Guide) -> tuple[str, ...]:
    """What the guidance is learned on: the edit's prompts, or by default its concepts in their templates.

    What it leads toward stands in none: the templates without a concept, to which it is then added.
    """
    templates = TEMPLATES[edit.kind]
    away = [fill(template, guided.concept) for template in templates for guided in edit.away_from]
    toward = [prompt for template in templates if (prompt := without(template))] if edit.toward else []
    return edit.prompts or tuple(dict.fromkeys((*away, *toward)))


def _only(edits: Sequence[Edit]) -> Guide:
    (edit,) = edits
    assert isinstance(edit, Guide)
    return edit


def _lesson(edit: Guide, seed: int) -> Lesson:
    """The bank of guided trajectories and what both branches learn at its rows."""
    effect = effect_of(edit)
    plain = BankRequest.of(edit, seed, guided_prompts(edit), edit.trajectories)
    scales = _scales(edit, effect)
    return Lesson(GuidedRequest(plain, effect, scales), (_reading(edit, effect, plain.prompts, scales),))


def _guided(lesson: Lesson) -> GuidedRequest:
    assert isinstance(lesson.request, GuidedRequest)
    return lesson.request


def _checked(edit: Guide, learned: GuidedRequest, result: PassResult, context: PassContext) -> dict[str, Any]:
    """For the record: how near plain sampling comes to the original from noise that was not learned on."""
    from compiler.faithfulness import faithfulness_of

    evals = checking_evals(learned, context.checkpoint.config("scheduler"))
    with context.progress.task(f"compare {edit.id} with its original", evals) as task:
        scales = scales_around(edit.guidance_scale)
        found = faithfulness_of(held_out(learned), result.deltas, scales, context)
        task.advance(evals)
    return {"evals": result.record["evals"] + evals, "faithfulness": found}


def _scales(edit: Guide, effect: Effect) -> tuple[float, ...]:
    """The guidance scales it is learned at: several where what is learned holds at all of them, or nearly."""
    holds = edit.branch in (effect.branch, "opposite")
    return scales_around(edit.guidance_scale) if holds else (edit.guidance_scale,)


def _changes(edit: Guide, effect: Effect) -> tuple[float, float]:
    """(text, empty): how much of the guidance each half takes.

    What depends on the scale a little is taken at the harmonic mean of the scales: in units of w g it leads
    as much too far at some of them as it falls short at others.
    """
    return effect.changes(edit.branch, harmonic_mean(_scales(edit, effect)))


def _together(edit: Guide) -> tuple[float, ...]:
    """The scales at which preserved concepts are held in guided predictions: where the empty prompt learns.

    The original leads away at every prompt. What is preserved has to stay all the same, as it is drawn.
    """
    effect = effect_of(edit)
    _, empty = _changes(edit, effect)
    return _scales(edit, effect) if empty else ()


def _reading(edit: Guide, effect: Effect, prompts: Sequence[str], scales: tuple[float, ...]) -> Reading:
    """Both halves together, as they will be used: their errors are multiplied by w, and must not add up.

    With `even_timesteps` the noise, where the guidance is small, counts as much as the rest.
    """
    text, empty = _changes(edit, effect)
    both = held("guided", prompts, 1.0, edit.batch)
    together = Guiding(scales, empty, _halves(text, empty, edit.guidance_scale))
    return replace(both, change=text, guided=together, level=edit.even_timesteps)


def _halves(text: float, empty: float, guidance_scale: float) -> float:
    """How much the halves count by themselves: less, where what they learn hardly shows in what is drawn.

    What both halves take alike, SEGA's guidance, is drawn as it is; a text half's is multiplied by w, and so
    is all in which the halves differ. Counted as for a text, the halves would be nearly all of the loss, each
    with errors of its own. The share is that of g in the guided prediction over w, squared; never less than
    where both take alike, for at w = 1 an empty prompt shows in nothing and is learned all the same. Opposite
    halves, drawn as more than each of them learns, count less too: either may do more of it.
    """
    drawn = text + empty * (1.0 - guidance_scale) / guidance_scale
    shown, own = drawn**2, max(text**2, empty**2)
    return max(min(shown, own) / max(shown, own), guidance_scale**-2)


def _when(edit: Guide, context: PassContext) -> dict[str, Any]:
    """For the record: which branch learned it, and the timesteps at which the guidance begins and ends.

    Steps are the runtime's way to say it, but weights see t alone: a warm-up is a threshold in t.
    """
    from compiler.sampling import load_scheduler

    scheduler = load_scheduler(context.checkpoint)
    scheduler.set_timesteps(edit.sampling_steps, device=context.device)
    at_work = scheduler.timesteps[edit.warmup or 0 : edit.cooldown].tolist()
    ends = [float(at_work[0]), float(at_work[-1])] if at_work else []
    return {"branch": edit.branch, "guided_timesteps": ends}
