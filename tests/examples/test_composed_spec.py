from __future__ import annotations

from pathlib import Path

from compiler.base import open_base
from compiler.cache import StageCache
from compiler.device import choose
from compiler.plan import make_plan
from editspec import load_spec
from excise.embedded import register

SPEC = Path(__file__).parents[2] / "examples" / "composed.json"


def test_the_composed_example_plans_one_pass_for_each_of_its_five_kinds_of_edits(tmp_path: Path) -> None:
    register()
    spec = load_spec(SPEC)
    plan = make_plan(spec, open_base(spec.base, spec.folder), StageCache(tmp_path), choose("cpu"))
    kinds = [spec.edits[at].edit for planned in plan.passes for at in planned.edits]
    assert kinds == ["ablate", "shift", "guide", "balance", "erase"]
