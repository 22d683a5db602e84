"""Forget a memorised image (Kumari et al. 2023): its captions stop giving back the one training picture.

x_t are the given image under noise, which is where the base goes for these captions, and the base's own
trajectories for the anchor (the empty prompt unless told otherwise), which is where the student is to go. In
both the student, read with a caption, learns what the base predicts for the anchor. With the image alone a
picture that has left it is led back: nothing was learned where it now stands.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from compiler.bank_request import BankRequest
from compiler.held_out import check_evals
from compiler.keep import keep_batches, keep_requests, keep_terms
from compiler.mining import Mining, edited_words, mined, mining_of
from compiler.passes import EditPass, PassContext, PassCost, PassResult
from compiler.selections import select
from compiler.unet import training_memory, unsuited
from editspec import Ablate

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.bank import Bank
    from compiler.checkpoint import Checkpoint
    from compiler.safetensors_file import TensorEntry
    from compiler.teacher import Teacher
    from editspec import Edit, EditSpec

LOADING_SECONDS = 4.0  # late imports, building the U-Net, encoding the image


class AblateImage(EditPass):
    """One memorised image. Each step: `batch` examples of captions, half of the anchor, and `keep`."""

    name: ClassVar[str] = "ablate/image"
    version: ClassVar[int] = 6
    order: ClassVar[int] = 10
    merges: ClassVar[bool] = False

    def accepts(self, edit: Edit) -> bool:
        return isinstance(edit, Ablate) and edit.kind == "image"

    def check(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        edit = _only(edits)
        found = []
        if reason := unsuited(checkpoint.config("unet")):
            found.append((f"{spec.pointer(edit)}/edit", f"this base cannot be edited: {reason}"))
        if not (spec.folder / (edit.image or "")).is_file():
            found.append((f"{spec.pointer(edit)}/image", f"there is no file '{edit.image}'"))
        return found

    def reads(self, edits: Sequence[Edit], spec: EditSpec) -> Any:
        from compiler.digests import file_digest

        path = spec.folder / (_only(edits).image or "")
        return {
            **super().reads(edits, spec),
            "edited": edited_words(spec) if spec.preserve.auto else (),
            "image": file_digest(path),
        }

    def mining(self, edits: Sequence[Edit], spec: EditSpec) -> Mapping[str, Mining | None]:
        edit = _only(edits)
        return {edit.id: mining_of(edit, (edit.concept,), spec)}

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        return select(entries, _only(edits).selection)

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        edit = _only(edits)
        keep = keep_requests(edit, spec, neighbours=())
        evals = _preparing_evals(edit, keep, spec, checkpoint) + _training_evals(edit, keep)
        unet = checkpoint.weights("unet").entries
        memory = training_memory(unet, checkpoint.config("unet"), self.targets(edits, unet))
        return PassCost(evals, LOADING_SECONDS, memory)

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        import torch

        from compiler.bank import join
        from compiler.noised import with_predictions
        from compiler.teacher import Teacher
        from compiler.terms import Term
        from compiler.training import numbered, record_of, settings_of, train
        from compiler.unet import add_deltas

        edit, spec = _only(edits), context.spec
        pointer, teacher = spec.pointer(edit), Teacher(context)
        neighbours = mined(mining_of(edit, (edit.concept,), spec), context)
        keep = keep_requests(edit, spec, [word for word, _ in neighbours])
        teacher.refuse_cut_prompts(pointer, [*edit.captions, edit.anchor])
        image = _image_rows(edit, teacher, context)
        anchor = teacher.bank(_anchor_request(edit, spec))
        said = [
            with_predictions(part, teacher.unet, {"said": teacher.encode((caption,))})
            for caption in edit.captions
            for part in (image, anchor)
        ]
        each = len(image) + len(anchor)  # rows for each caption
        bank = join([*said, *(teacher.bank(request) for request in keep)])
        prompts, number = numbered([*edit.captions, *bank.prompts], teacher)
        student = teacher.unet  # from here on: the base's predictions are all in the bank
        add_deltas(student, context.upstream)
        examples = _examples(bank, each, [number[caption] for caption in edit.captions])
        terms = [Term("ablate", bank, examples, _away(edit, bank), 1.0, edit.batch)]
        if _prior_batch(edit):
            prior = torch.tensor([(row, number[edit.anchor]) for row in range(each)])
            kept = lambda rows: bank.take("cond", rows)  # noqa: E731
            terms.append(Term("anchor", bank, prior, kept, edit.keep_weight, _prior_batch(edit)))
        terms += keep_terms(edit, keep, bank, range(each * len(edit.captions), len(bank)), number)
        done = train(
            context,
            student,
            self.targets(edits, context.checkpoint.weights("unet").entries),
            prompts,
            terms,
            settings_of(edit, context, "ablate", edit.id),
            pointer=pointer,
            title=f"distil {edit.id}",
            evals=_training_evals(edit, keep),
        )
        record = {
            "evals": _preparing_evals(edit, keep, spec, context.checkpoint) + done.evals,
            "prompts": sorted(edit.captions),
            "kept_prompts": sorted({text for request in keep for text in request.prompts}),
            "neighbours": [[word, round(cosine, 4)] for word, cosine in neighbours],
            **record_of(done),
        }
        return PassResult(done.deltas, record)


def _only(edits: Sequence[Edit]) -> Ablate:
    (edit,) = edits
    assert isinstance(edit, Ablate)
    return edit


def _image_rows(edit: Ablate, teacher: Teacher, context: PassContext) -> Bank:
    """The image under noise, `trajectories` times `timesteps` rows, with the base's e_anchor and e_0."""
    from compiler.noised import noised_bank, with_predictions
    from compiler.vae import Autoencoder, open_picture

    picture = open_picture(context.spec.folder / (edit.image or ""))
    latent = Autoencoder(context.checkpoint, context.device).encode([picture])
    copies = latent.expand(edit.trajectories, -1, -1, -1)
    noised = noised_bank(
        copies,
        [0] * edit.trajectories,
        (edit.anchor,),
        teacher.scheduler,
        timesteps=edit.timesteps,
        seed=context.seed,
        names=("image", edit.id),
    )
    texts = {"cond": teacher.encode((edit.anchor,)), "uncond": teacher.unconditional}
    return with_predictions(noised, teacher.unet, texts)


def _anchor_request(edit: Ablate, spec: EditSpec) -> BankRequest:
    """Trajectories of the anchor, as many as the image has noise draws."""
    return BankRequest.of(edit, spec.seed, (edit.anchor,), edit.trajectories)


def _away(edit: Ablate, bank: Bank) -> Callable[[Tensor], Tensor]:
    """e_anchor - eta (e_caption - e_anchor): a little past the anchor, as guidance is away from a concept.

    Guidance multiplies what is left of e_caption - e_anchor; a fifth of it, at scale 5, is the whole image.
    """

    def target(rows: Tensor) -> Tensor:
        anchor = bank.take("cond", rows)
        return anchor - edit.negative_guidance * (bank.take("said", rows) - anchor)

    return target


def _examples(bank: Bank, each: int, captions: Sequence[int]) -> Tensor:
    """(row, caption) for `each` rows of every caption; where it says more than the anchor, more often."""
    import torch

    from compiler.terms import more_often

    found = []
    for place, caption in enumerate(captions):
        every = torch.arange(place * each, (place + 1) * each)
        rows = more_often(every, bank.take("said", every), bank.take("cond", every))
        found.append(torch.stack([rows, torch.full_like(rows, caption)], dim=1))
    return torch.cat(found)


def _prior_batch(edit: Ablate) -> int:
    """Examples of the anchor a step; the empty prompt is in the keep term anyway."""
    return -(-edit.batch // 2) if edit.keep_weight and edit.anchor else 0


def _preparing_evals(
    edit: Ablate, keep: Sequence[BankRequest], spec: EditSpec, checkpoint: Checkpoint
) -> int:
    """Evals before training with an empty cache: banks, two predictions a row of the image, captions."""
    scheduler, anchor = checkpoint.config("scheduler"), _anchor_request(edit, spec)
    rows: int = edit.trajectories * min(edit.timesteps, scheduler.get("num_train_timesteps", 1000))
    said = len(edit.captions) * (rows + anchor.rows(scheduler))
    return sum(request.evals(scheduler) for request in (anchor, *keep)) + 2 * rows + said


def _training_evals(edit: Ablate, keep: Sequence[BankRequest]) -> int:
    batches = [edit.batch, _prior_batch(edit), *keep_batches(edit, keep)]
    return 3 * edit.steps * sum(batches) + check_evals(batches, edit.steps, edit.held_out)
