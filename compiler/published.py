"""ESD and concept ablation as their authors run them, at their cost, in our code: for comparison only.

ESD (Gandikota et al. 2023): each step samples a trajectory of its own, batch 1, up to a random step, keeps
its one x_t, asks the frozen base there, and trains on it. Ablation (Kumari et al. 2023): many anchor pictures
are generated and stored as JPEG, encoded again and noised; the student is its own teacher. Neither keeps
anything but what its authors keep. Their optimiser's weight decay, a hundredth of the rate, is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compiler.bank_request import BankRequest, unet_calls
from compiler.passes import PassResult
from compiler.seeds import derive
from editspec.templates import fill

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.anchors import AnchorPrompt
    from compiler.conditioning import Conditioning
    from compiler.passes import PassContext
    from compiler.sampling import Step
    from compiler.teacher import Teacher
    from compiler.terms import Term
    from editspec import Ablate, Erase

JPEG_QUALITY = 75  # Pillow's default, which the published code writes with


class _Reached(Exception):
    """The random step at which a trajectory ends, with what the sampler saw there."""

    def __init__(self, step: Step) -> None:
        super().__init__(step.index)
        self.step = step


def esd_evals(edit: Erase, seed: int, scheduler_config: Mapping[str, Any]) -> int:
    """Guided steps up to x_t, the teacher's two predictions there, and 3 for the student: some 54 a step."""
    calls = unet_calls(scheduler_config, edit.sampling_steps)
    return sum(2 * (_last_index(edit, seed, step, calls) + 1) + 3 for step in range(edit.steps))


def erase_as_published(
    edit: Erase,
    prompts: Sequence[str],
    names: Sequence[str],
    teacher: Teacher,
    context: PassContext,
) -> PassResult:
    """ESD with a fresh trajectory for each of `edit.steps` steps; `prompts` take turns at random."""
    import torch

    from compiler.distil import learning_rate, summary, trainable
    from compiler.passes.erase_esd import negative_guidance_target
    from compiler.sampling import predict
    from compiler.seeds import reproducible
    from compiler.terms import pointwise_loss
    from compiler.training import settings_of
    from compiler.unet import add_deltas, build_unet

    teacher.refuse_cut_prompts(context.spec.pointer(edit), prompts)
    rows = teacher.encode(prompts)
    student = build_unet(context.checkpoint, context.device)
    add_deltas(student, context.upstream)
    settings = settings_of(edit, context, "esd", edit.id)
    calls = unet_calls(teacher.scheduler.config, edit.sampling_steps)
    evals, curve = 0, list[float]()
    expected = esd_evals(edit, context.seed, teacher.scheduler.config)
    with (
        reproducible(),
        trainable(student, names) as (weights, start),
        context.progress.task(f"distil {edit.id} as published", expected) as task,
    ):
        optimiser = torch.optim.Adam(list(weights.values()), lr=edit.learning_rate)
        for number in range(edit.steps):
            last = _last_index(edit, context.seed, number, calls)
            text = rows.rows([derive(context.seed, "published prompt", edit.id, number) % len(prompts)])
            reached = _walk(edit, text, last, number, teacher, context)
            target = negative_guidance_target(reached.uncond, reached.cond, edit.negative_guidance)
            t = torch.full((1,), reached.timestep, device=context.device)
            optimiser.zero_grad(set_to_none=True)
            predicted = predict(student, reached.model_input, t, text)
            loss = pointwise_loss(predicted - target, settings.loss).mean()
            loss.backward()
            optimiser.param_groups[0]["lr"] = learning_rate(settings, number)
            optimiser.step()
            curve.append(float(loss.detach()))
            spent = 2 * (last + 1) + 3
            evals += spent
            task.advance(spent)
        deltas = {name: (weight.detach() - start[name]).cpu() for name, weight in weights.items()}
    record = {"evals": evals, "prompts": sorted(prompts), "loss": summary({"erase": curve})}
    return PassResult(deltas, record)


def _walk(
    edit: Erase, text: Conditioning, last: int, number: int, teacher: Teacher, context: PassContext
) -> Step:
    """One fresh trajectory of the frozen base, left at step `last`."""
    from compiler.sampling import sample
    from compiler.seeds import gaussian, generator
    from compiler.unet import latent_shape

    def observe(step: Step) -> None:
        if step.index == last:
            raise _Reached(step)

    draw = (context.seed, "published", edit.id, number)
    noise = gaussian((1, *latent_shape(context.checkpoint.config("unet"))), *draw).to(context.device)
    try:
        sample(
            teacher.unet,
            teacher.scheduler,
            noise,
            teacher.unconditional,
            text,
            steps=edit.sampling_steps,
            guidance_scale=edit.guidance_scale,
            generators=[generator(*draw, "scheduler")],
            observe=observe,
        )
    except _Reached as reached:
        return reached.step
    raise AssertionError("a trajectory has more calls than its scheduler makes")


def _last_index(edit: Erase, seed: int, step: int, calls: int) -> int:
    """At which call of the U-Net step number `step` takes its x_t: uniform over the trajectory."""
    return derive(seed, "published step", edit.id, step) % calls


def ablation_evals(edit: Ablate, prompts: Sequence[AnchorPrompt], scheduler_config: Mapping[str, Any]) -> int:
    """Generation of `edit.trajectories` anchor pictures; then 4 a sample of the concept, 3 of the prior."""
    request = _pictures_request(edit, prompts, 0)
    prior = 3 * edit.batch if edit.keep_weight else 0
    return request.evals(scheduler_config) + edit.steps * (4 * edit.batch + prior)


def ablate_as_published(
    edit: Ablate,
    prompts: Sequence[AnchorPrompt],
    names: Sequence[str],
    teacher: Teacher,
    context: PassContext,
) -> PassResult:
    """Model-based ablation over `edit.trajectories` generated pictures (1000 in the paper)."""
    import torch

    from compiler.training import numbered, record_of, settings_of, train
    from compiler.unet import add_deltas

    pointer = context.spec.pointer(edit)
    request = _pictures_request(edit, prompts, context.seed)
    used = prompts[: len(request.prompts)]
    texts = [text for prompt in used for text in (prompt.anchor, *prompt.students)]
    teacher.refuse_cut_prompts(pointer, texts)
    latents = teacher.bank(request).column("latents")
    numbers = torch.arange(len(used)).repeat_interleave(torch.tensor(request.trajectories)).tolist()
    rows, number = numbered(texts, teacher)
    terms = _published_terms(edit, used, _through_jpeg(latents, context), numbers, rows, number, teacher)
    add_deltas(teacher.unet, context.upstream)
    settings = replace(settings_of(edit, context, "ablate", edit.id), ema=0.0, held_out=0.0)
    evals = ablation_evals(edit, prompts, teacher.scheduler.config)
    done = train(
        context,
        teacher.unet,
        names,
        rows,
        terms,
        settings,
        pointer=pointer,
        title=f"distil {edit.id} as published",
        evals=evals,
    )
    return PassResult(done.deltas, {"evals": evals, "prompts": sorted(texts), **record_of(done)})


def _pictures_request(edit: Ablate, prompts: Sequence[AnchorPrompt], seed: int) -> BankRequest:
    once = replace(edit, timesteps=1)  # the ends are what is wanted
    return BankRequest.of(once, seed, [prompt.anchor for prompt in prompts], edit.trajectories)


def _published_terms(
    edit: Ablate,
    used: Sequence[AnchorPrompt],
    latents: Tensor,
    numbers: Sequence[int],
    rows: Conditioning,
    number: Mapping[str, int],
    teacher: Teacher,
) -> list[Term]:
    """Fresh noise for every sample that is drawn; equal batches of concept and prior."""
    import torch

    from compiler.noised import noised_bank
    from compiler.terms import Term
    from compiler.training import own_prediction

    fresh = -(-edit.steps * edit.batch // len(latents))
    bank = noised_bank(
        latents,
        numbers,
        [prompt.anchor for prompt in used],
        teacher.scheduler,
        timesteps=fresh,
        seed=teacher.seed,
        names=("published", edit.id),
    )
    place = bank.column("prompt").tolist()
    students = [(row, number[text]) for row, at in enumerate(place) for text in used[at].students]
    anchors = [(row, number[used[at].anchor]) for row, at in enumerate(place)]
    own = own_prediction(
        teacher.unet, bank, rows, {at: number[prompt.anchor] for at, prompt in enumerate(used)}
    )
    terms = [Term("ablate", bank, torch.tensor(students), own, 1.0, edit.batch, target_evals=1)]
    if edit.keep_weight:
        noise = lambda chosen: bank.take("noise", chosen)  # noqa: E731
        terms.append(Term("anchor", bank, torch.tensor(anchors), noise, edit.keep_weight, edit.batch))
    return terms


def _through_jpeg(latents: Tensor, context: PassContext) -> Tensor:
    """The latents of the pictures that these latents decode to, after a JPEG file, as published."""
    import io

    from PIL import Image

    from compiler.vae import Autoencoder

    autoencoder = Autoencoder(context.checkpoint, context.device)
    stored = []
    for picture in autoencoder.decode(latents):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
        file.seek(0)
        stored.append(Image.open(file))
    return autoencoder.encode(stored)


def esd_prompts(edit: Erase, templates: Sequence[str]) -> tuple[str, ...]:
    """The prompts that ESD trains on: the concept in each of its templates."""
    return tuple(fill(template, edit.concept) for template in templates)
