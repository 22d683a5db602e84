"""Discovers a direction from prompts alone: what it costs, its banks, its start and what the engine finds.

A direction leads from a base prompt to a prompt, away from a negative prompt, or both. The student reads the
base prompt; the teacher is the frozen base guided with the prompt, the negative prompt in place of the empty
one. Rows are those of the base's own trajectories for what the student reads. What was found is kept in the
stage cache: strength, weights and other edits do not enter. (METHODS, section 5; Li et al. 2024.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.bank_request import BankRequest
from compiler.carrying import carrier_of, carrying, opening_words
from compiler.keep import keep_requests
from compiler.mining import Mining, edited_words, mined, mining_of
from compiler.shift_cost import learning_evals
from compiler.sites import group_names
from compiler.versions import library_versions
from editspec.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from compiler.bank import Bank
    from compiler.carriers import Carrier
    from compiler.checkpoint import Checkpoint
    from compiler.conditioning import Conditioning
    from compiler.directions import Found
    from compiler.passes import PassContext
    from compiler.shift import Learned
    from compiler.shift_examples import Part, Vectors
    from compiler.teacher import Teacher
    from editspec import Direction, EditSpec, Shift

VERSION = 5  # raise it whenever the same edit may give another direction
FILE = "direction.safetensors"
FIXED, FIXED_KEPT = 8, 4  # examples of the Gauss-Newton step: wanted, and kept
# An overshot target is out of reach: beside what is kept its loss hardly falls, while what is drawn changes
# wholly. The few examples above would often call that worse than nothing, and nothing is what would be kept.
SLACK = 1.5
MEAN_ROWS = 24  # rows over which means of activations are taken
TURNS = (
    1.0,
    2 / 3,
    2 / 5,
)  # of the guidance scale: with the default of 7.5, examples take turns at 7.5, 5, 3


def scales(edit: Shift) -> tuple[float, ...]:
    """The guidance scales that examples take turns at, each at least 1 and each once."""
    return tuple(dict.fromkeys(max(1.0, turn * edit.guidance_scale) for turn in TURNS))


def prompts_read(edit: Shift, direction: Direction) -> tuple[str, ...]:
    """What the student reads: the base prompt, or else the prompt and the edit's further ones."""
    assert direction.prompt is not None
    if direction.base_prompt is not None:
        return (direction.base_prompt,)
    return tuple(dict.fromkeys((direction.prompt, *edit.prompts)))


def own_request(edit: Shift, direction: Direction, seed: int) -> BankRequest:
    """The bank of what the student reads, with what the teacher adds there: `goal`, `negative`."""
    read = prompts_read(edit, direction)
    also: dict[str, list[str]] = {}
    if direction.base_prompt is not None and direction.base_prompt != direction.prompt:
        also["goal"] = [str(direction.prompt)] * len(read)
    if direction.negative_prompt is not None:
        also["negative"] = [direction.negative_prompt] * len(read)
    return BankRequest.of(edit, seed, read, edit.trajectories, also)


def discovery_evals(edit: Shift, direction: Direction, spec: EditSpec, checkpoint: Checkpoint) -> int:
    """Evals of discovering it anew: banks, means, the Gauss-Newton step, polish. At most a few too many.

    (A block that does not read the text gives no piece of a start.)
    """
    scheduler = checkpoint.config("scheduler")
    own, keep = own_request(edit, direction, spec.seed), keep_requests(edit, spec, neighbours=())
    banks = sum(request.evals(scheduler) for request in (own, *keep))
    names = carrying(edit, checkpoint.weights("unet").entries)
    pieces = len(group_names([name for name in names if name.endswith(".bias")]))
    means = 0 if edit.gated else 2 * MEAN_ROWS * len(own.also)
    return banks + means + _learning_evals(edit, bool(keep), pieces)


def _learning_evals(edit: Shift, kept: bool, pieces: int) -> int:
    batch = edit.batch + (kept_batch(edit) if kept else 0)
    fixed = FIXED + (FIXED_KEPT if kept else 0)
    return learning_evals(batch, fixed, edit.steps, pieces, 1 if edit.gated else 2)


def kept_batch(edit: Shift) -> int:
    """Examples a step of what is kept: half as many as of the direction's own."""
    return -(-edit.batch // 2)


def discover(edit: Shift, direction: Direction, context: PassContext) -> Found:
    """The direction at strength 1 and weight 1: from the stage cache, or learned now and stored there."""
    from compiler.device import choose
    from compiler.directions import load_direction, save_direction

    key = context.cache.key(
        {
            "stage": "direction",
            "version": VERSION,
            "direction": {**asdict(direction), "weight": 1.0},
            "edit": {k: v for k, v in asdict(edit).items() if k not in ("id", "strength", "directions")},
            "preserve": context.spec.document.get("preserve"),
            "edited": edited_words(context.spec),
            "seed": context.seed,
            "base": context.checkpoint.digest,
            "libraries": library_versions(),
            "device": choose(context.device.type).device_class,
        }
    )
    stored = context.cache.get(key)
    if stored is None:

        def write(folder: Path) -> None:
            save_direction(_discovered(edit, direction, context), folder / FILE)

        stored = context.cache.put(key, write)
    return load_direction(stored / FILE)


def _discovered(edit: Shift, direction: Direction, context: PassContext) -> Found:
    from compiler.directions import Found
    from compiler.distil import Diverged, summary
    from compiler.teacher import Teacher

    spec, teacher = context.spec, Teacher(context)
    pointer = spec.pointer(edit)
    neighbours = [word for word, _ in mined(direction_mining(edit, direction, spec), context)]
    own, keep = own_request(edit, direction, spec.seed), keep_requests(edit, spec, neighbours)
    texts = tuple(dict.fromkeys(text for request in (own, *keep) for text in _texts(request)))
    teacher.refuse_cut_prompts(pointer, texts)
    bank, kept = teacher.bank(own), [teacher.bank(request) for request in keep]
    number = {text: place + 1 for place, text in enumerate(texts)}  # row 0 is the unconditional one
    prompts = teacher.unconditional.join(teacher.encode(texts))
    still = tuple(dict.fromkeys(text for request in keep for text in request.prompts))
    carrier = carrier_of(edit, direction, own.prompts, still, context)
    parts = _parts(edit, bank, kept, number)
    evals = sum(request.evals(teacher.scheduler.config) for request in (own, *keep))
    pieces: list[Vectors] = []
    if not edit.gated:
        pieces, spent = _mean_pieces(edit, own, bank, number, prompts, carrier, teacher)
        evals += spent
    total = _learning_evals(edit, bool(keep), len(pieces))
    with context.progress.task(f"discover {edit.id}", total) as task:
        try:
            done = _learn(edit, carrier, prompts, parts, pieces, teacher, context.seed, task.advance)
        except Diverged as error:
            what = f"learning diverged: {error}"
            raise InputError(f"{pointer}/learning_rate", what, "choose a smaller learning_rate") from error
    facts = {
        **{k: v for k, v in asdict(direction).items() if v is not None and k != "weight"},
        "prompts": list(own.prompts),
        "kept_prompts": sorted(still),
        "sites": edit.sites,
        "gated": edit.gated,
        **({"words": list(opening_words(direction, own.prompts, still))} if edit.words else {}),
        "overshoot": edit.overshoot,
        "guidance_scales": list(scales(edit)),
        "base": context.checkpoint.digest,
        "family": context.checkpoint.family,
        "seed": context.seed,
        "evals": evals + done.evals,
        "loss_measured": {name: float(f"{value:.5g}") for name, value in done.measured.items()},
        "loss": summary(done.curve),
    }
    return Found(done.vectors, facts, None if carrier.gate is None else carrier.gate.cpu())


def _learn(
    edit: Shift,
    carrier: Carrier,
    prompts: Conditioning,
    parts: Sequence[Part],
    pieces: Sequence[Vectors],
    teacher: Teacher,
    seed: int,
    advance: Any,
) -> Learned:
    from compiler.shift import learn
    from compiler.shift_examples import ShiftSettings

    slack = SLACK if edit.overshoot > 1 else 1.0
    settings = ShiftSettings(
        edit.steps, edit.learning_rate, seed, scales(edit), ("shift",), edit.loss, edit.schedule, slack
    )
    return learn(teacher.unet, carrier, prompts, parts, settings, pieces, advance)


def direction_mining(edit: Shift, direction: Direction, spec: EditSpec) -> Mining | None:
    """The words nearest to where the direction leads, or leads away from; those of the prompt are known."""
    subject = direction.negative_prompt or direction.prompt or ""
    mining = mining_of(edit, (subject,), spec) if subject else None
    return mining and replace(mining, exclude=tuple(sorted({*mining.exclude, *subject.split()})))


def _texts(request: BankRequest) -> tuple[str, ...]:
    """Every prompt that a bank is of, or has further predictions of."""
    return (*request.prompts, *(text for texts in request.also.values() for text in texts))


def _parts(edit: Shift, bank: Bank, kept: Sequence[Bank], number: Mapping[str, int]) -> list[Part]:
    """The wanted change at the direction's own rows, and no change at what is kept."""
    import torch

    from compiler.bank import join
    from compiler.shift_examples import Part

    def examples(bank: Bank) -> Tensor:
        prompt = bank.column("prompt").tolist()
        return torch.tensor([(row, number[bank.prompts[p]]) for row, p in enumerate(prompt)])

    columns = set(bank.shards[0])

    def wanted(rows: Tensor, scale: Tensor) -> Tensor:
        """(1 - w)(e_n - e_0) + w (e_y+ - e_y-), overshot: teacher minus student, both guided at w."""
        change = torch.zeros_like(bank.take("cond", rows))
        if "negative" in columns:
            change += (1.0 - scale) * (bank.take("negative", rows) - bank.take("uncond", rows))
        if "goal" in columns:
            change += scale * (bank.take("goal", rows) - bank.take("cond", rows))
        return edit.overshoot * change

    parts = [Part("shift", bank, examples(bank), wanted, 1.0, edit.batch, FIXED)]
    if kept:
        held = join(kept)
        still = lambda rows, scale: torch.zeros_like(held.take("cond", rows))  # noqa: E731
        weight, batch = edit.keep_weight, kept_batch(edit)
        parts.append(Part("keep", held, examples(held), still, weight, batch, FIXED_KEPT))
    return parts


def _mean_pieces(
    edit: Shift,
    own: BankRequest,
    bank: Bank,
    number: Mapping[str, int],
    prompts: Conditioning,
    carrier: Carrier,
    teacher: Teacher,
) -> tuple[list[Vectors], int]:
    """Pieces of a start, block by block, from means of activations under the teacher's texts; evals."""
    import torch

    from compiler.seeds import epoch_batch
    from compiler.site_means import pieces_of, site_means
    from compiler.unet import config_of, examples_at_once

    rows = epoch_batch(len(bank), MEAN_ROWS, 0, teacher.seed, "shift", "means")
    asked = [bank.prompts[p] for p in bank.column("prompt")[rows].tolist()]
    device = prompts.hidden.device
    inputs = bank.take("model_input", rows).to(device), bank.take("timestep", rows).to(device)
    groups = group_names([name for name in carrier.names if name.endswith(".bias")])
    names = [name for group in groups.values() for name in group]

    def means(read: Sequence[int]) -> Vectors:
        batch = examples_at_once(config_of(teacher.unet))
        return site_means(teacher.unet, names, *inputs, prompts.rows(torch.tensor(read)), batch)

    w = edit.guidance_scale
    wanted: Vectors = {}
    signs = {"negative": (1.0 - w, [0] * len(asked)), "goal": (w, [number[text] for text in asked])}
    for name, texts in own.also.items():
        factor, before = signs[name]
        after = [number[texts[own.prompts.index(text)]] for text in asked]
        moved, still = means(after), means(before)
        for site in names:
            change = factor * (moved[site] - still[site])
            wanted[site] = wanted[site] + change if site in wanted else change
    weights = {name: teacher.unet.get_parameter(name) for name in carrier.names}
    zeros = {name: weight.new_zeros(len(weight)) for name, weight in weights.items()}
    pieces = [{**zeros, **piece} for piece in pieces_of(wanted, groups)]
    return pieces, 2 * MEAN_ROWS * len(own.also)
