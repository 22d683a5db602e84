"""What the base's licence allows: carried into the result, and refused where it forbids what publishing does.

Terms are read from the licence ids that the Hub knows. This is a guard against oversight, no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editspec.errors import InputError, listed, quoted

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from editspec import EditSpec, Publish

CARD = "README.md"
MAX_CARD_BYTES = 2**22
OTHER = "other"

_HEAD = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_WORD = re.compile(r"[a-z]+")

# Parts of licence ids and names, as words.
_NON_COMMERCIAL = {"nc", "noncommercial", "research", "nonprofit"}
_NO_DERIVATIVES = {"nd", "noderivatives", "noderivs"}
# The result must be under the same licence: use restrictions and copyleft are handed on.
_HANDED_ON = {"rail", "openrail", "sa", "gpl", "agpl", "lgpl", "osl", "eupl", "odbl", "gfdl", OTHER}
_SPECIAL = {"deepfloyd-if-license": _NON_COMMERCIAL, "apple-amlr": _NON_COMMERCIAL}

_EMBEDDED: dict[Path, tuple[Licence, ...]] = {}


@dataclass(frozen=True)
class Licence:
    """A licence by its Hub id; `name` and `link` go with the id "other"."""

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def title(self) -> str:
        """What a spec calls it to accept it: the id, or the name of another licence."""
        return self.name if self.id == OTHER and self.name else self.id

    @property
    def _words(self) -> set[str]:
        text = f"{self.id} {self.name or ''}".casefold().replace("non-commercial", "noncommercial")
        return set(_WORD.findall(text)) | _SPECIAL.get(self.id, set())

    @property
    def forbids(self) -> tuple[str, ...]:
        """What may not be done with a derivative, in words; () for none that is known."""
        found = []
        if self._words & _NO_DERIVATIVES:
            found.append("sharing a changed model")
        if self._words & _NON_COMMERCIAL:
            found.append("commercial use")
        return tuple(found)

    @property
    def handed_on(self) -> bool:
        """Whether a derivative must be under this licence too."""
        return bool(self._words & _HANDED_ON) or bool(self.forbids)

    def as_dict(self) -> dict[str, str]:
        """The same as JSON, without what is not known."""
        facts = {"id": self.id, "name": self.name, "link": self.link}
        return {key: value for key, value in facts.items() if value is not None}


def register_embedded(folder: Path, licence: str) -> None:
    """Say what an embedded model is under; called by the package that ships it, without a card of its own."""
    _EMBEDDED[folder.resolve()] = (Licence(licence),)


def base_licences(checkpoint: Checkpoint) -> tuple[Licence, ...]:
    """What the base's own model card states; () where it states nothing. Raises `InputError`."""
    return stated_in(checkpoint.root / CARD) or _EMBEDDED.get(checkpoint.root.resolve(), ())


def stated_in(card: Path) -> tuple[Licence, ...]:
    """The licences in the head of a Hugging Face model card; usually one. Raises `InputError`."""
    if not card.is_file():
        return ()
    head = _head(card)
    stated = head.get("license")
    ids = stated if isinstance(stated, list) else [stated]
    name, link = (_string(head.get(key)) for key in ("license_name", "license_link"))
    return tuple(
        Licence(one, *((name, link) if one == OTHER else (None, None)))
        for one in (str(one).strip().casefold() for one in ids if one)
    )


def published_licence(publish: Publish, base: tuple[Licence, ...]) -> Licence | None:
    """The result's licence: the spec's, else the base's; None where neither states one."""
    if publish.license is not None:
        return Licence(publish.license, publish.license_name, publish.license_link)
    return base[0] if base else None


def licence_record(spec: EditSpec, checkpoint: Checkpoint) -> dict[str, Any]:
    """JSON facts for the lock: the result's licence, the base's, and what the publisher accepted by name."""
    base = base_licences(checkpoint)
    published = published_licence(spec.publish, base)
    return {
        "published": published.as_dict() if published else None,
        "base": [one.as_dict() for one in base],
        "accepted": sorted(set(spec.publish.accept_licenses) & {one.title for one in base}),
    }


def require_allowed(spec: EditSpec, checkpoint: Checkpoint) -> None:
    """Raise `SpecErrors` where publishing the result goes against a licence of the base.

    A spec that names the licence under publish.accept_licenses takes that on itself.
    """
    if findings := list(conflicts(spec.publish, base_licences(checkpoint))):
        raise spec.errors(findings)


def conflicts(publish: Publish, base: tuple[Licence, ...]) -> Iterator[tuple[str, str, str]]:
    """JSON pointer, message and remedy of everything that the base's licences forbid."""
    for licence in base:
        if licence.title in publish.accept_licenses:
            continue
        accept = f'where you have the right to, say "accept_licenses": ["{licence.title}"] under "publish"'
        if licence.forbids:
            forbidden = listed(licence.forbids)
            yield "/publish", f"the base's licence {quoted(licence.title)} forbids {forbidden}", accept
        published = published_licence(publish, base)
        if licence.handed_on and published is not None and published.title != licence.title:
            handed, other = quoted(licence.title), quoted(published.title)
            what = (
                f"the base's licence {handed} is handed on: a changed model cannot be published under {other}"
            )
            yield "/publish/license", what, f'leave "license" out to carry the base\'s; {accept}'


def _head(card: Path) -> Mapping[str, Any]:
    import yaml

    try:
        with card.open("rb") as file:
            text = file.read(MAX_CARD_BYTES).decode("utf-8-sig", "replace")
        found = _HEAD.match(text)
        head = yaml.safe_load(found[1]) if found else None
    except OSError as error:
        raise InputError(str(card), f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        remedy = "mend the YAML between its two lines of ---"
        raise InputError(
            str(card), "has a head that is no YAML, so its licence is unknown", remedy
        ) from error
    return head if isinstance(head, dict) else {}


def _string(value: Any) -> str | None:
    return str(value) if value else None
