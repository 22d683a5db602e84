"""The six kinds of edit as values: parameters named as in their papers, defaults as in the schema."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from editspec.choices import Loss, Optimiser, Precision, Schedule, ScheduleOrPublished, Selection
from editspec.templates import TEMPLATES, Kind


@dataclass(frozen=True, kw_only=True)
class Erase:
    """Remove a concept. ESD (Gandikota et al. 2023) by distillation, or UCE (2024) in closed form.

    `anchor`, `templates`, `ridge`, `preserve_mode` and `scale` belong to method "closed-form"; `from_concept`
    (JSON key "from") and what comes after it to "esd". An empty anchor is the empty prompt; no templates
    means the concept alone.
    """

    id: str
    concept: str
    aliases: tuple[str, ...] = ()
    kind: Kind = "object"
    method: Literal["esd", "closed-form"] = "esd"
    preserve: tuple[str, ...] = ()
    anchor: str = ""
    templates: tuple[str, ...] = TEMPLATES["object"]
    ridge: float = 0.1
    preserve_mode: Literal["columns", "null-space"] = "columns"
    scale: float = 1.0
    from_concept: str | None = None
    selection: Selection = "cross-attention"
    negative_guidance: float = 1.0
    steps: int = 200
    learning_rate: float = 5e-5
    batch: int = 8
    trajectories: int = 20
    timesteps: int = 10
    sampling_steps: int = 25
    guidance_scale: float = 3.0
    loss: Loss = "l2"
    schedule: ScheduleOrPublished = "cosine"
    ema: float = 0.0
    held_out: float = 0.0
    refresh: int = 0
    precision: Precision = "auto"
    composed: int = 0
    implicit: tuple[str, ...] = ()
    together: str | None = None
    strength: Literal["fixed", "auto"] = "fixed"
    robust: bool = False
    keep_weight: float = 1.0

    @property
    def edit(self) -> str:
        return "erase"


@dataclass(frozen=True, kw_only=True)
class Ablate:
    """Turn a concept into its anchor (Kumari et al. 2023); with kind "image", forget a memorised image.

    `image`, `captions` and `negative_guidance` belong to a memorised image.
    """

    id: str
    concept: str
    anchor: str = ""
    aliases: tuple[str, ...] = ()
    kind: Literal["object", "style", "content", "image"] = "object"
    preserve: tuple[str, ...] = ()
    image: str | None = None
    captions: tuple[str, ...] = ()
    objective: Literal["model", "noise"] = "model"
    teacher: Literal["student", "base"] = "base"
    inputs: Literal["trajectory", "noised"] = "trajectory"
    templates: tuple[str, ...] = TEMPLATES["object"]
    prompts: tuple[str, ...] = ()
    prompts_file: str | None = None
    selection: Selection = "cross-attention-kv"
    negative_guidance: float = 0.5
    steps: int = 60
    learning_rate: float = 5e-5
    batch: int = 4
    trajectories: int = 24
    timesteps: int = 10
    sampling_steps: int = 25
    guidance_scale: float = 6.0
    loss: Loss = "l2"
    schedule: ScheduleOrPublished = "cosine"
    ema: float = 0.0
    held_out: float = 0.0
    refresh: int = 0
    precision: Precision = "auto"
    keep_weight: float = 1.0

    @property
    def edit(self) -> str:
        return "ablate"

    @property
    def method(self) -> str:
        return "image" if self.kind == "image" else "concept"


@dataclass(frozen=True, kw_only=True)
class Direction:
    """Where a shift leads: to `prompt` from `base_prompt` (default: the same), away from `negative_prompt`.

    Or a `file` with a vector in it, of which `concept` names one.
    """

    prompt: str | None = None
    base_prompt: str | None = None
    negative_prompt: str | None = None
    file: str | None = None
    concept: str | None = None
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Shift:
    """Add a self-discovered h-space direction to existing biases (Li et al. 2024).

    `prompts` are further ones that a direction away from a negative prompt is learned on. `gated` carries the
    direction in the values that read the text instead, so that the empty prompt stays as it is, and `words`
    in the biases and, for words of the negative prompt that `prompts` name, in these values too. The teacher
    goes `overshoot` times as far as the prompts lead it.
    """

    id: str
    directions: tuple[Direction, ...]
    prompts: tuple[str, ...] = ()
    preserve: tuple[str, ...] = ()
    kind: Kind = "object"
    strength: float = 1.0
    sites: Literal["mid", "decoder", "all"] = "all"
    gated: bool = False
    words: bool = False
    overshoot: float = 1.0
    steps: int = 500
    learning_rate: float = 0.006
    batch: int = 2
    trajectories: int = 32
    timesteps: int = 8
    sampling_steps: int = 10
    guidance_scale: float = 7.5
    loss: Loss = "l2"
    schedule: Schedule = "cosine"
    keep_weight: float = 2.0

    @property
    def edit(self) -> str:
        return "shift"

    @property
    def method(self) -> str:
        return "direction"


@dataclass(frozen=True, kw_only=True)
class Guided:
    """A concept that guidance leads to or away from, with its weight."""

    concept: str
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Guide:
    """Bake guidance in: SEGA (Brack et al. 2023), SLD (Schramowski et al. 2023), or a negative prompt.

    `even_timesteps` lets every timestep count alike, however little the guidance changes there.
    """

    id: str
    method: Literal["sega", "sld", "negative-prompt"] = "sega"
    away_from: tuple[Guided, ...] = ()
    toward: tuple[Guided, ...] = ()
    kind: Kind = "object"
    prompts: tuple[str, ...] = ()
    preserve: tuple[str, ...] = ()
    preset: Literal["weak", "medium", "strong", "max"] | None = None
    scale: float | None = None
    warmup: int | None = None
    cooldown: int | None = None
    threshold: float | None = None
    momentum_scale: float | None = None
    momentum_beta: float | None = None
    branch: Literal["both", "text", "empty", "opposite"] = "both"
    selection: Selection = "non-cross-attention"
    steps: int = 400
    learning_rate: float = 1e-5
    batch: int = 8
    trajectories: int = 96
    timesteps: int = 10
    sampling_steps: int = 50
    guidance_scale: float = 7.5
    loss: Loss = "l2"
    schedule: Schedule = "constant"
    optimiser: Optimiser = "adam"
    decay: float = 0.0
    even_timesteps: bool = False
    keep_weight: float = 1.0

    @property
    def edit(self) -> str:
        return "guide"


@dataclass(frozen=True, kw_only=True)
class Balance:
    """Give groups their shares. `groups` has one tuple for each attribute; `shares` are for a single one."""

    id: str
    prompts: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    professions: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    group_template: str = "{prompt}, {group}"
    method: Literal["distil", "closed-form"] = "distil"
    preserve: tuple[str, ...] = ()
    ridge: float = 0.1
    scale: float = 1.0
    selection: Selection = "cross-attention"
    steps: int = 400
    learning_rate: float = 1e-5
    batch: int = 8
    trajectories: int = 96
    timesteps: int = 10
    sampling_steps: int = 50
    guidance_scale: float = 7.5
    loss: Loss = "l2"
    schedule: Schedule = "constant"
    optimiser: Optimiser = "adam"
    decay: float = 0.0
    decided: float | None = None
    calibrate: int = 0
    keep_weight: float = 1.0

    @property
    def edit(self) -> str:
        return "balance"

    @property
    def kind(self) -> Kind:
        """Of the concepts that it preserves: what else is drawn beside persons."""
        return "object"


@dataclass(frozen=True, kw_only=True)
class Phrase:
    """A phrase and what it does: the effect of the edit with id `use`, or a direction of its own."""

    text: str
    use: str | None = None
    direction: Direction | None = None


@dataclass(frozen=True, kw_only=True)
class Respond:
    """Make responsible phrases in a prompt work (Li et al. 2024)."""

    id: str
    phrases: tuple[Phrase, ...]
    prompts: tuple[str, ...] = ()
    preserve: tuple[str, ...] = ()
    selection: Selection = "cross-attention"
    steps: int = 400
    learning_rate: float = 1e-5
    batch: int = 8
    trajectories: int = 96
    timesteps: int = 10
    sampling_steps: int = 50
    guidance_scale: float = 7.5
    loss: Loss = "l2"
    schedule: Schedule = "constant"
    optimiser: Optimiser = "adam"
    decay: float = 0.0
    keep_weight: float = 1.0

    @property
    def edit(self) -> str:
        return "respond"

    @property
    def kind(self) -> Kind:
        """Of the concepts that it preserves."""
        return "object"

    @property
    def method(self) -> str:
        return "phrases"


Edit = Erase | Ablate | Shift | Guide | Balance | Respond
