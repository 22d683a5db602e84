"""The pass shown in CONTRIBUTING.md is a real one: what is documented must run."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import torch

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.passes import PassContext
from compiler.progress import Silent
from editspec import Erase, parse_spec

CONTRIBUTING = Path(__file__).parents[3] / "CONTRIBUTING.md"


def test_the_example_pass_removes_what_it_says_from_keys_and_values(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (source,) = re.findall(r"```python\n(.*?)```", CONTRIBUTING.read_text("utf-8"), re.DOTALL)
    module: dict[str, Any] = {"__name__": "example"}
    exec(source, module)
    example = module["EraseProjection"]()

    edits = [{"edit": "erase", "method": "closed-form", "concept": "star"}]
    spec = parse_spec(json.dumps({"editspec": 1, "name": "t", "base": {"path": "tiny"}, "edits": edits}))
    edit = spec.edits[0]
    assert isinstance(edit, Erase)
    edit = dataclasses.replace(edit, method="projection")  # type: ignore[arg-type]
    assert example.accepts(edit)

    context = PassContext(
        spec=spec,
        checkpoint=Checkpoint.open(tiny_checkpoint),
        upstream={},
        seed=0,
        device=torch.device("cpu"),
        cache=StageCache(tmp_path),
        progress=Silent(),
    )
    deltas = example.run((edit,), context).deltas
    assert set(deltas) == set(example.targets((edit,), context.checkpoint.weights("unet").entries))
    assert deltas
    star = context.text().encode_tokens(["star"])[0][-2]
    for name, delta in deltas.items():
        edited = context.weight(name) + delta
        assert float((edited @ star).norm()) < 1e-4 * float((context.weight(name) @ star).norm())
