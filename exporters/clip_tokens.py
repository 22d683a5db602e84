"""Prompts to padded CLIP token ids, as transformers gives them, with the `tokenizers` library alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.json_file import read_object
from editspec.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    Ids = np.ndarray[Any, np.dtype[np.int64]]

PAD = "<|endoftext|>"


@dataclass(frozen=True, eq=False)
class ClipTokens:
    """A tokenizer and the window that its prompts are padded to."""

    tokenizer: Any
    window: int
    pad: int

    @classmethod
    def open(cls, folder: Path) -> ClipTokens:
        """From tokenizer.json and tokenizer_config.json. Raises `InputError`."""
        from tokenizers import Tokenizer

        path = folder / "tokenizer.json"
        config = read_object(folder / "tokenizer_config.json")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise InputError(str(path), f"cannot be read: {error}", "export the checkpoint again") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        window, named = config.get("model_max_length"), config.get("pad_token", PAD)
        if not isinstance(window, int) or not 2 <= window <= 10_000:
            raise InputError(str(folder / "tokenizer_config.json"), f"has model_max_length = {window!r}")
        token = named["content"] if isinstance(named, dict) else named
        pad = tokenizer.token_to_id(str(token))
        if pad is None:
            raise InputError(str(path), f"does not know its own pad token {token!r}")
        return cls(tokenizer, window, pad)

    def ids(self, prompts: Sequence[str]) -> Ids:
        """(n, window) int64. `InputError` for a prompt over the window, which would be cut unseen."""
        import numpy as np

        found = np.full((len(prompts), self.window), self.pad, np.int64)
        for row, prompt in zip(found, prompts, strict=True):
            ids = self.tokenizer.encode(prompt).ids
            if len(ids) > self.window:
                what = f"has {len(ids)} tokens; this model reads {self.window}"
                raise InputError(f"prompt '{prompt}'", what, "shorten it")
            row[: len(ids)] = ids
        return found
