"""Finds prompts that are longer than the base reads, while planning: sampling would silently cut them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from editspec import Shift
from editspec.errors import InputError, quoted
from editspec.templates import TEMPLATES, fill

if TYPE_CHECKING:
    from compiler.checkpoint import Checkpoint
    from compiler.gates import GatePlan
    from editspec import Edit, EditSpec

SPECIAL = 2  # tokens that begin and end every prompt
# CLIP's own cut into words, from its published tokenizer.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def too_long(spec: EditSpec, checkpoint: Checkpoint, gates: Sequence[GatePlan]) -> list[tuple[str, str, str]]:
    """(JSON pointer, message, remedy) for each place of the spec that makes a prompt over the window."""
    window = _Window(checkpoint)
    found: dict[str, tuple[str, str, str]] = {}
    for pointer, prompt in _prompts(spec, gates):
        if pointer in found or window.holds(prompt):
            continue
        message = f"{quoted(prompt)} takes {window.count(prompt)} tokens; the base reads {window.size}"
        found[pointer] = (pointer, message, "shorten it")
    return list(found.values())


def over_window(checkpoint: Checkpoint, prompts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """(JSON pointer, message) for each of the (pointer, prompt) pairs whose prompt is over the window."""
    window = _Window(checkpoint)
    return [
        (pointer, f"{quoted(prompt)} takes {window.count(prompt)} tokens; the base reads {window.size}")
        for pointer, prompt in prompts
        if not window.holds(prompt)
    ]


class _Window:
    """How many tokens a base reads, and how many a prompt has."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._folder = checkpoint.root / "tokenizer"
        positions = checkpoint.config("text_encoder").get("max_position_embeddings", 77)
        self.size = int(min(positions, checkpoint.config("tokenizer").get("model_max_length", positions)))

    def holds(self, prompt: str) -> bool:
        """Whether the prompt fits. A token is at least a byte: short prompts need no counting."""
        return len(prompt.encode("utf-8")) + SPECIAL <= self.size or self.count(prompt) <= self.size

    def count(self, prompt: str) -> int:
        """Tokens of a prompt with those that begin and end it."""
        return len(self._tokenizer.encode(prompt, add_special_tokens=False).ids) + SPECIAL

    @cached_property
    def _tokenizer(self) -> Any:
        """The base's tokenizer without transformers, whose import takes seconds."""
        from tokenizers import Tokenizer

        path = self._folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path)) if path.is_file() else self._from_tables()
        except Exception as error:  # the library raises nothing more special
            raise InputError(
                str(self._folder), f"is no readable tokenizer: {error}", "fetch it again"
            ) from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def _from_tables(self) -> Any:
        """CLIP's byte-pair encoding from vocab.json and merges.txt, as older checkpoints have it."""
        from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
        from tokenizers.models import BPE

        tables = [str(self._folder / name) for name in ("vocab.json", "merges.txt")]
        tokenizer = Tokenizer(BPE.from_file(*tables, end_of_word_suffix="</w>", unk_token="<|endoftext|>"))  # noqa: S106
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        return tokenizer


def _prompts(spec: EditSpec, gates: Sequence[GatePlan]) -> Iterator[tuple[str, str]]:
    """Every prompt that compiling will encode, each with the place of the spec it comes from."""
    used: dict[str, None] = {}
    for edit in spec.edits:
        templates = _templates(edit)
        used |= dict.fromkeys(templates)
        for key, names in _names(edit):
            yield from (
                (f"{spec.pointer(edit)}/{key}", fill(one, name)) for name in names for one in templates
            )
        yield from ((f"{spec.pointer(edit)}/{key}", prompt) for key, prompt in _whole_prompts(edit))
    for number, concept in enumerate(spec.preserve.concepts):
        yield from ((f"/preserve/concepts/{number}", fill(template, concept)) for template in used)
    for plan in gates:
        yield from ((spec.pointer(plan.gate), draw.prompt) for draw in plan.draws)


def _whole_prompts(edit: Edit) -> Iterator[tuple[str, str]]:
    """What an edit is learned on that goes into no template: key in the spec, and the prompt."""
    for key in ("implicit", "captions"):
        yield from ((f"{key}/{number}", prompt) for number, prompt in enumerate(getattr(edit, key, ())))
    if not isinstance(edit, Shift):
        return
    yield from ((f"prompts/{number}", prompt) for number, prompt in enumerate(edit.prompts))
    for number, direction in enumerate(edit.directions):
        place = "direction" if len(edit.directions) == 1 else f"direction/{number}"
        for key in ("prompt", "base_prompt", "negative_prompt"):
            if prompt := getattr(direction, key):
                yield f"{place}/{key}", prompt


def _names(edit: Edit) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What an edit puts into templates: key in the spec, and the names there."""
    attributes: dict[str, Callable[[Any], tuple[str, ...]]] = {
        "concept": lambda value: (value,),
        "aliases": tuple,
        "anchor": lambda value: (value,),
        "from_concept": lambda value: (value,),
        "preserve": tuple,
    }
    for attribute, listed in attributes.items():
        value = getattr(edit, attribute, None)
        if value:
            yield attribute.removesuffix("_concept"), listed(value)


def _templates(edit: Edit) -> tuple[str, ...]:
    """An edit's own templates where it has a say in them, else those of its kind."""
    chosen = edit.method == "closed-form" or edit.edit == "ablate"
    own = tuple(getattr(edit, "templates", ())) if chosen else ()
    return own or TEMPLATES.get(getattr(edit, "kind", ""), ()) or ("{}",)
