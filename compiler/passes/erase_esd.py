"""Erase by distillation: ESD, Erasing Concepts from Diffusion Models (Gandikota et al. 2023).

The student learns to predict, for the concept's prompts, what the frozen base would if it were steered away
from the concept. x_t come from a bank of the base's own trajectories, so e_0 and e_c are already there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.esd_plan import (
    ROUNDS,
    Requests,
    composed_with,
    learning_evals,
    student_prompts,
    subject,
)
from compiler.mining import Mining, edited_words, mining_of
from compiler.passes import EditPass, PassContext, PassCost, PassResult
from compiler.selections import select
from compiler.strength import strength_problems, strength_reads
from compiler.unet import training_memory, unsuited
from editspec import Erase
from editspec.templates import TEMPLATES, fill

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.checkpoint import Checkpoint
    from compiler.safetensors_file import TensorEntry
    from editspec import Edit, EditSpec

LOADING_SECONDS = 2.0  # late imports and building the U-Net
# What edits trained together must agree on: there is one loop, one optimiser, one selection.
SHARED = (
    "selection",
    "steps",
    "learning_rate",
    "loss",
    "schedule",
    "ema",
    "held_out",
    "precision",
    "keep_weight",
)


def negative_guidance_target(noise_uncond: Tensor, noise_cond: Tensor, negative_guidance: float) -> Tensor:
    """ESD, eq. 7: steer away from the concept, e_0 - eta (e_c - e_0). All (n, channels, h, w)."""
    return noise_uncond - negative_guidance * (noise_cond - noise_uncond)


def erase_from_target(
    noise_from: Tensor, noise_uncond: Tensor, noise_cond: Tensor, negative_guidance: float
) -> Tensor:
    """The authors' later form, a concept taken out of another prompt: e_from - eta (e_c - e_0)."""
    return noise_from - negative_guidance * (noise_cond - noise_uncond)


class EraseEsd(EditPass):
    """Erasures by distillation, alone or together. Each step: `batch` examples of each, and `keep`."""

    name: ClassVar[str] = "erase/esd"
    version: ClassVar[int] = 8
    order: ClassVar[int] = 10
    merges: ClassVar[bool] = False

    def accepts(self, edit: Edit) -> bool:
        return isinstance(edit, Erase) and edit.method == "esd"

    def together(self, edit: Edit) -> str | None:
        return edit.together if isinstance(edit, Erase) else None

    def check(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        found = []
        if reason := unsuited(checkpoint.config("unet")):
            message = f"'esd' cannot edit this base: {reason}"
            found += [(f"{spec.pointer(edit)}/method", message) for edit in edits]
        first, *others = _erasures(edits)
        for edit in others:
            for key in SHARED:
                if getattr(edit, key) != getattr(first, key):
                    message = f"is trained together with edit '{first.id}', whose '{key}' is another"
                    found.append((f"{spec.pointer(edit)}/{key}", message))
        for edit in (first, *others):
            found += [(f"{spec.pointer(edit)}/{key}", why) for key, why in _misuse(edit, bool(others))]
            if edit.composed and not composed_with(edit, spec):
                message = "composed prompts name the concept beside what is preserved, and nothing is"
                found.append((f"{spec.pointer(edit)}/composed", message))
            if edit.strength == "auto":
                found += strength_problems(edit, spec)
        return found

    def reads(self, edits: Sequence[Edit], spec: EditSpec) -> Any:
        # What another edit erases is no neighbour of this one's concept.
        own = {**super().reads(edits, spec), "edited": edited_words(spec) if spec.preserve.auto else ()}
        auto = [strength_reads(edit, spec) for edit in _erasures(edits) if edit.strength == "auto"]
        return {**own, "judged": auto} if auto else own

    def mining(self, edits: Sequence[Edit], spec: EditSpec) -> Mapping[str, Mining | None]:
        return {edit.id: mining_of(edit, (subject(edit),), spec) for edit in _erasures(edits)}

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        return select(entries, _erasures(edits)[0].selection)

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        group = _erasures(edits)
        unet, scheduler = checkpoint.weights("unet").entries, checkpoint.config("scheduler")
        memory = training_memory(unet, checkpoint.config("unet"), self.targets(edits, unet))
        if group[0].schedule == "published":
            from compiler.published import esd_evals

            return PassCost(esd_evals(group[0], spec.seed, scheduler), LOADING_SECONDS, memory)
        asked = Requests.of(group, spec, {edit.id: () for edit in group})
        evals = asked.evals(scheduler) + learning_evals(group, asked.kept, spec, scheduler)
        return PassCost(evals, LOADING_SECONDS, memory)

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        from compiler import esd
        from compiler.mining import mined
        from compiler.strength import search
        from compiler.teacher import Teacher
        from compiler.training import record_of
        from compiler.unet import add_deltas

        group, spec = _erasures(edits), context.spec
        first = group[0]
        names = self.targets(edits, context.checkpoint.weights("unet").entries)
        teacher = Teacher(context)
        if first.schedule == "published":
            from compiler.published import erase_as_published

            prompts = [fill(template, first.concept) for template in TEMPLATES[first.kind]]
            return erase_as_published(first, prompts, names, teacher, context)
        neighbours = {id: mined(mining, context) for id, mining in self.mining(group, spec).items()}
        words = {id: [word for word, _ in found] for id, found in neighbours.items()}
        asked = Requests.of(group, spec, words)
        for edit, own in zip(group, asked.own, strict=True):
            read = [text for one in student_prompts(edit, own).values() for text in one]
            teacher.refuse_cut_prompts(spec.pointer(edit), [*own.prompts, *read])
        further = [text for one in asked.composed + asked.implicit for text in one.prompts]
        teacher.refuse_cut_prompts(spec.pointer(first), further)
        learnt = esd.lesson(group, asked, teacher)
        student = teacher.unet  # from here on: the base's predictions are all in the banks
        add_deltas(student, context.upstream)
        scheduler = context.checkpoint.config("scheduler")
        evals = learning_evals(group, asked.kept, spec, scheduler)
        extra: dict[str, Any] = {}
        if first.strength == "auto":
            done, extra["strength"] = search(learnt, student, names, context, evals)
        elif first.robust:
            from compiler.esd_robust import fit_robustly

            done, extra["attacks"] = fit_robustly(learnt, student, names, context, evals)
        elif first.refresh:
            done = esd.fit_refreshing(learnt, asked.own[0], teacher, names, context, evals)
        else:
            done = esd.fit(learnt, group, student, names, context, evals)
        record = {
            "evals": asked.evals(scheduler) + done.evals,
            "prompts": sorted({t for texts in learnt.students for one in texts.values() for t in one}),
            "composed_prompts": sorted({text for request in asked.composed for text in request.prompts}),
            "implicit_prompts": sorted({text for request in asked.implicit for text in request.prompts}),
            "kept_prompts": sorted({text for request in asked.kept for text in request.prompts}),
            "neighbours": {
                id: [[word, round(cosine, 4)] for word, cosine in found] for id, found in neighbours.items()
            },
            **record_of(done),
            **extra,
        }
        return PassResult(done.deltas, record)


def _erasures(edits: Sequence[Edit]) -> list[Erase]:
    return [edit for edit in edits if isinstance(edit, Erase)]


def _misuse(edit: Erase, together: bool) -> list[tuple[str, str]]:
    """(key, message) for settings that exclude each other."""
    found = []
    special = [key for key, on in _special(edit).items() if on]
    if len(special) > 1:
        found.append(
            (special[1], f"'{special[0]}' and '{special[1]}' each train in a way of their own: choose one")
        )
    if together and special:
        found.append((special[0], f"an edit with '{special[0]}' trains alone: leave 'together' out"))
    if edit.robust and edit.from_concept:
        found.append(
            ("robust", "what is erased from another concept has no name that an attack could look for")
        )
    if edit.robust and edit.steps <= ROUNDS:
        found.append(
            ("steps", f"a robust erasure trains in {ROUNDS + 1} rounds: give at least {ROUNDS + 1} steps")
        )
    if edit.refresh >= edit.steps:
        found.append(
            ("refresh", f"{edit.steps} steps cannot be cut into {edit.refresh + 1} blocks of training")
        )
    if edit.composed and (edit.from_concept or edit.schedule == "published"):
        key = "from" if edit.from_concept else "schedule"
        found.append((key, "'composed' teaches prompts with the whole concept beside others, our way"))
    if edit.implicit and (edit.from_concept or edit.schedule == "published"):
        key = "from" if edit.from_concept else "schedule"
        found.append((key, "'implicit' teaches prompts that draw the whole concept, our way"))
    if edit.schedule == "published" and (edit.from_concept or edit.aliases):
        key = "from" if edit.from_concept else "aliases"
        found.append((key, "the published schedule knows one concept alone"))
    return found


def _special(edit: Erase) -> dict[str, bool]:
    return {
        "strength": edit.strength == "auto",
        "robust": edit.robust,
        "refresh": edit.refresh > 0,
        "schedule": edit.schedule == "published",
    }
