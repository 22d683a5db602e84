"""Calibrates a balance edit: which groups the student draws, and how much of each it is taught next.

What regression leaves over is small at every step and one-sided over all of them: the shares that are drawn
differ from those that were taught. So the student draws, and each picture counts for the group under whose
name the weights that the pass began with denoise it best (a diffusion classifier: Li et al. 2023, "Your
Diffusion Model is Secretly a Zero-Shot Classifier", eq. 5): neither labels nor an outside model. Then it is
taught on, with more of what it drew too seldom. A mixture's shares are proportional to their weights in the
loss, and guidance sharpens them: the log odds that are drawn follow those that are taught, times a factor
that the rounds themselves tell (`response`). So a round is one step of the secant method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from compiler.bank_request import unet_calls
from compiler.groups import group_names, group_shares, neutral_prompts
from compiler.lessons import Lesson

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compiler.teacher import Teacher
    from editspec import Balance

PICTURES = 24  # of each neutral prompt in a round
TIMES = 8  # noise levels at which the groups' names are compared
# Pictures' worth of belief that a prompt is drawn as its template and its profession together let expect.
# What 24 pictures say of one prompt is by chance a tenth off; beyond the two, prompts hardly differ.
POOLED = 96
SMOOTHED = 32  # pictures' worth of belief that a template, or a profession, is drawn as all prompts are
SLOWER = 0.25  # of the edit's learning rate: at the full one, all shares move again
# How far drawn log odds follow taught ones, before rounds tell: on the miniature 1.6 where all prompts move
# together, less where each goes its own way. Were it taken for too little, rounds would overshoot and swing.
RESPONSE = 1.2
RESPONSES = 0.6, 1.8  # what rounds tell is believed within these, and as far as weights have moved: shares
BELIEF = 0.16  # move by chance too. As much movement, summed over looks and groups, says as much as RESPONSE.
FADED = 0.5  # what a picture of the round before still counts: the student has been taught on since
MOST = 4.0  # how many times more, or less, a group may come to count
FREQUENCY = 8  # rows come so often where their weight is the mean


Look: TypeAlias = "tuple[Tensor, Tensor]"
"""Weights that were taught and how many pictures showed each group then, (prompts, groups) both."""


class Calibration:
    """`edit.calibrate` rounds, each of a third of the edit's steps.

    `lessons` has one for each group, the reading of neutral prompts first.
    """

    def __init__(self, edit: Balance, lessons: Sequence[Lesson]) -> None:
        self.edit, self.lessons = edit, tuple(lessons)
        self._weights: Tensor | None = None
        self._looks: list[Look] = []

    @property
    def rounds(self) -> int:
        return self.edit.calibrate

    @property
    def steps(self) -> int:
        """Training steps of each round."""
        return -(-self.edit.steps // 3)

    @property
    def learning_rate(self) -> float:
        return SLOWER * self.edit.learning_rate

    def evals(self, scheduler_config: Mapping[str, Any]) -> int:
        """Evals of looking, in all rounds: the pictures, and each group's name at each noise level."""
        pictures = PICTURES * len(neutral_prompts(self.edit))
        drawing = 2 * unet_calls(scheduler_config, self.edit.sampling_steps)
        return self.rounds * pictures * (drawing + TIMES * len(group_names(self.edit)))

    def look(
        self, teacher: Teacher, student: nn.Module, deltas: Mapping[str, Tensor]
    ) -> tuple[tuple[Lesson, ...], Any]:
        """The lessons of the next round; how many of each neutral prompt's pictures show each group."""
        import torch

        counts = self.counts(teacher, student, deltas, len(self._looks))
        neutrals, shares = neutral_prompts(self.edit), group_shares(self.edit)
        templates = [neutral.template for neutral in neutrals]
        subjects = [neutral.subject for neutral in neutrals]
        self._looks.append((torch.ones_like(counts) if self._weights is None else self._weights, counts))
        self._weights = corrected(self._looks, shares, templates, subjects)
        prompts = [neutral.prompt for neutral in neutrals]
        seen = dict(zip(prompts, counts.int().tolist(), strict=True))
        return self.taught(self._weights), seen

    def counts(
        self, teacher: Teacher, student: nn.Module, deltas: Mapping[str, Tensor], number: int
    ) -> Tensor:
        """How many of each neutral prompt's pictures show each group, (prompts, groups)."""
        neutrals = neutral_prompts(self.edit)
        asked = [place for place in range(len(neutrals)) for _ in range(PICTURES)]
        latents = self.drawn(teacher, student, deltas, number, [neutrals[place].prompt for place in asked])
        return self.told(teacher, student, latents, asked, number)

    def told(
        self, teacher: Teacher, student: nn.Module, latents: Tensor, asked: Sequence[int], number: int
    ) -> Tensor:
        """How many of `latents` (n, c, h, w) show each group, by the prompt `asked` for."""
        import torch

        from compiler.noised import noised_bank
        from compiler.predictions import predictions

        neutrals = neutral_prompts(self.edit)
        bank = noised_bank(
            latents,
            asked,
            [neutral.prompt for neutral in neutrals],
            teacher.scheduler,
            timesteps=TIMES,
            seed=teacher.seed,
            names=("calibration", self.edit.id, f"round {number}"),
        )
        read, noise = bank.column("prompt").tolist(), bank.take("noise", torch.arange(len(bank)))
        errors = []
        for place in range(len(group_names(self.edit))):
            named = teacher.encode([neutral.named[place] for neutral in neutrals])
            error = (predictions(student, bank, named, read) - noise).square().flatten(1).mean(1)
            errors.append(error.reshape(len(asked), -1).sum(1))
        shown = torch.stack(errors, dim=1).argmin(1)
        counts = torch.zeros(len(neutrals), len(errors))
        counts.index_put_((torch.tensor(asked), shown), torch.ones(len(asked)), accumulate=True)
        return counts

    def drawn(
        self,
        teacher: Teacher,
        student: nn.Module,
        deltas: Mapping[str, Tensor],
        number: int,
        prompts: Sequence[str],
    ) -> Tensor:
        """Latents of one picture for each prompt, drawn with the changes."""
        import torch

        from compiler.bank import trajectories_in_a_batch
        from compiler.judging import changed
        from compiler.sampling import sample
        from compiler.seeds import gaussian, generator, reproducible
        from compiler.unet import config_of, latent_shape

        config, found = config_of(student), []
        batch, shape = trajectories_in_a_batch(config), latent_shape(config)
        with changed(student, deltas), reproducible():
            for start in range(0, len(prompts), batch):
                part = prompts[start : start + batch]
                draws = [
                    (teacher.seed, "calibration", self.edit.id, number, place)
                    for place in range(start, start + len(part))
                ]
                text = teacher.encode(tuple(part))
                noise = torch.stack([gaussian(shape, *draw, "noise") for draw in draws])
                drawn = sample(
                    student,
                    teacher.scheduler,
                    noise.to(text.hidden.device),
                    teacher.unconditional,
                    text,
                    steps=self.edit.sampling_steps,
                    guidance_scale=self.edit.guidance_scale,
                    generators=[generator(*draw, "scheduler") for draw in draws],
                )
                found.append(drawn.latents.cpu())
        return torch.cat(found)

    def taught(self, weights: Tensor) -> tuple[Lesson, ...]:
        """The lessons in which group g counts `weights` (prompts, groups) times its share, by prompt."""
        return tuple(
            replace(lesson, readings=(self._weighted(lesson, weights[:, place]), *lesson.readings[1:]))
            for place, lesson in enumerate(self.lessons)
        )

    @staticmethod
    def _weighted(lesson: Lesson, weights: Tensor) -> Any:
        mean = float(weights.mean())
        often = tuple(max(1, round(FREQUENCY * float(weight) / mean)) for weight in weights)
        first = lesson.readings[0]
        return replace(first, weight=first.weight * mean, often=often)


def corrected(
    looks: Sequence[Look], shares: Sequence[float], templates: Sequence[str], subjects: Sequence[str]
) -> Tensor:
    """Weights (prompts, groups) for the next round, after `looks` at the earlier ones, the latest last.

    Earlier pictures count as they would have been drawn under the latest weights. A prompt's own are few all
    the same, so those of the prompts with its template, and of those with its subject, speak for it too.
    """
    import torch

    now, latest = looks[-1]
    wanted, followed = torch.tensor(shares), response(looks, templates, subjects)
    evidence = torch.zeros_like(latest)
    for age, (weights, counts) in enumerate(reversed(looks)):
        moved = counts * (now / weights) ** followed
        moved = moved * counts.sum(1, keepdim=True) / moved.sum(1, keepdim=True).clamp(min=1e-6)
        evidence += FADED**age * moved
    drawn = _smoothed(evidence, templates, subjects)
    found = now * (wanted / drawn.clamp(min=1e-3)) ** (1 / followed)
    found = found / (found * wanted).sum(1, keepdim=True)
    return found.clamp(1 / MOST, MOST)


def response(looks: Sequence[Look], templates: Sequence[str], subjects: Sequence[str]) -> float:
    """How far drawn log odds have followed taught ones: the slope over all prompts, each about its mean."""
    import torch

    taught = torch.stack([_log_odds(weights) for weights, _ in looks])
    drawn = torch.stack([_log_odds(_smoothed(counts, templates, subjects)) for _, counts in looks])
    taught, drawn = taught - taught.mean(0), drawn - drawn.mean(0)
    believed = BELIEF * len(subjects)
    slope = (taught * drawn).sum() + believed * RESPONSE
    least, most = RESPONSES
    return min(most, max(least, float(slope / (taught.square().sum() + believed))))


def _log_odds(shares: Tensor) -> Tensor:
    """Of each group against the geometric mean of all, (prompts, groups)."""
    logs = shares.clamp(min=1e-3).log()
    return logs - logs.mean(1, keepdim=True)


def _smoothed(counts: Tensor, templates: Sequence[str], subjects: Sequence[str]) -> Tensor:
    """Shares (prompts, groups) that `counts` and those of prompts alike let believe."""
    expected = _expected(counts, templates, subjects)
    return (counts + POOLED * expected) / (counts.sum(1, keepdim=True) + POOLED)


def _expected(counts: Tensor, templates: Sequence[str], subjects: Sequence[str]) -> Tensor:
    """Shares (prompts, groups) where a template and a subject each favour groups, whatever the other is."""
    overall = (counts.sum(0) + 1e-3) / (counts.sum(0) + 1e-3).sum()
    found = overall.expand_as(counts)
    for names in (templates, subjects):
        alike = counts.new_tensor([[float(one == other) for other in names] for one in names])
        pooled = alike @ counts
        found = found * (pooled / overall + SMOOTHED) / (pooled.sum(1, keepdim=True) + SMOOTHED)
    return found / found.sum(1, keepdim=True)
