"""Ablate a concept to its anchor: Kumari et al. 2023, Ablating Concepts in Text-to-Image Diffusion Models.

The student learns to predict for the concept's prompts what belongs to the anchor's. x_t come from the base's
own trajectories for the anchor, where e_anchor is free, or as published from their noised ends. They are
sampled once and shared by all edits to the same anchor: latents only, no picture is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.anchors import AnchorPrompt, anchor_prompts, file_digest, problems
from compiler.bank_request import BankRequest
from compiler.blocks import block_check_evals, refresh_evals, refresh_request
from compiler.keep import keep_batches, keep_requests, keep_terms
from compiler.mining import Mining, edited_words, mined, mining_of
from compiler.passes import EditPass, PassContext, PassCost, PassResult
from compiler.selections import select
from compiler.unet import training_memory, unsuited
from editspec import Ablate

if TYPE_CHECKING:
    from compiler.bank import Bank
    from compiler.checkpoint import Checkpoint
    from compiler.conditioning import Conditioning
    from compiler.distil import Distilled, DistilSettings
    from compiler.refresh import Refreshing
    from compiler.safetensors_file import TensorEntry
    from compiler.teacher import Teacher
    from compiler.terms import Term
    from editspec import Edit, EditSpec

LOADING_SECONDS = 2.0  # late imports and building the U-Net


class AblateConcept(EditPass):
    """One ablation. Each step: `batch` examples of the concept, half of the anchor, and `keep`."""

    name: ClassVar[str] = "ablate/concept"
    version: ClassVar[int] = 3
    order: ClassVar[int] = 10
    merges: ClassVar[bool] = False

    def accepts(self, edit: Edit) -> bool:
        return isinstance(edit, Ablate) and edit.kind != "image"

    def check(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        reason = unsuited(checkpoint.config("unet"))
        found = [(f"{spec.pointer(edit)}/edit", f"this base cannot be edited: {reason}") for edit in edits]
        sources = [
            (f"{spec.pointer(edit)}/{key}", message)
            for edit in edits
            if isinstance(edit, Ablate)
            for key, message in problems(edit, spec.folder)
        ]
        return (found if reason else []) + sources + _refused_refresh(_only(edits), spec)

    def reads(self, edits: Sequence[Edit], spec: EditSpec) -> Any:
        return {
            **super().reads(edits, spec),
            "edited": edited_words(spec) if spec.preserve.auto else (),
            "prompts_file": file_digest(_only(edits), spec.folder),
        }

    def mining(self, edits: Sequence[Edit], spec: EditSpec) -> Mapping[str, Mining | None]:
        edit = _only(edits)
        return {edit.id: mining_of(edit, (edit.concept,), spec)}

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        return select(entries, _only(edits).selection)

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        edit = _only(edits)
        unet = checkpoint.weights("unet").entries
        memory = training_memory(unet, checkpoint.config("unet"), self.targets(edits, unet))
        if edit.schedule == "published":
            from compiler.published import ablation_evals

            evals = ablation_evals(edit, anchor_prompts(edit, spec.folder), checkpoint.config("scheduler"))
            return PassCost(evals, LOADING_SECONDS, memory)
        own, keep = _own_request(edit, spec), keep_requests(edit, spec, neighbours=())
        evals = _preparing_evals(edit, own, keep, checkpoint) + _training_evals(edit, keep)
        if edit.refresh:
            anchors = {prompt.anchor: prompt for prompt in anchor_prompts(edit, spec.folder)}
            asked = tuple(_refresh_prompts(edit, [anchors[text] for text in own.prompts]))
            evals += refresh_evals(edit, asked, checkpoint.config("scheduler"), labels=2)
        return PassCost(evals, LOADING_SECONDS, memory)

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        from compiler.bank import join
        from compiler.refresh import train_in_blocks
        from compiler.teacher import Teacher
        from compiler.training import numbered, record_of, settings_of, train
        from compiler.unet import add_deltas

        edit, spec = _only(edits), context.spec
        pointer, teacher = spec.pointer(edit), Teacher(context)
        names = self.targets(edits, context.checkpoint.weights("unet").entries)
        if edit.schedule == "published":
            from compiler.published import ablate_as_published

            return ablate_as_published(edit, anchor_prompts(edit, spec.folder), names, teacher, context)
        neighbours = mined(mining_of(edit, (edit.concept,), spec), context)
        own, keep = _own_request(edit, spec), keep_requests(edit, spec, [word for word, _ in neighbours])
        anchors = {prompt.anchor: prompt for prompt in anchor_prompts(edit, spec.folder)}
        used = [anchors[text] for text in own.prompts]
        texts = [text for prompt in used for text in (prompt.anchor, *prompt.students)]
        teacher.refuse_cut_prompts(pointer, texts)
        bank, rows = teacher.banks((own, *keep))
        prompts, number = numbered([*texts, *bank.prompts], teacher)
        inputs = _inputs(edit, own, bank, rows, teacher)
        student = teacher.unet  # from here on: the base's predictions are all in the banks
        add_deltas(student, context.upstream)

        def block(fresh: Bank | None, settings: DistilSettings) -> Distilled:
            own_rows, every = (
                (inputs, bank) if fresh is None else (join([inputs, fresh]), join([bank, fresh]))
            )
            terms = [
                *_terms(edit, used, own_rows, teacher, prompts, number),
                *keep_terms(edit, keep, every, range(rows, len(bank)), number),
            ]
            title, most = f"distil {edit.id}", _training_evals(edit, keep) // (edit.refresh + 1)
            return train(
                context, student, names, prompts, terms, settings, pointer=pointer, title=title, evals=most
            )

        settings = settings_of(edit, context, "ablate", edit.id)
        refreshing = _refreshing(edit, used, context)
        done = (
            train_in_blocks(context, teacher, settings, refreshing, block)
            if edit.refresh
            else block(None, settings)
        )
        record = {
            "evals": _preparing_evals(edit, own, keep, context.checkpoint) + done.evals,
            "anchor_prompts": list(own.prompts),
            "prompts": sorted({text for prompt in used for text in prompt.students}),
            "kept_prompts": sorted({text for request in keep for text in request.prompts}),
            "neighbours": [[word, round(cosine, 4)] for word, cosine in neighbours],
            **record_of(done),
        }
        return PassResult(done.deltas, record)


def _refresh_prompts(edit: Ablate, used: Sequence[AnchorPrompt]) -> dict[str, str]:
    """What the student samples when it is asked for the concept, and the anchor's prompt for each."""
    asked = {student: prompt.anchor for prompt in used for student in prompt.students}
    return dict(list(asked.items())[: edit.trajectories])


def _refreshing(edit: Ablate, used: Sequence[AnchorPrompt], context: PassContext) -> Refreshing:
    """The student draws for the concept; the base says there what it would for the anchor."""
    from compiler.refresh import Refreshing

    asked = _refresh_prompts(edit, used)
    return Refreshing(
        edit.refresh + 1,
        request=lambda number: refresh_request(edit, context.seed, number, tuple(asked)),
        labels=lambda request: {"uncond": None, "cond": [asked[prompt] for prompt in request.prompts]},
        names=lambda request: [asked[prompt] for prompt in request.prompts],
    )


def _only(edits: Sequence[Edit]) -> Ablate:
    (edit,) = edits
    assert isinstance(edit, Ablate)
    return edit


def _noised(edit: Ablate) -> bool:
    """Whether training takes the noised ends of trajectories; the true noise is known there alone."""
    return edit.inputs == "noised" or edit.objective == "noise"


def _asks_base(edit: Ablate) -> bool:
    """Whether the base must predict at the inputs: at trajectories it has already."""
    return _noised(edit) and edit.objective == "model" and edit.teacher == "base"


def _own_request(edit: Ablate, spec: EditSpec) -> BankRequest:
    """Trajectories of the anchor. Nothing in it is of the concept, so all edits to this anchor share them."""
    prompts = [prompt.anchor for prompt in anchor_prompts(edit, spec.folder)]
    return BankRequest.of(edit, spec.seed, prompts, edit.trajectories)


def _inputs(edit: Ablate, own: BankRequest, bank: Bank, rows: int, teacher: Teacher) -> Bank:
    """The rows that ablation trains on: the first `rows` of `bank`, or their trajectories' noised ends."""
    import torch

    from compiler.bank import Bank
    from compiler.noised import noised_bank, with_predictions

    if not _noised(edit):
        kept, count = [], 0
        for shard in bank.shards:
            if count < rows:
                kept.append(shard)
                count += len(shard["timestep"])
        return Bank(bank.prompts, tuple(kept))
    numbers = torch.arange(len(own.prompts)).repeat_interleave(torch.tensor(own.trajectories)).tolist()
    latents = bank.column("latents")[: len(numbers)]
    noised = noised_bank(
        latents,
        numbers,
        own.prompts,
        teacher.scheduler,
        timesteps=edit.timesteps,
        seed=own.seed,
        names=("anchor",),
    )
    if not _asks_base(edit):
        return noised
    return with_predictions(noised, teacher.unet, {"cond": teacher.encode(own.prompts)})


def _terms(
    edit: Ablate,
    used: Sequence[AnchorPrompt],
    inputs: Bank,
    teacher: Teacher,
    prompts: Conditioning,
    number: Mapping[str, int],
) -> list[Term]:
    """The concept to what is the anchor's, and prior preservation: the anchor stays what it is.

    Model-based (eq. 5): the prediction for the anchor's prompt. Noise-based (eq. 6): the true noise.
    """
    import torch

    from compiler.terms import Term
    from compiler.training import own_prediction

    column = "noise" if edit.objective == "noise" else "cond"
    target = kept = lambda rows: inputs.take(column, rows)
    by_student = edit.objective == "model" and edit.teacher == "student"
    if by_student:
        target = own_prediction(
            teacher.unet, inputs, prompts, {k: number[text] for k, text in enumerate(inputs.prompts)}
        )
        if _noised(edit):  # as published: the prior knows its own noise
            kept = lambda rows: inputs.take("noise", rows)  # noqa: E731
    group = {prompt.anchor: prompt.students for prompt in used}
    prompt = [inputs.prompts[place] for place in inputs.column("prompt").tolist()]
    examples = [(row, number[text]) for row, anchor in enumerate(prompt) for text in group[anchor]]
    terms = [
        Term("ablate", inputs, torch.tensor(examples), target, 1.0, edit.batch, target_evals=int(by_student))
    ]
    if edit.keep_weight:
        own = torch.tensor([(row, number[anchor]) for row, anchor in enumerate(prompt)])
        terms.append(Term("anchor", inputs, own, kept, edit.keep_weight, _prior_batch(edit)))
    return terms


def _prior_batch(edit: Ablate) -> int:
    return -(-edit.batch // 2) if edit.keep_weight else 0


def _preparing_evals(
    edit: Ablate, own: BankRequest, keep: Sequence[BankRequest], checkpoint: Checkpoint
) -> int:
    """Evals before training, with nothing in the cache."""
    banks = sum(request.evals(checkpoint.config("scheduler")) for request in (own, *keep))
    steps = checkpoint.config("scheduler").get("num_train_timesteps", 1000)
    return banks + (own.total * min(edit.timesteps, steps) if _asks_base(edit) else 0)


def _training_evals(edit: Ablate, keep: Sequence[BankRequest]) -> int:
    """A forward is one eval, a backward two; the student as its own teacher takes one more."""
    by_student = edit.objective == "model" and edit.teacher == "student"
    others = [_prior_batch(edit), *keep_batches(edit, keep)]
    each = edit.batch * (4 if by_student else 3) + 3 * sum(others)
    batches = [edit.batch * (2 if by_student else 1), *others]
    return edit.steps * each + block_check_evals(batches, edit.steps, edit.refresh + 1, edit.held_out)


def _refused_refresh(edit: Ablate, spec: EditSpec) -> list[tuple[str, str]]:
    """Why the bank of this edit cannot be refreshed, if it is to be: (pointer, message)."""
    where = f"{spec.pointer(edit)}/refresh"
    if not edit.refresh:
        return []
    if _noised(edit) or edit.teacher == "student" or edit.schedule == "published":
        return [
            (where, "the base labels what the student samples, along trajectories: leave the rest as it is")
        ]
    if edit.refresh >= edit.steps:
        return [(where, f"{edit.steps} steps cannot be cut into {edit.refresh + 1} blocks of training")]
    return []
