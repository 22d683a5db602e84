"""What to ask of a trajectory bank and what that costs; knows no tensors, so that plans can be made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, Self, TypeAlias

FORMAT = 1  # raise it whenever the same request may give other rows

Storage: TypeAlias = Literal["float32", "float16"]


class SampledEdit(Protocol):
    """The fields with which every distilled edit says how its trajectories are sampled."""

    @property
    def sampling_steps(self) -> int: ...
    @property
    def guidance_scale(self) -> float: ...
    @property
    def timesteps(self) -> int: ...


@dataclass(frozen=True)
class BankRequest:
    """Which trajectories to sample and what to keep of them; JSON-able, so that it can be part of a key."""

    prompts: tuple[str, ...]
    trajectories: tuple[int, ...]
    """How many for each prompt."""
    seed: int
    steps: int = 25
    guidance_scale: float = 3.0
    strata: int = 10
    """A trajectory's steps are cut into this many equal stretches; one step of each is kept, at random."""
    also: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Further predictions at every kept x_t: name -> for each of `prompts`, what other prompt to predict."""
    storage: Storage = "float32"

    def __post_init__(self) -> None:
        if not self.prompts or len(set(self.prompts)) != len(self.prompts):
            raise ValueError("a bank needs prompts, each once")
        if len(self.trajectories) != len(self.prompts) or min(self.trajectories) < 1:
            raise ValueError("each prompt of a bank needs at least one trajectory")
        if self.steps < 1 or self.strata < 1:
            raise ValueError("a bank needs at least one step and one stratum")
        if set(self.also) & {"model_input", "timestep", "uncond", "cond"}:
            raise ValueError("a further prediction needs a name of its own")
        if any(len(others) != len(self.prompts) for others in self.also.values()):
            raise ValueError("a further prediction needs one prompt for each prompt of the bank")

    @classmethod
    def of(
        cls,
        edit: SampledEdit,
        seed: int,
        prompts: Sequence[str],
        trajectories: int,
        also: Mapping[str, Sequence[str]] | None = None,
    ) -> Self:
        """`trajectories` shared out over `prompts` as evenly as can be, sampled as the edit says.

        Where there are more prompts than trajectories, the last prompts are left out.
        """
        others = dict(zip(prompts, zip(*(also or {}).values(), strict=True), strict=True)) if also else {}
        kept = tuple(dict.fromkeys(prompts))[:trajectories]
        return cls(
            kept,
            shared_out(trajectories, len(kept)),
            seed,
            steps=edit.sampling_steps,
            guidance_scale=edit.guidance_scale,
            strata=edit.timesteps,
            also={name: tuple(others[text][place] for text in kept) for place, name in enumerate(also or {})},
        )

    @property
    def total(self) -> int:
        """Number of trajectories."""
        return sum(self.trajectories)

    def rows(self, scheduler_config: Mapping[str, Any]) -> int:
        """Number of rows that will be kept."""
        return self.total * min(self.strata, unet_calls(scheduler_config, self.steps))

    def evals(self, scheduler_config: Mapping[str, Any]) -> int:
        """U-Net evals of building: two for each step of each trajectory, one for each further prediction."""
        sampling = 2 * self.total * unet_calls(scheduler_config, self.steps)
        return sampling + len(self.also) * self.rows(scheduler_config)

    def as_dict(self) -> dict[str, Any]:
        """Everything that decides the rows, beside the checkpoint: part of the content address."""
        return {"format": FORMAT, **asdict(self)}


def shared_out(total: int, count: int) -> tuple[int, ...]:
    """`total` in `count` whole parts that differ by one at most, the larger ones first."""
    share, rest = divmod(total, count)
    return tuple(share + (number < rest) for number in range(count))


def unet_calls(scheduler_config: Mapping[str, Any], steps: int) -> int:
    """How many times the U-Net runs in `steps` sampling steps: second-order schedulers call it twice."""
    name = scheduler_config.get("_class_name")
    if name in ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"):
        return 2 * steps - 1
    if name == "PNDMScheduler":
        # Linear multistep alone repeats its second step; with Runge-Kutta the first three take four calls.
        return steps + 9 if not scheduler_config.get("skip_prk_steps", False) else steps + (steps > 1)
    return steps
