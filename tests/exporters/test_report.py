from __future__ import annotations

import re
import tempfile
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_records import gate, plan, records, relearned

from compiler import artifact as layout
from compiler.artifact import Artifact
from exporters.report import page, whole_page, write_report

PROMPTS = [
    {"prompt": "a star", "base": 29, "edited": 0, "n": 30},
    {"prompt": "stars", "base": 28, "edited": 1, "n": 29},
]
FLAGGED = [{"prompt": "stars", "seed": 4711, "by": ["oracle-a"]}]
NEIGHBOUR = {
    "concept": "sixstar",
    "near": "star",
    "cosine": 0.9,
    "base": 12,
    "edited": 11,
    "loss": 1 / 12,
    "n": 12,
}
FAITHFUL = {
    "guidance_scale": 7.5,
    "missed": 0.333,
    "bins": [{"change": 0.2, "ratio": 0.41}, {"change": 0.0, "ratio": 9.0}],
}
VOID = {"meta", "img", "br"}
CELLS = {"td", "th", "p", "span", "summary"}  # their ends part words


class Page(HTMLParser):
    """A page's elements, its text, and whether every element is closed where it belongs."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.open: list[str] = []
        self.words: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in CELLS:
            self.words.append(" ")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def told(tmp_path: Path, **more: Any) -> str:
    """What the report of an artifact with one edit says."""
    return Page(page(records(tmp_path, **more), "grid.png")).text


def test_the_report_says_what_was_measured_with_bound_limit_and_control(tmp_path: Path) -> None:
    text = told(tmp_path)
    assert "passed All 1 acceptance gates held." in text
    assert "erased-star passed 0.0 % 5.0 % 5.0 % 98.0 % 59" in text
    assert "erased-star: star seen in 0 of 59" in text


def test_every_prompt_is_counted_and_what_was_still_seen_can_be_drawn_again(tmp_path: Path) -> None:
    details = {"prompts": PROMPTS, "flagged": FLAGGED}
    text = told(tmp_path, gates=(gate(plan=plan("star"), details=details),))
    assert "a star 29 0 30 stars 28 1 29" in text
    assert "“stars” with seed 4711 (by oracle-a)" in text
    assert "confidence 95.0 %, DDIM with 15 steps at guidance 5.0" in text


def test_a_curve_shows_how_relearning_went(tmp_path: Path) -> None:
    artifact = records(tmp_path, gates=(relearned({0: 0.0, 10: 0.1, 50: 0.85}, 50),))
    html = page(artifact, "")
    (points,) = re.findall(r'<polyline class="interval" points="([^"]+)"', html)
    heights = [float(pair.split(",")[1]) for pair in points.split()]
    assert heights == sorted(heights, reverse=True), "the rate rises, so the line climbs"
    assert "Fine-tuning on 32 pictures brought a*b back after 50 steps" in Page(html).text
    assert "back passed 50 steps 10 steps 0 steps 100.0 % 20" in Page(html).text


def test_a_failed_gate_makes_the_report_say_rejected(tmp_path: Path) -> None:
    text = told(tmp_path, gates=(gate(), gate("drift", passed=False)))
    assert "rejected A gate failed: this is kept for study; do not publish it." in text
    assert "acceptance gates held" not in text


def test_without_gates_the_report_claims_nothing(tmp_path: Path) -> None:
    assert "not measured The spec has no gates" in told(tmp_path, gates=())


def test_neighbours_are_listed_with_what_they_lost(tmp_path: Path) -> None:
    text = told(tmp_path, measured={"collateral": {"concepts": [NEIGHBOUR], "worst": "sixstar"}})
    assert "sixstar (most lost) star 0.90 12 11 8.3 12" in text
    assert "What lies near" not in told(tmp_path)


def test_edits_are_told_with_their_evals_and_how_far_they_moved(tmp_path: Path) -> None:
    text = told(tmp_path, edit={"method": "closed-form"})
    assert "no-star erase star to shape settings method closed-form erase/closed-form" in text
    assert "2 1,200 1,234 13.0 % 25.0 %" in text
    assert "Of 1,100 tensors 2 changed; the other 1,098 are the base's, byte for byte." in text


def test_baked_guidance_stands_beside_its_original_by_timesteps(tmp_path: Path) -> None:
    run = {"pass": "guide/sld", "record": {"faithfulness": [FAITHFUL]}}
    html = page(records(tmp_path, edit={"edit": "guide", "away_from": ["crack"]}, run=run, bare=True), "")
    assert "no-star safe latent diffusion 7.5 0.33" in Page(html).text
    assert 'aria-label="0.41"' in html, "timesteps at which the original does nothing are left out"


def test_what_later_edits_did_to_an_earlier_one_is_told(tmp_path: Path) -> None:
    run = {"interference": {"done": 0.0823, "later": 0.0257, "ratio": 0.3127}}
    assert "no-star erase/closed-form 0.0823 0.0257 31.3 %" in told(tmp_path, run=run)


def test_the_report_says_what_it_does_not_show_and_how_to_verify(tmp_path: Path) -> None:
    text = told(tmp_path)
    assert "no proof that the model has forgotten it" in text
    assert "excise verify DIR --key PUBLISHER.pub" in text
    assert "the base's licence and use restrictions go on" in text


def test_the_picture_beside_the_report_is_referred_to_and_in_a_page_alone_it_is_inside(
    tmp_path: Path,
) -> None:
    artifact = records(tmp_path)
    assert Page(whole_page(artifact)).tags["img"] == 0
    artifact.path(layout.GRID).write_bytes(b"\x89PNG")
    write_report(artifact)
    assert '<img src="grid.png"' in artifact.path(layout.REPORT).read_text("utf-8")
    assert '<img src="data:image/png;base64,iVBORw=="' in whole_page(artifact)


def test_the_report_runs_nothing_and_loads_nothing_from_outside(tmp_path: Path) -> None:
    artifact = records(tmp_path, gates=(gate(), relearned({0: 0.0, 50: 0.85}, 50)))
    artifact.path(layout.GRID).write_bytes(b"\x89PNG")
    found = Page(whole_page(artifact))
    assert not {"script", "link", "iframe", "object", "form"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert [value for name, value in found.attributes if name == "src"] == ["data:image/png;base64,iVBORw=="]


WORDS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zs", "Zl", "Zp"]), min_size=1, max_size=40
)


@settings(max_examples=20)
@given(words=WORDS)
@pytest.mark.parametrize("known", ["<b>&amp;*x*`", "[x](javascript:alert)", "</style><script>", "{{ spec }}"])
def test_words_of_a_spec_stay_words(known: str, words: str) -> None:
    spoken = known + words
    details = {"prompts": [{**PROMPTS[0], "prompt": spoken}]}
    facts = {"reason": spoken, "details": details}

    def shown(concept: str, **facts: Any) -> Page:
        with tempfile.TemporaryDirectory() as folder:
            measured = {"collateral": {"concepts": [{**NEIGHBOUR, "near": concept}], "worst": None}}
            edit = {"concept": concept}
            return Page(
                page(
                    records(Path(folder), gates=(gate(**facts),), edit=edit, measured=measured, name=concept),
                    "",
                )
            )

    plain = shown("star", reason="star", details={"prompts": PROMPTS[:1]})
    hostile = shown(spoken, **facts)
    assert hostile.tags == plain.tags
    assert hostile.text.count(spoken) >= 5, "title, heading, edit, reason, prompt, neighbour"


def test_equal_artifacts_get_equal_reports(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert page(records(tmp_path / "one"), "") == page(records(tmp_path / "two"), "")


def test_a_compiled_artifact_has_its_report_in_the_manifest(tiny_artifact: Path) -> None:
    from exporters.manifest import read_manifest

    artifact = Artifact(tiny_artifact)
    assert artifact.path(layout.REPORT).read_text("utf-8") == page(artifact, "grid.png")
    assert layout.REPORT in read_manifest(tiny_artifact)
    text = Page(page(artifact, "grid.png")).text
    assert "tiny passed All 1 acceptance gates held." in text
    assert str(tiny_artifact.parent) not in text
