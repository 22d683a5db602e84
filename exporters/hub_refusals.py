"""What the Hub answers when it does not do what was asked, told as where, what and how to mend it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import httpx2
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from editspec.errors import InputError
from exporters.hub_silence import hidden

PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
NO_ROOM = frozenset({402, 413, 507})
ROOM_WORDS = re.compile(r"quota|storage.{0,20}limit|limit reached|out of storage|payment", re.IGNORECASE)
LONGEST = 300

AGAIN = "run the same command again: it goes on where it stopped, and nothing half-done is visible"


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of the client, also where the client has wrapped it."""
    for link in _chain(error):
        if isinstance(link, HfHubHTTPError):
            return link.response.status_code
    return None


def is_passing(error: BaseException) -> bool:
    """Whether the same call may work in a while: busy or failing servers, lost connections, cut answers."""
    status = status_of(error)
    if status is not None:
        return status in PASSING
    passing = (httpx2.TransportError, json.JSONDecodeError, ConnectionError)
    chain = list(_chain(error))
    return any(isinstance(link, passing) for link in chain) and not any(
        isinstance(link, (OfflineModeIsEnabled, httpx2.UnsupportedProtocol)) for link in chain
    )


def refusal(where: str, doing: str, error: BaseException, secrets: Sequence[str]) -> InputError:
    """The one message for a fault of the client while `doing` something at the repository `where`."""
    said, status = _said(error, secrets), status_of(error)
    if any(isinstance(link, OfflineModeIsEnabled) for link in _chain(error)):
        return InputError(where, "cannot be reached: HF_HUB_OFFLINE is set", "unset it")
    if isinstance(error, HFValidationError):
        return InputError(where, said, "write it as owner/name")
    if status == 401:
        what = f"{doing}: the token is missing, wrong or expired ({said})"
        return InputError(where, what, "log in with `hf auth login` or renew HF_TOKEN, then " + AGAIN)
    if status in NO_ROOM or (not is_passing(error) and ROOM_WORDS.search(said)):
        return InputError(
            where, f"{doing}: no room there ({said})", "free storage or raise its limit, then " + AGAIN
        )
    if status == 403:
        return InputError(where, f"{doing}: forbidden ({said})", "use a token that may write there")
    if status == 404:
        what = f"{doing}: not found, or the token may not see it ({said})"
        return InputError(where, what, "check the name and what the token may do")
    if is_passing(error):
        return InputError(where, f"{doing}: the server does not answer as it should ({said})", AGAIN)
    return InputError(where, f"{doing}: refused ({said})")


def _said(error: BaseException, secrets: Sequence[str]) -> str:
    """The innermost explanation in one line: what the server said, else what the client did."""
    chain = list(_chain(error))
    told = next((link for link in chain if isinstance(link, HfHubHTTPError)), chain[-1])
    text = str(told)
    if isinstance(told, HfHubHTTPError):
        response = told.response
        text = f"{response.status_code} {told.server_message or response.reason_phrase}"
    if told is not error and isinstance(error, RuntimeError):
        text = f"{error} {text}"  # which file it was
    flat = " ".join(hidden(text, secrets).split()) or type(told).__name__
    return flat if len(flat) <= LONGEST else flat[: LONGEST - 1] + "…"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, outermost first."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
