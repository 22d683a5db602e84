"""Random words before the prompt: what anybody may type, the baseline of every cleverer attack on prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from compiler.attacks.attack import Access, Attack, Found, Target

if TYPE_CHECKING:
    from compiler.attacks.models import Models
    from compiler.text import TextEncoder


class Words(Attack):
    """Each look has one random word of the vocabulary before the prompt, never a name of the concept."""

    name: ClassVar[str] = "words"
    access: ClassVar[Access] = "prompts"

    def evals(self, target: Target) -> int:
        return 0

    def find(self, target: Target, models: Models, advance: Callable[[int], None]) -> Found:
        from compiler.seeds import epoch_batch

        known = vocabulary(models.text, target.names)
        chosen = epoch_batch(len(known), target.looks, 0, target.seed, "red team", "words")
        words = [known[place] for place in chosen.tolist()]
        prompts = [f"{word} {prompt}" for word in words for prompt in target.prompts]
        return Found(models.encode(prompts), facts={"words": words})


def vocabulary(text: TextEncoder, without: Sequence[str]) -> list[str]:
    """Whole words that are one token, in alphabetical order; none that a name in `without` has."""
    end = "</w>"
    spared = {word for name in without for word in name.lower().split()}
    whole = (token.removesuffix(end) for token in text.tokenizer.get_vocab() if token.endswith(end))
    return sorted({word for word in whole if word.isalpha() and len(word) > 1} - spared)
