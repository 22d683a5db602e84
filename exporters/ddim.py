"""DDIM without noise in numpy (Song et al. 2021, eq. 12 with eta = 0): sampling where torch is not installed.

The same steps as diffusers' `DDIMScheduler`, from the same configuration file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from editspec.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float32]]

_WHERE = "scheduler/scheduler_config.json"


@dataclass(frozen=True)
class Ddim:
    """A schedule cut into steps. `alphas_cumprod` (train timesteps,), `timesteps` from noise to image."""

    alphas_cumprod: Array
    final_alpha_cumprod: np.float32
    timesteps: tuple[int, ...]
    stride: int
    prediction_type: str
    clip: float | None
    threshold: tuple[float, float] | None  # percentile (0 to 1) and largest value of dynamic thresholding

    @classmethod
    def from_config(cls, config: Mapping[str, Any], steps: int) -> Ddim:
        """From a scheduler_config.json, whatever scheduler it names; `steps` U-Net calls.

        Predicted latents are clipped only where the file says so. `InputError` for an unknown schedule.
        """
        total = int(config.get("num_train_timesteps", 1000))
        if not 1 <= steps <= total:
            raise InputError("--steps", f"{steps} is not between 1 and {total}", "this model has no more")
        alphas_cumprod = _alphas_cumprod(config, total)
        kind = str(config.get("prediction_type", "epsilon"))
        if kind not in ("epsilon", "v_prediction", "sample"):
            raise InputError(
                _WHERE, f"has the prediction type {kind!r}", "known are epsilon and v_prediction"
            )
        alpha_one = bool(config.get("set_alpha_to_one", True))
        clip, threshold = bool(config.get("clip_sample", False)), bool(config.get("thresholding", False))
        return cls(
            alphas_cumprod=alphas_cumprod,
            final_alpha_cumprod=alphas_cumprod.dtype.type(1) if alpha_one else alphas_cumprod[0],
            timesteps=_timesteps(config, total, steps),
            stride=total // steps,
            prediction_type=kind,
            clip=float(config.get("clip_sample_range", 1.0)) if clip and not threshold else None,
            threshold=(
                float(config.get("dynamic_thresholding_ratio", 0.995)),
                float(config.get("sample_max_value", 1.0)),
            )
            if threshold
            else None,
        )

    def step(self, predicted: Array, timestep: int, latents: Array) -> Array:
        """x_t and the U-Net's answer (n, c, h, w) to x_(t - stride)."""
        import numpy as np

        before = timestep - self.stride
        alpha = self.alphas_cumprod[timestep]
        alpha_before = self.alphas_cumprod[before] if before >= 0 else self.final_alpha_cumprod
        signal, noise = np.sqrt(alpha), np.sqrt(1 - alpha)
        if self.prediction_type == "epsilon":
            clean, epsilon = (latents - noise * predicted) / signal, predicted
        elif self.prediction_type == "v_prediction":
            clean, epsilon = signal * latents - noise * predicted, signal * predicted + noise * latents
        else:
            clean, epsilon = predicted, (latents - signal * predicted) / noise
        clean = self._bounded(clean)
        stepped: Array = np.sqrt(alpha_before) * clean + np.sqrt(1 - alpha_before) * epsilon
        return stepped

    def _bounded(self, clean: Array) -> Array:
        import numpy as np

        if self.threshold is not None:
            ratio, largest = self.threshold
            flat = np.abs(clean).reshape(len(clean), -1)
            limit = np.clip(np.quantile(flat, ratio, axis=1), 1, largest).reshape(-1, 1, 1, 1)
            bounded: Array = (np.clip(clean, -limit, limit) / limit).astype(clean.dtype)
            return bounded
        return clean if self.clip is None else np.clip(clean, -self.clip, self.clip)


def _alphas_cumprod(config: Mapping[str, Any], total: int) -> Array:
    import numpy as np

    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    schedule = str(config.get("beta_schedule", "linear"))
    if config.get("trained_betas") is not None:
        betas = np.asarray(config["trained_betas"], np.float32)
        if betas.shape != (total,):
            raise InputError(_WHERE, f"has {betas.size} trained_betas for {total} timesteps")
    elif schedule == "linear":
        betas = np.linspace(start, end, total).astype(np.float32)
    elif schedule == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, total).astype(np.float32) ** 2
    elif schedule == "squaredcos_cap_v2":
        at = np.cos((np.arange(total + 1) / total + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - at[1:] / at[:-1], 0.999).astype(np.float32)
    else:
        raise InputError(_WHERE, f"has the noise schedule {schedule!r}", "known are linear and scaled_linear")
    products: Array = np.cumprod(1 - betas, dtype=np.float32)
    return _zero_terminal_snr(products) if config.get("rescale_betas_zero_snr", False) else products


def _zero_terminal_snr(products: Array) -> Array:
    """Shift and scale so that no signal is left at the last step (Lin et al. 2024, alg. 1)."""
    import numpy as np

    root = np.sqrt(products)
    first, last = root[0], root[-1]
    rescaled: Array = (((root - last) * (first / (first - last))) ** 2).astype(np.float32)
    return rescaled


def _timesteps(config: Mapping[str, Any], total: int, steps: int) -> tuple[int, ...]:
    """Which timesteps to visit, falling (Lin et al. 2024, table 2)."""
    import numpy as np

    spacing = str(config.get("timestep_spacing", "leading"))
    found: np.ndarray[Any, Any]
    if spacing == "leading":
        found = np.arange(steps)[::-1] * (total // steps) + int(config.get("steps_offset", 0))
    elif spacing == "linspace":
        found = np.linspace(0, total - 1, steps).round()[::-1]
    elif spacing == "trailing":
        found = np.round(np.arange(total, 0, -total / steps)) - 1
    else:
        raise InputError(_WHERE, f"has the timestep spacing {spacing!r}", "known are leading and trailing")
    return tuple(min(int(step), total - 1) for step in found)
