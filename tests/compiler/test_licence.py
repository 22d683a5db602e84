from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compiler.cache import StageCache
from compiler.checkpoint import Checkpoint
from compiler.device import choose
from compiler.licence import Licence, base_licences, conflicts, licence_record, published_licence, stated_in
from compiler.plan import make_plan
from editspec import EditSpec, Publish, SpecErrors, parse_spec
from editspec.errors import InputError


def spec(base: Path, **publish: Any) -> EditSpec:
    document = {"editspec": 1, "name": "t", "base": {"path": str(base)}, "publish": publish}
    edit = {"edit": "erase", "concept": "star", "method": "closed-form"}
    return parse_spec(json.dumps({**document, "edits": [edit]}, indent=1))


def under(text: str, base: Path) -> Path:
    (base / "README.md").write_text(f"---\n{text}\n---\n# A base\n", "utf-8")
    return base


@pytest.mark.parametrize(
    ("licence", "forbidden", "handed_on"),
    [
        ("apache-2.0", (), False),
        ("mit", (), False),
        ("cc-by-4.0", (), False),
        ("cc0-1.0", (), False),
        ("creativeml-openrail-m", (), True),
        ("openrail++", (), True),
        ("cc-by-sa-4.0", (), True),
        ("agpl-3.0", (), True),
        ("cc-by-nc-4.0", ("commercial use",), True),
        ("cc-by-nc-sa-4.0", ("commercial use",), True),
        ("cc-by-nd-4.0", ("sharing a changed model",), True),
        ("cc-by-nc-nd-4.0", ("sharing a changed model", "commercial use"), True),
        ("fair-noncommercial-research-license", ("commercial use",), True),
        ("deepfloyd-if-license", ("commercial use",), True),
        ("apple-amlr", ("commercial use",), True),
    ],
)
def test_licences_of_the_hub_are_known_by_what_they_forbid(
    licence: str, forbidden: tuple[str, ...], handed_on: bool
) -> None:
    assert Licence(licence).forbids == forbidden
    assert Licence(licence).handed_on is handed_on


def test_another_licence_is_known_by_its_name() -> None:
    named = Licence("other", "flux-1-dev-non-commercial-license", "https://example.org")
    assert named.title == "flux-1-dev-non-commercial-license"
    assert named.forbids == ("commercial use",)
    assert Licence("other", "sai-nc-community").forbids == ("commercial use",)
    assert Licence("other", "announcement").forbids == ()


def test_what_the_base_states_is_carried_where_the_spec_says_nothing() -> None:
    base = (Licence("creativeml-openrail-m"),)
    assert published_licence(Publish(), base) == base[0]
    assert published_licence(Publish(license="mit"), (Licence("apache-2.0"),)) == Licence("mit")
    assert published_licence(Publish(), ()) is None


@pytest.mark.parametrize(
    ("base", "publish", "pointers"),
    [
        ("apache-2.0", {}, []),
        ("apache-2.0", {"license": "cc-by-nc-4.0"}, []),
        ("creativeml-openrail-m", {}, []),
        ("creativeml-openrail-m", {"license": "creativeml-openrail-m"}, []),
        ("creativeml-openrail-m", {"license": "apache-2.0"}, ["/publish/license"]),
        ("cc-by-nc-4.0", {}, ["/publish"]),
        ("cc-by-nc-4.0", {"license": "mit"}, ["/publish", "/publish/license"]),
        ("cc-by-nc-4.0", {"accept_licenses": ("cc-by-nc-4.0",)}, []),
        ("cc-by-nc-4.0", {"accept_licenses": ("cc-by-nd-4.0",)}, ["/publish"]),
        ("gpl-3.0", {"license": "agpl-3.0"}, ["/publish/license"]),
    ],
)
def test_what_a_licence_forbids_is_refused_unless_it_is_accepted_by_name(
    base: str, publish: dict[str, Any], pointers: list[str]
) -> None:
    found = list(conflicts(Publish(**publish), (Licence(base),)))
    assert [pointer for pointer, _, _ in found] == pointers
    assert all(base in message and "accept_licenses" in remedy for _, message, remedy in found)


def test_planning_refuses_at_the_place_in_the_spec(
    tiny_checkpoint: Path, copy_of: Callable[[Path], Path], tmp_path: Path
) -> None:
    base = under("license: cc-by-nc-4.0", copy_of(tiny_checkpoint))
    checkpoint = Checkpoint.open(base)
    cache = StageCache(tmp_path / "cache")
    with pytest.raises(SpecErrors) as refused:
        make_plan(spec(base, license="apache-2.0"), checkpoint, cache, choose("cpu"))
    text = str(refused.value)
    assert "'cc-by-nc-4.0' forbids commercial use" in text
    assert "at: /publish/license" in text
    accepted = spec(base, accept_licenses=["cc-by-nc-4.0"])
    make_plan(accepted, checkpoint, cache, choose("cpu"))
    assert licence_record(accepted, checkpoint) == {
        "published": {"id": "cc-by-nc-4.0"},
        "base": [{"id": "cc-by-nc-4.0"}],
        "accepted": ["cc-by-nc-4.0"],
    }


@pytest.mark.parametrize(
    ("card", "licences"),
    [
        ("", ()),
        ("# No head", ()),
        ("---\ntags: [x]\n---\n", ()),
        ("---\nlicense: MIT\n---\n", (Licence("mit"),)),
        ("\ufeff---\r\nlicense: mit\r\n---\r\ntext", (Licence("mit"),)),
        ("---\nlicense: [mit, cc-by-nc-4.0]\n---\n", (Licence("mit"), Licence("cc-by-nc-4.0"))),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n",
            (Licence("other", "own", "LICENSE"),),
        ),
        ("---\nlicense: mit\nlicense_name: ignored\n---\n", (Licence("mit"),)),
    ],
)
def test_the_licence_is_read_from_the_head_of_a_card(
    card: str, licences: tuple[Licence, ...], tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text(card, "utf-8", newline="")
    assert stated_in(tmp_path / "README.md") == licences


def test_a_head_that_is_no_yaml_is_refused_and_not_taken_for_no_licence(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n", "utf-8")
    with pytest.raises(InputError, match="its licence is unknown"):
        stated_in(tmp_path / "README.md")


def test_a_base_without_a_card_states_nothing(tiny_checkpoint: Path) -> None:
    assert base_licences(Checkpoint.open(tiny_checkpoint)) == ()


def test_the_embedded_model_is_under_the_packages_own_licence() -> None:
    from excise.embedded import register
    from excise.miniature.assets import MODEL

    register()
    assert base_licences(Checkpoint.open(MODEL)) == (Licence("apache-2.0"),)
