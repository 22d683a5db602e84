"""Records as a build of one edit writes them, with what a test wants to be different."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compiler import artifact as layout
from compiler.artifact import Artifact


def gate(name: str = "erased-star", passed: bool = True, **more: Any) -> dict[str, Any]:
    facts: dict[str, Any] = {"id": name, "gate": "erased", "passed": passed, "reason": "star seen in 0 of 59"}
    facts |= {"observed": 0.0, "bound": 0.0495, "limit": 0.05, "n": 59, "control": {"rate": 0.98}}
    return {**facts, **more}


def plan(*concepts: str) -> dict[str, Any]:
    """What was fixed before a gate measured."""
    sampling = {"scheduler": "DDIM", "steps": 15, "guidance_scale": 5.0}
    return {"concepts": list(concepts), "confidence": 0.95, "sampling": sampling}


def relearned(rates: dict[int, float], back: int | None, **more: Any) -> dict[str, Any]:
    """What a gate `relearned` found: rates by steps, and the steps at which the concept was back."""
    curve = [{"steps": steps, "rate": rate} for steps, rate in rates.items()]
    held = [steps for steps in rates if back is None or steps < back]
    details: dict[str, Any] = {"curve": curve, "steps_to_return": back, "images": 32, "max_steps": 50}
    details |= {"learning_rate": 1e-4, "slower": [{"learning_rate": 1e-3, "curve": curve}]}
    facts: dict[str, Any] = {"gate": "relearned", "unit": "steps", "observed": back}
    facts |= {
        "bound": held[-1] if held else None,
        "limit": 0,
        "n": 20,
        "control": {"rate": 1.0},
        "plan": plan("a*b"),
    }
    return gate("back", **facts, details=details, **more)


def records(tmp_path: Path, *, gates: tuple[dict[str, Any], ...] = (gate(),), **more: Any) -> Artifact:
    """An artifact of records alone."""
    artifact = Artifact(tmp_path)
    about = {} if more.pop("bare", False) else {"concept": "star", "anchor": "shape"}
    edit = {"id": "no-star", "edit": "erase", **about, **more.pop("edit", {})}
    base = more.pop("base", {"path": "sd15"})
    licence = more.pop("licence", {"published": {"id": "apache-2.0"}, "accepted": []})
    stated = more.pop("base_licence", [{"id": "creativeml-openrail-m"}])
    tensors = [{"tensor": "a", "relative": 0.01}, {"tensor": "b", "relative": 0.25}]
    tensors = [{**tensor, "parameters": 600} for tensor in tensors]
    run = {"edits": [edit["id"]], "pass": "erase/closed-form", "tensors": tensors, "evals": 1234}
    run |= more.pop("run", {})
    measured = more.pop("measured", {})
    spec = {"name": "hardened", "base": base, "edits": [edit], **more}
    lock = {
        "spec": "5" * 64,
        "base": {**base, "family": "sd1", "digest": "b" * 64, "license": stated},
        "license": licence,
        "libraries": {"excise": "1.2.3", "torch": "2.13"},
        "device": {"class": "cpu x86_64 avx2"},
    }
    artifact.write(layout.SPEC, spec)
    artifact.write(layout.LOCK, lock)
    artifact.write(layout.EDITS, {"passes": [run], "tensors": {"total": 1100, "changed": 2, "copied": 1098}})
    artifact.write(
        layout.GATES, {"passed": all(one["passed"] for one in gates), "gates": list(gates), **measured}
    )
    return artifact
