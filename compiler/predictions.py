"""What a U-Net predicts at every row of a trajectory bank, in batches of bounded size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compiler.bank import Bank
from compiler.conditioning import Conditioning
from compiler.sampling import predict
from compiler.seeds import reproducible
from compiler.unet import config_of, examples_at_once


@torch.no_grad()
def predictions(unet: torch.nn.Module, bank: Bank, prompts: Conditioning, read: Sequence[int]) -> Tensor:
    """(rows, channels, h, w), fp32 on the CPU: at row i the prediction for the row `read[i]` of `prompts`."""
    device, at_once = prompts.hidden.device, examples_at_once(config_of(unet))
    found = []
    with reproducible():
        for start in range(0, len(read), at_once):
            rows = torch.arange(start, min(start + at_once, len(read)))
            x, t = bank.take("model_input", rows).to(device), bank.take("timestep", rows).to(device)
            found.append(predict(unet, x, t, prompts.rows(read[start : start + at_once])).float().cpu())
    return torch.cat(found)
