"""Keeping tokens and signed addresses out of messages and logs while the Hub's client works.

An upload address carries its permission in its query, so a query is as secret as a token.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator, Sequence

from huggingface_hub import constants
from huggingface_hub.utils.tqdm import disable_progress_bars

TOKEN = re.compile(r"\b(?:hf_|hf_oauth_|Bearer )[A-Za-z0-9_.=-]{8,}")
QUERY = re.compile(r"(https?://[^\s'\"<>?]+)\?[^\s'\"<>]*")
LOGGERS = ("", "huggingface_hub", "httpx2")


def hidden(text: str, secrets: Sequence[str]) -> str:
    """`text` without tokens and without the queries of addresses."""
    for secret in secrets:
        text = text.replace(secret, "<token>")
    return QUERY.sub(r"\1", TOKEN.sub("<token>", text))


@contextlib.contextmanager
def quiet(secrets: Sequence[str]) -> Iterator[None]:
    """Hide them in every log record that is handled meanwhile; progress bars only on a terminal."""
    hiding = _Hiding(tuple(secrets))
    handlers = {id(handler): handler for name in LOGGERS for handler in logging.getLogger(name).handlers}
    for handler in handlers.values():
        handler.addFilter(hiding)
    chosen = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None  # by the user, who knows better
    bars = contextlib.nullcontext() if chosen or sys.stderr.isatty() else disable_progress_bars()
    try:
        with bars:
            yield
    finally:
        for handler in handlers.values():
            handler.removeFilter(hiding)


class _Hiding(logging.Filter):
    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__()
        self._secrets = secrets

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = hidden(record.getMessage(), self._secrets), ()
        return True
