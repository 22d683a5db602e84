"""The words among which a setting of distilled edits chooses."""

from __future__ import annotations

from typing import Literal

Selection = Literal["cross-attention", "cross-attention-kv", "non-cross-attention", "self-attention", "full"]
Loss = Literal["l2", "l1", "huber"]
Schedule = Literal["constant", "linear", "cosine"]
Optimiser = Literal["adam", "muon"]
ScheduleOrPublished = Literal["constant", "linear", "cosine", "published"]
Precision = Literal["auto", "float32", "bfloat16"]
