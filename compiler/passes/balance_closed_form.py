"""Balance in closed form (UCE's debiasing, Gandikota et al. 2024): neutral prompts moved between groups.

Rounds of one least-squares solve on cross-attention keys and values, after each of which the U-Net is asked
how far the neutral prompts still lean to a group. Nothing is trained; a few predictions at pure noise take
the place of UCE's drawn and classified pictures (compiler.debias). Prompts that name a group are preserved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compiler.groups import group_names, group_shares, neutral_prompts
from compiler.interference import beside, named_beside
from compiler.mining import edited_words
from compiler.passes import EditPass, PassContext, PassCost, PassResult
from compiler.selections import select
from compiler.unet import training_memory, unsuited
from compiler.windows import over_window
from editspec import Balance
from editspec.templates import TEMPLATES, fill

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.checkpoint import Checkpoint
    from compiler.columns import Columns
    from compiler.debias import Leaning
    from compiler.safetensors_file import TensorEntry
    from editspec import Edit, EditSpec

NOISES = 4  # pure noises at which predictions are compared
ROUNDS = 6
NAMED_WEIGHT = 4.0  # of each prompt that names a group, for its neutral prompt
POOL_WEIGHT = 16.0  # of all other words together, for each neutral prompt, as in erasure
# Of these words before a concept that another edit has changed. Known by few prompts of its own it would come
# back, or its anchor be lost, where a prompt says a little more of it ("a red heart").
COMPOSED_WEIGHT = 8.0
MOST_COMPOSED = 800  # such prompts, of all concepts together
SECONDS = 6.0  # late imports, building the U-Net, and the text encoder


class BalanceClosedForm(EditPass):
    """One balance edit by solving, asking and correcting."""

    name = "balance/closed-form"
    version = 4
    order = 80
    merges = False

    def accepts(self, edit: Edit) -> bool:
        return isinstance(edit, Balance) and edit.method == "closed-form"

    def check(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        edit = _only(edits)
        pointer = spec.pointer(edit)
        if reason := unsuited(checkpoint.config("unet")):
            return [(f"{pointer}/edit", f"'balance' cannot edit this base: {reason}")]
        prompts = [prompt for neutral in neutral_prompts(edit) for prompt in (neutral.prompt, *neutral.named)]
        return over_window(checkpoint, [(pointer, prompt) for prompt in prompts])[:1]

    def reads(self, edits: Sequence[Edit], spec: EditSpec) -> Any:
        kept = {"beside": beside(edits, spec), "named": named_beside(edits, spec)}
        return {**super().reads(edits, spec), "edited": edited_words(spec), **kept}

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        return tuple(name for name in select(entries, "cross-attention-kv") if name.endswith(".weight"))

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        edit = _only(edits)
        entries = checkpoint.weights("unet").entries
        groups = len(group_names(edit))
        # Each prompt: its groups, itself and itself tilted to each, then itself once a round.
        evals = len(neutral_prompts(edit)) * NOISES * (groups + 1 + groups + ROUNDS)
        targets = self.targets(edits, entries)
        changed = sum(entries[name].parameters for name in targets)
        width = max(entries[name].shape[1] for name in targets)
        seconds = SECONDS + ROUNDS * 2.0 * changed * width / 3e10
        return PassCost(evals, seconds, training_memory(entries, checkpoint.config("unet"), targets))

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        import torch

        from compiler.debias import debias, tilt_of
        from compiler.seeds import reproducible
        from compiler.solve import solve

        edit = _only(edits)
        neutrals = neutral_prompts(edit)
        weights = {name: context.weight(name) for name in self.targets(edits, _entries(context))}
        with reproducible(), context.progress.task(f"balance {edit.id}", ROUNDS) as task:
            tilts = [tilt_of(context.text(), neutral) for neutral in neutrals]
            leaning, show = _asked(edit, weights, context)
            kept = _kept(edit, context)
            columns = torch.cat([tilt.columns for tilt in tilts]).T
            solution = solve(
                columns,
                ridge=edit.ridge,
                weights=torch.full((columns.shape[1],), _weight_of_prompt(edit)),
                preserved=kept.preserved,
                preserved_weights=kept.preserved_weights,
            )
            wanted = torch.tensor(group_shares(edit), dtype=torch.float64)
            done = debias(leaning, tilts, wanted, solution, weights, show, ROUNDS, task.advance)
        groups = group_names(edit)
        record = {
            "evals": leaning.evals,
            "shares": dict(zip(groups, group_shares(edit), strict=True)),
            "columns": columns.shape[1],
            "preserved_columns": kept.preserved.shape[1],
            "leans": [_rounded(lean) for lean in done.leans],
            "believed": {
                neutral.prompt: {
                    group: [_rounded(before), _rounded(after)]
                    for group, before, after in zip(groups, *pair, strict=True)
                }
                for neutral, *pair in zip(neutrals, done.before.tolist(), done.after.tolist(), strict=True)
            },
        }
        return PassResult(done.deltas, record)


def _asked(
    edit: Balance, weights: Mapping[str, Tensor], context: PassContext
) -> tuple[Leaning, Callable[[Mapping[str, Tensor]], None]]:
    """The U-Net as this pass finds it, asked at pure noise, and how to show it changes of `weights`."""
    import torch

    from compiler.conditioning import encode
    from compiler.debias import Leaning
    from compiler.sampling import load_scheduler
    from compiler.seeds import gaussian
    from compiler.unet import add_deltas, build_unet, config_of, latent_shape

    unet = build_unet(context.checkpoint, context.device)
    add_deltas(unet, context.upstream)
    scheduler = load_scheduler(context.checkpoint)
    scheduler.set_timesteps(edit.sampling_steps, device=context.device)
    first = scheduler.timesteps[0]
    noise = gaussian((NOISES, *latent_shape(config_of(unet))), context.seed, "balance", edit.id, "noise")
    read = scheduler.scale_model_input(noise.to(context.device) * scheduler.init_noise_sigma, first)
    neutrals = neutral_prompts(edit)
    prompts = encode(context.text(), [neutral.prompt for neutral in neutrals], context.checkpoint)
    named = [encode(context.text(), neutral.named, context.checkpoint) for neutral in neutrals]
    parameters = dict(unet.named_parameters())

    @torch.no_grad()
    def show(deltas: Mapping[str, Tensor]) -> None:
        for name, delta in deltas.items():
            parameters[name].copy_(weights[name] + delta)

    return Leaning(unet, read, float(first), prompts, named), show


def _kept(edit: Balance, context: PassContext) -> Columns:
    """Columns that stay: prompts that name a group or are another edit's, what is preserved, other words."""
    from compiler.columns import ColumnSet
    from compiler.concepts import Neighbourhood

    spec, text = context.spec, context.text()
    columns = ColumnSet(text)
    for neutral in neutral_prompts(edit):
        for prompt in neutral.named:
            columns.preserve(prompt, weight=NAMED_WEIGHT * _weight_of_prompt(edit))
    for concept in dict.fromkeys((*spec.preserve.concepts, *edit.preserve)):
        for template in TEMPLATES[edit.kind]:
            columns.preserve(fill(template, concept))
    for prompt in beside([edit], spec):
        if text.token_count(prompt) <= text.window:
            columns.preserve(prompt)
    used = {*edit.professions, *(group for groups in edit.groups for group in groups)}
    pool = [f"a {word}" for word in Neighbourhood(text).unlike({*used, *edited_words(spec)})]
    for prompt in pool:
        columns.preserve(prompt, weight=POOL_WEIGHT * _subjects(edit) / len(pool))
    changed = named_beside([edit], spec)
    few = pool[:: max(1, -(-len(pool) * len(changed) // MOST_COMPOSED))]
    for prompt in (f"{one} {name}" for name in changed for one in few):
        if text.token_count(prompt) <= text.window:
            columns.preserve(prompt, weight=COMPOSED_WEIGHT * _subjects(edit) / len(few))
    return columns.build()


def _subjects(edit: Balance) -> int:
    """How many professions and whole prompts are balanced."""
    return len(edit.professions) + sum("{}" not in prompt for prompt in edit.prompts)


def _weight_of_prompt(edit: Balance) -> float:
    """Whatever the number of its templates, a profession weighs `scale`."""
    return edit.scale * _subjects(edit) / len(neutral_prompts(edit))


def _entries(context: PassContext) -> Mapping[str, TensorEntry]:
    return context.checkpoint.weights("unet").entries


def _rounded(value: float) -> float:
    """Four digits: what the last bits of a machine class cannot change."""
    return float(f"{value:.4g}")


def _only(edits: Sequence[Edit]) -> Balance:
    (edit,) = edits
    assert isinstance(edit, Balance)
    return edit
