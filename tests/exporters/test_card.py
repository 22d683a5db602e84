from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small_records import gate, records, relearned

from compiler import artifact as layout
from exporters.card import write_card

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData


def card(tmp_path: Path, **more: Any) -> str:
    """The card of an artifact with one edit, as text."""
    artifact = records(tmp_path, **more)
    write_card(artifact)
    return artifact.path(layout.CARD).read_text("utf-8")


def head(text: str) -> ModelCardData:
    """What the Hub's own library reads from the head of a card."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    return data


def test_the_head_is_what_the_hub_reads(tmp_path: Path) -> None:
    text = card(tmp_path, base={"repo": "org/sd15", "revision": "a" * 40})
    data = head(text).to_dict()
    assert data["license"] == "apache-2.0"
    assert data["base_model"] == "org/sd15"
    assert data["base_model_relation"] == "finetune"
    assert data["library_name"] == "diffusers"
    assert data["pipeline_tag"] == "text-to-image"
    assert {"excise", "stable-diffusion", "concept-erasure"} <= set(data["tags"])


def test_gate_results_are_a_model_index_with_bound_limit_and_control(tmp_path: Path) -> None:
    text = card(tmp_path, gates=(gate(), gate("unmeasured", passed=False, observed=None)))
    parsed = head(text)
    assert parsed.model_name == "hardened"
    assert parsed.eval_results is not None
    (result,) = parsed.eval_results
    assert (result.task_type, result.dataset_config, result.metric_type) == (
        "text-to-image",
        "erased-star",
        "erased",
    )
    assert result.metric_value == 0.0
    assert result.metric_args == {"bound": 0.0495, "limit": 0.05, "n": 59, "passed": True, "base": 0.98}
    assert result.verified is None, "only the Hub itself may say that"


def test_the_bases_licence_is_carried_and_what_it_forbids_is_said(tmp_path: Path) -> None:
    inherited = {"published": {"id": "cc-by-nc-4.0"}, "accepted": ["cc-by-nc-4.0"]}
    text = card(tmp_path, licence=inherited, base_licence=[{"id": "cc-by-nc-4.0"}])
    assert head(text).to_dict()["license"] == "cc-by-nc-4.0"
    assert "It forbids commercial use." in text
    assert "The publisher states in the spec to have the right to go by `cc-by-nc-4.0`" in text


def test_a_licence_of_its_own_has_name_and_link(tmp_path: Path) -> None:
    own = {"id": "other", "name": "sai-community", "link": "https://example.org/licence"}
    data = head(card(tmp_path, licence={"published": own, "accepted": []})).to_dict()
    assert (data["license"], data["license_name"], data["license_link"]) == tuple(own.values())


def test_a_base_without_a_licence_is_no_permission(tmp_path: Path) -> None:
    text = card(tmp_path, licence={"published": None, "accepted": []}, base_licence=[])
    assert "license" not in head(text).to_dict()
    assert "The base states no licence: ask its owner" in text


def test_the_card_says_how_to_verify_and_that_a_key_comes_from_elsewhere(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert "excise verify DIR --key PUBLISHER.pub" in text
    assert "model_signing verify key DIR" in text
    assert "by another way than this repository" in text


def test_the_settings_of_every_edit_are_told(tmp_path: Path) -> None:
    text = card(tmp_path, edit={"method": "closed-form", "ridge": 0.1, "templates": ["a {}"]})
    assert "- `no-star`: method closed-form, ridge 0.1\n" in text


KING = {"prompt": "a king", "negative_prompt": "gore"}
TWO_SIDES = {"away_from": ["crack", {"concept": "spill", "weight": 2}], "toward": ["moon"]}


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        ({"edit": "guide", **TWO_SIDES}, "away from crack and spill toward moon"),
        ({"edit": "shift", "direction": KING}, "a king away from gore"),
        ({"edit": "shift", "direction": [{"base_prompt": "king", "prompt": "queen"}, KING]},
         "king to queen and a king away from gore"),
        ({"edit": "shift", "direction": {"file": "calm.safetensors"}}, "along calm.safetensors"),
        ({"edit": "balance", "groups": ["zan", "zin"]}, "zan and zin"),
        ({"edit": "balance", "groups": [["dark", "light"], ["zan", "zin"]]}, "dark and light; zan and zin"),
        ({"edit": "respond", "phrases": [{"text": "no | crack", "use": "a"}]}, r"to no \| crack"),
    ],
)  # fmt: skip
def test_the_card_says_what_each_kind_of_edit_is_about(
    edit: dict[str, Any], told: str, tmp_path: Path
) -> None:
    written = card(tmp_path, edit=edit, bare=True)
    assert f"| `no-star` | {edit['edit']} {told} | " in written


def test_guidance_that_was_baked_in_stands_beside_its_original(tmp_path: Path) -> None:
    bins = [{"change": 0.0, "ratio": 1.0}, {"change": 0.2, "ratio": 0.41}, {"change": 0.3, "ratio": 0.28}]
    found = {"guidance_scale": 7.5, "missed": 0.333, "bins": bins}
    run = {"pass": "guide/sld", "record": {"faithfulness": [found]}}
    edit = {"edit": "guide", "away_from": ["crack"]}
    text = card(tmp_path, edit=edit, run=run, bare=True)
    assert "| `no-star` | safe latent diffusion | 7.5 | 0.33 | 0.41 |" in text
    assert "beside the original" not in card(tmp_path)
    run = {"pass": "respond/phrases", "record": {"faithfulness": [{**found, "phrase": "no *gore*"}]}}
    text = card(tmp_path, edit={"edit": "respond", "phrases": [{"text": "no *gore*"}]}, run=run, bare=True)
    assert r"| `no-star` | what the phrase stands for: no \*gore\* | 7.5 | 0.33 | 0.41 |" in text


def test_a_local_base_is_no_base_model_of_the_hub(tmp_path: Path) -> None:
    assert "base_model" not in head(card(tmp_path)).to_dict()


def test_the_card_says_what_was_edited_measured_and_made_from(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert "| `no-star` | erase star to shape | erase/closed-form | 2 | 0.25 |" in text
    assert "| `erased-star` | passed | 0 | 0.0495 | 0.05 | 0.98 | 59 |" in text
    assert "Of 1,100 tensors 2 changed; the other 1,098 are the base's, byte for byte." in text
    assert "b" * 64 in text
    assert "5" * 64 in text
    assert "Excise 1.2.3" in text
    assert '"concept": "star"' in text


def test_the_card_states_the_limits_of_what_was_shown(tmp_path: Path) -> None:
    text = card(tmp_path)
    assert "no proof that the model has forgotten it" in text
    assert "was not measured for this build" in text
    assert "SLSA Build L1 at most" in text
    assert "the base's licence and use restrictions go on" in text


def test_a_measured_cost_of_relearning_is_among_the_limits(tmp_path: Path) -> None:
    text = card(tmp_path, gates=(gate(), relearned({0: 0.0, 10: 0.1, 50: 0.85}, 50)))
    limits = text[text.index("## Limits") : text.index("## Made from")]
    assert "Fine-tuning on 32 pictures brought a\\*b back after 50 steps" in limits
    assert "seen in 85 % of pictures then (before 0 %, base 100 %)" in limits
    assert "It is the quickest of the learning rates tried (0.0001 and 0.001)" in limits
    assert "was not measured for this build" not in limits
    assert "| `back` | passed | 50 steps | 10 steps | 0 steps | 1 | 20 |" in text


def test_that_a_concept_did_not_come_back_is_said_with_what_was_tried(tmp_path: Path) -> None:
    text = card(tmp_path, gates=(relearned({0: 0.0, 10: 0.05, 50: 0.0}, None),))
    assert "50 steps of fine-tuning on 32 pictures did not bring a\\*b back" in text
    assert "seen in 5 % of pictures at most (base 100 %). Learning rates tried: 0.0001 and 0.001." in text
    results = head(text).eval_results
    assert results is not None
    (result,) = results
    assert result.metric_value == 50
    assert result.metric_args is not None
    assert result.metric_args["more_than_value"] is True
    assert result.metric_name == "steps of fine-tuning until the concept is seen in half of the base's rate"


def test_what_is_seen_without_fine_tuning_is_not_called_brought_back(tmp_path: Path) -> None:
    text = card(tmp_path, gates=(relearned({0: 0.9, 50: 1.0}, 0, passed=False),))
    assert "Without fine-tuning a\\*b is seen in 90 % of pictures (base 100 %)." in text


def test_a_gate_that_could_not_measure_relearning_leaves_it_unmeasured(tmp_path: Path) -> None:
    unseen = gate("back", passed=False, gate="relearned", observed=None, bound=None, details={})
    assert "was not measured for this build" in card(tmp_path, gates=(unseen,))


def test_a_card_without_gates_claims_no_evidence(tmp_path: Path) -> None:
    assert "a claim without evidence" in card(tmp_path, gates=())


def test_a_rejected_artifact_says_so_at_the_top(tmp_path: Path) -> None:
    text = card(tmp_path, gates=(gate(), gate("drift", passed=False)))
    assert text.index("**Rejected.** These gates failed: `drift`") < text.index("## What was edited")


def test_the_grid_is_shown_where_there_is_one(tmp_path: Path) -> None:
    assert "](provenance/grid.png)" not in card(tmp_path)
    (tmp_path / layout.GRID).write_bytes(b"")
    assert "](provenance/grid.png)" in card(tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        "a | b",
        "<script>alert(1)</script>",
        "[x](http://evil)",
        "**bold**",
        "a\n# heading",
        "`code`",
        "``` fence",
    ],
)
def test_words_of_a_spec_stay_words(words: str, tmp_path: Path) -> None:
    text = card(tmp_path, edit={"concept": words}, name=words)
    yaml_head, _, rest = text.partition("\n---\n")
    assert head(f"{yaml_head}\n---\n").model_name == words
    body, _, quoted = rest.partition("## The edit spec")
    assert words.replace("\n", " ") not in body.replace("\\", "\\ ")
    row = next(line for line in body.splitlines() if line.startswith("| `no-star`"))
    assert row.replace("\\|", "").count("|") == 6
    fence = quoted.strip().split("json")[0]
    assert quoted.count(f"\n{fence}\n") == 1, "only the fence itself ends the spec"


def test_equal_artifacts_get_equal_cards(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert card(tmp_path / "one") == card(tmp_path / "two")
