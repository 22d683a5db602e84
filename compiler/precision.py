"""Mixed precision of training: the network in bfloat16 where that is fast, weights, targets and loss in fp32.

Adam's updates and the master copies stay fp32: in bf16 they would vanish in the rounding. What is rounded is
the network's own arithmetic, forward and backward, by torch's autocast. Banks are always sampled in fp32: a
teacher's error would be learned, a student's averages out over steps.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from compiler.conditioning import Conditioning
from compiler.sampling import predict

Precision: TypeAlias = Literal["auto", "float32", "bfloat16"]


def rounds(precision: Precision, device: torch.device) -> bool:
    """Whether the network computes in bfloat16: if asked to, or left to choose, on CUDA."""
    return precision == "bfloat16" or (precision == "auto" and device.type == "cuda")


def predicted(
    unet: torch.nn.Module, model_input: Tensor, timestep: Tensor, text: Conditioning, *, bfloat16: bool
) -> Tensor:
    """`predict` under autocast if `bfloat16`; the prediction is fp32 either way, (n, channels, h, w)."""
    if not bfloat16:
        return predict(unet, model_input, timestep, text)
    with torch.autocast(model_input.device.type, torch.bfloat16):
        return predict(unet, model_input, timestep, text).float()
