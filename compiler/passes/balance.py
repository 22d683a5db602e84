"""Balance by distillation: a neutral prompt learns the mixture of the groups, and the seed draws the group.

A checkpoint is deterministic given the seed, so no weight can throw a die; the distribution over seeds can
be learned. Teacher trajectories are sampled under each group; the student reads only the neutral prompt there
and regresses each trajectory's own prediction. The minimiser is the mean over the groups that could have led
to this x_t, weighted by their shares: the velocity of the mixture, which draws the groups in these shares.
(METHODS, section 7; fair generation as in Li et al. 2024.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from compiler.bank_request import BankRequest
from compiler.calibration import Calibration
from compiler.deciding import UNKNOWN, deciding_evals, doubts, share_open
from compiler.groups import group_names, group_shares, neutral_prompts
from compiler.lessons import Lesson, Reading, held, lessons_cost, quarter, too_few, too_long
from compiler.mining import Mining, edited_words, mining_of
from compiler.passes import EditPass, PassContext, PassCost, PassResult
from compiler.selections import select
from compiler.teaching import teach
from compiler.unet import unsuited
from editspec import Balance

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.safetensors_file import TensorEntry
    from editspec import Edit, EditSpec


# While it is open which group is drawn, the prediction for a neutral prompt lies between theirs.
EARLY_TIMES = 8


class BalanceDistil(EditPass):
    """One balance edit. Each step: `batch` examples of neutral prompts, shared by groups, and what is kept.

    Kept are the same prompts where they name a group, and the empty prompt, along the same trajectories.
    """

    name = "balance/distil"
    version = 11
    order = 40
    merges = False

    def accepts(self, edit: Edit) -> bool:
        return isinstance(edit, Balance) and edit.method == "distil"

    def check(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        edit = _only(edits)
        pointer = spec.pointer(edit)
        if reason := unsuited(checkpoint.config("unet")):
            return [(f"{pointer}/edit", f"'balance' cannot edit this base: {reason}")]
        if few := too_few(pointer, len(neutral_prompts(edit)), edit, shared_by=len(group_names(edit))):
            return few
        predicted = checkpoint.config("scheduler").get("prediction_type", "epsilon")
        if edit.calibrate and predicted not in ("epsilon", "v_prediction"):
            what = f"telling groups apart needs a model that predicts noise or v, not '{predicted}'"
            return [(f"{pointer}/calibrate", f"{what}; leave it out")]
        return too_long(pointer, balance_lessons(edit, spec.seed), checkpoint)

    def reads(self, edits: Sequence[Edit], spec: EditSpec) -> Any:
        # What another edit erases is no neighbour of the professions.
        return {**super().reads(edits, spec), "edited": edited_words(spec) if spec.preserve.auto else ()}

    def mining(self, edits: Sequence[Edit], spec: EditSpec) -> Mapping[str, Mining | None]:
        edit = _only(edits)
        return {edit.id: mining_of(edit, edit.professions, spec)}

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        return select(entries, _only(edits).selection)

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        edit = _only(edits)
        targets = self.targets(edits, checkpoint.weights("unet").entries)
        lessons = balance_lessons(edit, spec.seed)
        cost = lessons_cost(edit, lessons, spec, checkpoint, targets, rounds=Calibration(edit, lessons))
        if edit.decided is not None:
            return cost
        return replace(cost, evals=cost.evals + deciding_evals(edit, checkpoint.config("scheduler")))

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        edit = _only(edits)
        targets = self.targets(edits, context.checkpoint.weights("unet").entries)
        decided, facts = _decided(edit, context)
        lessons = balance_lessons(edit, context.spec.seed, decided)
        mining = self.mining(edits, context.spec)[edit.id]
        result = teach(edit, lessons, targets, mining, context, rounds=Calibration(edit, lessons))
        shares = dict(zip(group_names(edit), group_shares(edit), strict=True))
        evals = result.record["evals"] + facts.pop("evals", 0)
        return PassResult(result.deltas, {**result.record, "evals": evals, "shares": shares, **facts})


def _decided(edit: Balance, context: PassContext) -> tuple[float, dict[str, Any]]:
    """The share of trajectories in which it is open who is drawn, given or measured; facts of measuring."""
    if edit.decided is not None:
        return edit.decided, {}
    from compiler.teacher import Teacher

    evals = deciding_evals(edit, context.checkpoint.config("scheduler"))
    with context.progress.task(f"when groups are decided, {edit.id}", evals) as task:
        doubt = doubts(edit, Teacher(context), task.advance)
    decided = share_open(doubt)
    return decided, {"evals": evals if doubt else 0, "decided": round(decided, 4), "doubt": doubt}


def balance_lessons(edit: Balance, seed: int, decided: float = UNKNOWN) -> tuple[Lesson, ...]:
    """One lesson for each group. Shares are weights of the loss, so any shares are met exactly."""
    neutrals, groups = neutral_prompts(edit), group_names(edit)
    lessons = []
    for place, (group, share) in enumerate(zip(groups, group_shares(edit), strict=True)):
        named = [neutral.named[place] for neutral in neutrals]
        request = BankRequest.of(edit, seed, named, edit.trajectories // len(groups))
        batch = -(-edit.batch // len(groups))
        neutral = tuple((neutral.prompt,) for neutral in neutrals)
        name = f"neutral: {group}"
        learned = Reading(name, neutral, tuple(named), share, batch, early=EARLY_TIMES, early_share=decided)
        readings = [learned]
        if edit.keep_weight:
            kept = share * edit.keep_weight
            readings.append(held(f"named: {group}", named, kept, batch))
            readings.append(held(f"empty: {group}", (None,) * len(named), kept, quarter(batch)))
        lessons.append(Lesson(request, tuple(readings)))
    return tuple(lessons)


def _only(edits: Sequence[Edit]) -> Balance:
    (edit,) = edits
    assert isinstance(edit, Balance)
    return edit
