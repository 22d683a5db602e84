from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from compiler import plan as planning
from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.device import Device
from compiler.passes import EditPass, PassContext, PassCost, PassResult
from compiler.plan import Plan, make_plan
from compiler.safetensors_file import TensorEntry
from compiler.selections import select
from editspec import Edit, EditSpec, parse_spec
from editspec.errors import SpecErrors

CPU = Device("cpu", "x86_64 test", 2**33, 2)


class Planned(EditPass):
    """Can be planned, and says so if someone runs it."""

    version = 1

    def accepts(self, edit: Edit) -> bool:
        return self.name == f"{edit.edit}/{edit.method}"

    def targets(self, edits: Sequence[Edit], entries: Mapping[str, TensorEntry]) -> tuple[str, ...]:
        return select(entries, "cross-attention-kv")

    def cost(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> PassCost:
        return PassCost(evals=1000 * len(edits), seconds=2.0, memory_bytes=10**9)

    def run(self, edits: tuple[Edit, ...], context: PassContext) -> PassResult:
        raise AssertionError("planning ran a pass")


class Distilled(Planned):
    name, order, merges = "erase/esd", 10, False


class Solved(Planned):
    name, order, merges = "erase/closed-form", 90, True

    def check(self, edits: Sequence[Edit], spec: EditSpec, checkpoint: Checkpoint) -> list[tuple[str, str]]:
        return [(spec.pointer(edit), "is not liked") for edit in edits if edit.id == "unliked"]


PASSES = (Solved(), Distilled())


def edit(name: str, method: str = "esd", **more: Any) -> dict[str, Any]:
    return {"id": name, "edit": "erase", "concept": name, "method": method, **more}


def spec_of(*edits: dict[str, Any], base: Path = Path("x"), **more: Any) -> EditSpec:
    document = {"editspec": 1, "name": "test", "base": {"path": str(base)}, "edits": list(edits), **more}
    return parse_spec(json.dumps(document), "test.json")


def plan_of(spec: EditSpec, base: Path, cache: StageCache | None = None, device: Device = CPU) -> Plan:
    return make_plan(spec, Checkpoint.open(base), cache or StageCache(), device, PASSES)


def keys(plan: Plan) -> list[str]:
    return [planned.key for planned in plan.passes]


def test_passes_run_in_their_order_and_merge_where_they_can(tiny_checkpoint: Path) -> None:
    spec = spec_of(edit("moon", "closed-form"), edit("star"), edit("tree", "closed-form"), edit("house"))
    plan = plan_of(spec, tiny_checkpoint)
    assert [(planned.edit_pass.name, planned.ids) for planned in plan.passes] == [
        ("erase/esd", ("star",)),
        ("erase/esd", ("house",)),
        ("erase/closed-form", ("moon", "tree")),
    ]
    assert plan.evals == 4000


def test_each_pass_tells_what_it_touches_and_what_it_takes(tiny_checkpoint: Path) -> None:
    (planned,) = plan_of(spec_of(edit("star")), tiny_checkpoint).passes
    entries = Checkpoint.open(tiny_checkpoint).weights("unet").entries
    assert planned.targets == select(entries, "cross-attention-kv")
    assert planned.parameters == sum(entries[name].parameters for name in planned.targets)
    assert planned.seconds > 2.0, "the evals take time too"
    assert planned.memory_bytes == 10**9


def test_every_edit_without_an_engine_is_refused_by_name_at_its_place(tiny_checkpoint: Path) -> None:
    shift = {"id": "calm", "edit": "shift", "direction": {"prompt": "a", "negative_prompt": "spill"}}
    ablate = {"id": "plain", "edit": "ablate", "concept": "dotted", "anchor": "plain"}
    with pytest.raises(SpecErrors) as caught:
        plan_of(spec_of(edit("star"), shift, ablate), tiny_checkpoint)
    found = [(one.pointer, one.message, one.remedy) for one in caught.value.diagnostics]
    offered = "there are erase/closed-form and erase/esd"
    assert found == [
        ("/edits/1/edit", "edit 'calm': this version has no engine for 'shift/direction'", offered),
        ("/edits/2/edit", "edit 'plain': this version has no engine for 'ablate/concept'", offered),
    ]


def test_what_a_pass_finds_wrong_on_this_checkpoint_is_refused_at_its_place(tiny_checkpoint: Path) -> None:
    with pytest.raises(SpecErrors, match="is not liked") as caught:
        plan_of(spec_of(edit("star"), edit("unliked", "closed-form")), tiny_checkpoint)
    assert [one.pointer for one in caught.value.diagnostics] == ["/edits/1"]


def test_changing_one_edit_moves_the_keys_of_what_depends_on_it_only(tiny_checkpoint: Path) -> None:
    first = keys(plan_of(spec_of(edit("star"), edit("house"), edit("moon", "closed-form")), tiny_checkpoint))
    last_changed = spec_of(edit("star"), edit("house"), edit("moon", "closed-form", ridge=0.5))
    middle_changed = spec_of(edit("star"), edit("house", steps=7), edit("moon", "closed-form"))
    assert keys(plan_of(last_changed, tiny_checkpoint))[:2] == first[:2]
    assert keys(plan_of(last_changed, tiny_checkpoint))[2] != first[2]
    moved = keys(plan_of(middle_changed, tiny_checkpoint))
    assert moved[0] == first[0]
    assert moved[1] != first[1]
    assert moved[2] != first[2], "a pass starts from the result of those before it"


@pytest.mark.parametrize(
    "change", ["seed", "preserve", "device", "base", "pass version", "library", "name only", "gates only"]
)
def test_a_key_names_everything_that_influences_the_result_and_nothing_else(
    change: str, tiny_checkpoint: Path, tiny_checkpoint_fp16: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keys(plan_of(spec_of(edit("star")), tiny_checkpoint))
    more: dict[str, Any] = {}
    base, device = tiny_checkpoint, CPU
    match change:
        case "seed":
            more = {"seed": 8}
        case "preserve":
            more = {"preserve": {"concepts": ["moon"]}}
        case "device":
            device = Device("cuda", "NVIDIA Imagined", 2**33, 2)
        case "base":
            base = tiny_checkpoint_fp16
        case "pass version":
            monkeypatch.setattr(Planned, "version", 2)
        case "library":
            monkeypatch.setattr(planning, "library_versions", lambda: {"torch": "of tomorrow"})
        case "name only":
            more = {"name": "another"}
        case "gates only":
            more = {"gates": [{"gate": "drift", "prompts": ["a moon"], "max_drift": 0.5}]}
    after = keys(plan_of(spec_of(edit("star"), **more), base, device=device))
    assert (after == before) is change.endswith("only")


def test_the_plan_says_what_the_cache_holds_but_its_stored_form_does_not(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    cache = StageCache(tmp_path)
    spec = spec_of(edit("star"))
    before = plan_of(spec, tiny_checkpoint, cache)
    cache.put(before.passes[0].key, lambda folder: None)
    after = plan_of(spec, tiny_checkpoint, cache)
    assert (before.passes[0].cached, after.passes[0].cached) == (False, True)
    assert (before.evals, after.evals) == (1000, 0)
    assert before.as_dict() == after.as_dict()
    assert json.loads(json.dumps(after.outlook()))["passes"][0]["cached"] is True


def test_where_a_local_base_lies_is_no_part_of_the_plan(tiny_checkpoint: Path, copy_of: Any) -> None:
    here = plan_of(spec_of(edit("star"), base=tiny_checkpoint), tiny_checkpoint)
    there = copy_of(tiny_checkpoint)
    moved = plan_of(spec_of(edit("star"), base=there.parent / tiny_checkpoint.name), there)
    assert here.as_dict() == moved.as_dict()


def test_planning_loads_neither_torch_nor_numpy(tiny_checkpoint: Path, tmp_path: Path) -> None:
    document = {"editspec": 1, "name": "t", "base": {"path": str(tiny_checkpoint)}, "edits": [edit("star")]}
    document["preserve"] = {"concepts": ["ring"], "auto": 3}
    (tmp_path / "spec.json").write_text(json.dumps(document), "utf-8")
    script = (
        "import sys\nfrom pathlib import Path\nfrom compiler.base import open_base\n"
        "from compiler.cache import StageCache\nfrom compiler.device import choose\n"
        "from compiler.plan import make_plan\nfrom editspec import load_spec\n"
        "spec = load_spec(sys.argv[1])\n"
        "make_plan(spec, open_base(spec.base, spec.folder), StageCache(), choose())\n"
        "heavy = ('torch', 'numpy', 'diffusers', 'transformers', 'scipy')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "spec.json")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
