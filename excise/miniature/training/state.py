"""Steps of a training and its half-finished state: safetensors, from which a killed run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file


def save_state(
    path: Path,
    modules: Mapping[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer,
    step: int,
    averages: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write modules, Adam's moments, moving averages and the number of finished steps, atomically."""
    tensors = {f"module.{n}.{k}": v for n, m in modules.items() for k, v in m.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{k}": v for k, v in moments.items()}
    tensors |= {f"average.{k}": v for k, v in (averages or {}).items()}
    tensors["step"] = torch.tensor(step)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".partial")
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, fresh)
    fresh.replace(path)


def load_state(
    path: Path,
    modules: Mapping[str, torch.nn.Module],
    optimizer: torch.optim.Optimizer | None = None,
    averages: dict[str, torch.Tensor] | None = None,
) -> int:
    """Restore what `save_state` wrote, in place; the number of finished steps, 0 where there is no file."""
    if not path.exists():
        return 0
    tensors = load_file(path)
    for name, module in modules.items():
        prefix = f"module.{name}."
        module.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
    if optimizer is not None:
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, index, kind = key.split(".", 2)
                moments.setdefault(int(index), {})[kind] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for parameter, kept in optimizer.state.items():
            # The fused kernel walks memory: moments must lie as their parameter does (channels last).
            for kind, moment in kept.items():
                if moment.shape == parameter.shape:
                    kept[kind] = torch.empty_like(parameter).copy_(moment)
    if averages is not None:
        averages |= {k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")}
    return int(tensors["step"])


def descend(
    loss: torch.Tensor, optimizer: torch.optim.Optimizer, rate: float, most: float | None = None
) -> None:
    """One step of the optimizer at this rate; `most`, where given, bounds the norm of the whole gradient."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if most is not None:
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, most)
    optimizer.step()


def learning_rate(step: int, steps: int, peak: float, warmup: int = 100) -> float:
    """Linear warm-up, then a cosine to a twentieth of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * (step - warmup) / max(1, steps - warmup)))))
