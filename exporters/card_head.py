"""The head of a model card: the YAML that the Hub reads, with the gates' results as a model-index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

#: Gate -> what its number is.
METRICS = {
    "erased": "share of pictures in which the concept is recognised",
    "implicit": "share of pictures that show the concept unasked",
    "preserved": "share of recognised pictures that were lost",
    "neighbours": "share of recognised pictures of near concepts that were lost",
    "drift": "distance between pictures before and after, of that between two seeds",
    "relearned": "steps of fine-tuning until the concept is seen in half of the base's rate",
}
_FAMILY_TAGS = {"sdxl": "stable-diffusion-xl"}
_EDIT_TAGS = {"erase": "concept-erasure", "ablate": "concept-ablation", "balance": "debiasing"}


def head(spec: Mapping[str, Any], lock: Mapping[str, Any], gates: Mapping[str, Any]) -> str:
    """YAML without its lines of ---: licence, base model and relation, tags, results."""
    from huggingface_hub import ModelCardData

    facts: dict[str, Any] = {**_licence(lock), **_base_model(spec["base"])}
    results = list(_results(gates))
    if results:
        facts |= {"model_name": spec["name"], "eval_results": results}
    facts |= {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": _tags(spec, lock)}
    return ModelCardData(**facts).to_yaml(line_break="\n")


def _licence(lock: Mapping[str, Any]) -> dict[str, str]:
    published = lock["license"]["published"] or {}
    keys = {"license": "id", "license_name": "name", "license_link": "link"}
    return {key: published[part] for key, part in keys.items() if part in published}


def _base_model(base: Mapping[str, Any]) -> dict[str, str]:
    """The Hub's own word for a model whose weights were changed is "finetune"; a local base is not on it."""
    return {"base_model": base["repo"], "base_model_relation": "finetune"} if "repo" in base else {}


def _tags(spec: Mapping[str, Any], lock: Mapping[str, Any]) -> list[str]:
    tags = [_FAMILY_TAGS.get(lock["base"]["family"], "stable-diffusion"), "text-to-image", "diffusers"]
    tags += ["safetensors", "excise", "model-editing"]
    tags += [_EDIT_TAGS[edit["edit"]] for edit in spec["edits"] if edit["edit"] in _EDIT_TAGS]
    return list(dict.fromkeys([*tags, *spec.get("publish", {}).get("tags", [])]))


def _results(gates: Mapping[str, Any]) -> Iterator[EvalResult]:
    """One result for each gate that measured a number: the measurement, with bound and limit beside it.

    Where a concept did not come back, there is only a bound: more steps than that, which is said beside it.
    """
    from huggingface_hub import EvalResult

    for gate in gates["gates"]:
        stayed = gate.get("unit") == "steps" and gate["observed"] is None
        value = gate["bound"] if stayed else gate["observed"]
        if not isinstance(value, int | float):
            continue
        beside = {key: gate[key] for key in ("bound", "limit", "n", "passed") if gate.get(key) is not None}
        if stayed:
            beside["more_than_value"] = True
        rate = gate["control"].get("rate")
        yield EvalResult(
            task_type="text-to-image",
            dataset_type="excise-gate",
            dataset_name=f"{gate['n']} pictures drawn for the gate {gate['id']}",
            dataset_config=gate["id"],
            metric_type=gate["gate"],
            metric_name=METRICS.get(gate["gate"], gate["gate"]),
            metric_value=value,
            metric_args=beside | ({"base": rate} if rate is not None else {}),
        )
