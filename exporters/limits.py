"""What a build's measurements do not show, in Markdown: for the model card and for the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from compiler.artifact import GATES
from editspec.errors import listed
from exporters.markdown import code, text

LIMITS = (
    (
        "An edit changes what the model does with a concept; it is no proof that the model has forgotten it. "
        "Whoever holds the weights can bring a concept back by fine-tuning on a few images, by a learned "
        "embedding (textual inversion), or by subtracting the published change."
    ),
    (
        "The gates hold for the prompts, seeds, sampler, guidance scale and evaluators named in "
        f"`{GATES}`, at the confidence stated there, and for nothing else."
    ),
    "An evaluator can be wrong in both directions; a rate below its own error rate says nothing.",
    "Concepts that are near an edited one may have changed without a gate noticing it.",
)

UNMEASURED = (
    "How many steps of fine-tuning bring a concept back was not measured for this build: take the cost of "
    "relearning to be small."
)


def limits(gates: Mapping[str, Any]) -> list[str]:
    """Sentences on what is not shown; what relearning took, as far as a gate measured it, is among them."""
    return [LIMITS[0], *_relearning(gates), *LIMITS[1:]]


def _relearning(gates: Mapping[str, Any]) -> Iterator[str]:
    """What it took to bring each concept back, as far as a gate `relearned` measured it."""
    measured = [one for one in gates["gates"] if one["gate"] == "relearned" and one["details"].get("curve")]
    if not measured:
        yield UNMEASURED
    for result in measured:
        found, base = result["details"], _percent(result["control"]["rate"])
        (concept,), back = map(text, result["plan"]["concepts"]), found["steps_to_return"]
        rates = {point["steps"]: point["rate"] for point in found["curve"]}
        slower = [other["learning_rate"] for other in found["slower"]]
        tried = listed(f"{rate:g}" for rate in sorted([found["learning_rate"], *slower]))
        how = f"on {found['images']} pictures"
        if back is None:
            told = (
                f"{found['max_steps']} steps of fine-tuning {how} did not bring {concept} back: seen in "
                f"{_percent(max(rates.values()))} of pictures at most (base {base}). Learning rates tried: "
                f"{tried}. More steps, other settings or other means may bring it back."
            )
        elif back == 0:
            told = f"Without fine-tuning {concept} is seen in {_percent(rates[0])} of pictures (base {base})."
        else:
            told = (
                f"Fine-tuning {how} brought {concept} back after {back} steps: seen in "
                f"{_percent(rates[back])} of pictures then (before {_percent(rates[0])}, base {base}). "
                f"It is the quickest of the learning rates tried ({tried}); other means may be quicker."
            )
        yield f"{told} This is the gate {code(result['id'])}; the whole curve is in `{GATES}`."


def _percent(rate: float) -> str:
    return f"{100 * rate:.0f} %"
