"""Every spec in `golden/` is wrong; the .txt is what the user reads. To renew: EXCISE_RENEW_GOLDEN=1."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from editspec import SpecErrors, parse_spec

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in GOLDEN.glob("*.json"))


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_spec_reads_as_it_did_before(case: str) -> None:
    text = (GOLDEN / f"{case}.json").read_text("utf-8")
    with pytest.raises(SpecErrors) as caught:
        parse_spec(text, f"{case}.json")
    rendered = caught.value.render() + "\n"
    expected = GOLDEN / f"{case}.txt"
    if os.environ.get("EXCISE_RENEW_GOLDEN"):
        expected.write_text(rendered, "utf-8")
    assert rendered == expected.read_text("utf-8")


def test_every_rendered_error_belongs_to_a_case() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.txt")) == CASES
