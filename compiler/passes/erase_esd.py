"""Erase by distillation: ESD, Erasing Concepts from Diffusion Models (Gandikota et al. 2023).

The student learns to predict, for the concept's prompts, what the frozen base would if it were steered away
from the concept. x_t come from a bank of the base's own trajectories, so e_0 and e_c are already there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compiler.bank_request import BankRequest
from compiler.keep import edited_words, keep_batches, keep_requests, keep_terms, mine_neighbours
from compiler.passes import EditPass, PassContext, PassCost, PassResult
from compiler.selections import select
from compiler.unet import training_memory, unsuited
from editspec import Erase
from editspec.errors import InputError
from editspec.templates import TEMPLATES, fill

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.bank import Bank
    from compiler.checkpoint import Checkpoint
    from compiler.conditioning import Conditioning
    from compiler.distil import Term
    from compiler.safetensors_file import TensorEntry
    from compiler.teacher import Teacher
    from editspec import Edit, EditSpec

LOADING_SECONDS = 2.0  # late imports and building the U-Net


def negative_guidance_target(noise_uncond: Tensor, noise_cond: Tensor, negative_guidance: float) -> Tensor:
    """ESD, eq. 7: steer away from the concept, e_0 - eta (e_c - e_0). All (n, channels, h, w)."""
    return noise_uncond - negative_guidance * (noise_cond - noise_uncond)


def erase_from_target(
    noise_from: Tensor, noise_uncond: Tensor, noise_cond: Tensor, negative_guidance: float
) -> Tensor:
    """The authors' later form, a concept taken out of another prompt: e_from - eta (e_c - e_0)."""
    return noise_from - negative_guidance * (noise_cond - noise_uncond)


class EraseEsd(EditPass):
    """One erase edit by distillation. Each step: `batch` examples of the concept, and what `keep` adds."""

    name = "erase/esd"
    version = 1
    order = 10
    merges = False

    def accepts(self, edit: Edit) -> bool:
        return isinstance(edit, Erase) and edit.method == "esd"

    def check(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        reason = unsuited(checkpoint.config("unet"))
        return [
            (f"{spec.pointer(edit)}/method", f"'esd' cannot edit this base: {reason}")
            for edit in edits
            if reason
        ]

    def reads(self, edits: Sequence[Edit], spec: EditSpec) -> Any:
        # What another edit erases is no neighbour of this one's concept.
        return {**super().reads(edits, spec), "edited": edited_words(spec) if spec.preserve.auto else ()}

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        return select(entries, _only(edits).selection)

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        edit = _only(edits)
        own, keep = _own_request(edit, spec.seed), keep_requests(edit, spec, neighbours=())
        evals = _bank_evals((own, *keep), checkpoint) + _training_evals(edit, keep)
        unet = checkpoint.weights("unet").entries
        memory = training_memory(unet, checkpoint.config("unet"), self.targets(edits, unet))
        return PassCost(evals, LOADING_SECONDS, memory)

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        from compiler.distil import Diverged, distil, summary
        from compiler.teacher import Teacher
        from compiler.training import settings_of
        from compiler.unet import add_deltas

        edit, spec = _only(edits), context.spec
        pointer = spec.pointer(edit)
        mined = mine_neighbours(edit, _subject(edit), spec, context.text())
        own, keep = _own_request(edit, spec.seed), keep_requests(edit, spec, [word for word, _ in mined])
        students = _student_prompts(edit, own)
        teacher = Teacher(context)
        teacher.refuse_cut_prompts(pointer, [*own.prompts, *(text for texts in students for text in texts)])
        prompts, terms = _terms(edit, students, keep, teacher.banks((own, *keep)), teacher)
        student = teacher.unet  # from here on: the base's predictions are all in the banks
        add_deltas(student, context.upstream)
        names = self.targets(edits, context.checkpoint.weights("unet").entries)
        settings = settings_of(edit, context.seed, "esd", edit.id)
        with context.progress.task(f"distil {edit.id}", _training_evals(edit, keep)) as task:
            try:
                done = distil(student, names, prompts, terms, settings, task.advance)
            except Diverged as error:
                where, what = f"{pointer}/learning_rate", f"training diverged: {error}"
                raise InputError(where, what, "choose a smaller learning_rate") from error
        record = {
            "evals": _bank_evals((own, *keep), context.checkpoint) + done.evals,
            "evals_of_training": done.evals,
            "prompts": sorted({text for texts in students for text in texts}),
            "kept_prompts": sorted({text for request in keep for text in request.prompts}),
            "neighbours": [[word, round(cosine, 4)] for word, cosine in mined],
            "loss": summary(done.curve),
        }
        return PassResult(done.deltas, record)


def _only(edits: Sequence[Edit]) -> Erase:
    (edit,) = edits
    assert isinstance(edit, Erase)
    return edit


def _subject(edit: Erase) -> str:
    """What trajectories are sampled for: the concept, or what it is erased from."""
    return edit.from_concept or edit.concept


def _own_request(edit: Erase, seed: int) -> BankRequest:
    """Trajectories of the subject in every template; with `from`, the concept's predictions beside them."""
    templates = TEMPLATES[edit.kind]
    also = (
        {"concept": [fill(template, edit.concept) for template in templates]} if edit.from_concept else None
    )
    prompts = [fill(template, _subject(edit)) for template in templates]
    return BankRequest.of(edit, seed, prompts, edit.trajectories, also)


def _student_prompts(edit: Erase, own: BankRequest) -> list[list[str]]:
    """For each prompt of the own bank, what the student reads there: the same, and it with each alias."""
    words = [edit.from_concept] if edit.from_concept else [edit.concept, *edit.aliases]
    templates = TEMPLATES[edit.kind][: len(own.prompts)]
    return [[fill(template, word) for word in words] for template in templates]


def _terms(
    edit: Erase,
    students: Sequence[Sequence[str]],
    keep: Sequence[BankRequest],
    banks: tuple[Bank, int],
    teacher: Teacher,
) -> tuple[Conditioning, list[Term]]:
    """What the student reads, one row for each prompt, and the parts of its loss.

    `banks` are all banks joined, and how many of the first rows are the edit's own.
    """
    import torch

    from compiler.distil import Term

    bank, own = banks
    texts = tuple(dict.fromkeys((*(text for group in students for text in group), *bank.prompts)))
    number = {text: place + 1 for place, text in enumerate(texts)}  # row 0 is the unconditional one

    def target(rows: Tensor) -> Tensor:
        uncond, cond = bank.take("uncond", rows), bank.take("cond", rows)
        if edit.from_concept is None:
            return negative_guidance_target(uncond, cond, edit.negative_guidance)
        return erase_from_target(cond, uncond, bank.take("concept", rows), edit.negative_guidance)

    prompt = bank.column("prompt")[:own].tolist()
    examples = [(row, number[text]) for row in range(own) for text in students[prompt[row]]]
    erase = Term("erase", bank, torch.tensor(examples), target, 1.0, edit.batch)
    conditioning = teacher.unconditional.join(teacher.encode(texts))
    return conditioning, [erase, *keep_terms(edit, keep, bank, own, number)]


def _bank_evals(requests: Sequence[BankRequest], checkpoint: Checkpoint) -> int:
    """Evals of sampling all banks anew; what the cache holds already costs nothing."""
    return sum(request.evals(checkpoint.config("scheduler")) for request in requests)


def _training_evals(edit: Erase, keep: Sequence[BankRequest]) -> int:
    """A forward is one eval, a backward two."""
    return 3 * edit.steps * (edit.batch + sum(keep_batches(edit, keep)))
