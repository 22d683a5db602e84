"""What a spec's closed-form erasures move and what they keep, gathered as the columns of one solve.

With `templates: []` the columns are those of the paper: the concept alone, every column of weight 1. With
templates the concept also stands in many sentences of other words, and words and sentences without it are
kept. Weights are then per name: whatever the number of its prompts, an erased name weighs 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compiler.columns import Columns, ColumnSet
from compiler.concepts import Neighbourhood
from compiler.contexts import contexts, draws
from compiler.interference import beside
from compiler.mining import edited_words
from compiler.seeds import derive
from compiler.text import TextEncoder
from editspec import EditSpec, Erase
from editspec.templates import COMPOSED, Kind, fill

ALONE = "{}"
ENDS = 2  # tokens around every prompt
CONTEXTS = 64  # sentences for the names of an edit together; each name has at least FEWEST
FEWEST = 12
BESIDE = 16  # sentences of a name beside what is preserved, at most
POOL = 128  # sentences of other words that are kept, for all edits together
POOL_WEIGHT = 16.0  # of kept words and sentences, for each erased name
PRESERVED_WEIGHT = 1.0  # of each concept that is preserved by name or mined
BESIDE_WEIGHT = 64.0  # of the prompts of all other edits together, at most


def gather(
    text: TextEncoder,
    erasures: Sequence[Erase],
    spec: EditSpec,
    neighbours: Mapping[str, Sequence[str]] | None = None,
) -> Columns:
    """All columns of the erasures of `spec`, encoded; `neighbours`, by edit id, are kept too."""
    return _Gathering(text, erasures, spec, neighbours or {}).run()


class _Gathering:
    def __init__(
        self,
        text: TextEncoder,
        erasures: Sequence[Erase],
        spec: EditSpec,
        neighbours: Mapping[str, Sequence[str]],
    ) -> None:
        self.text, self.erasures, self.spec, self.neighbours = text, erasures, spec, neighbours
        self.columns = ColumnSet(text)
        self.edited = edited_words(spec)
        self.in_context = [edit for edit in erasures if edit.templates]
        # Words that sentences are made of, on both sides; what is erased is none of them.
        self.words = Neighbourhood(text).unlike(self.edited) if self.in_context else ()

    def run(self) -> Columns:
        for edit in self.erasures:
            self._move(edit)
        for concept in self.spec.preserve.concepts:
            self._keep(concept, self.erasures)
        for edit in self.erasures:
            for concept in (*edit.preserve, *self.neighbours.get(edit.id, ())):
                self._keep(concept, [edit])
        self._keep_beside()
        if self.in_context and self.erasures[0].preserve_mode == "columns":
            self._keep_pool()
        return self.columns.build()

    def _move(self, edit: Erase) -> None:
        names = (edit.concept, *edit.aliases)
        # A ridge of its own is a weight of its own: s |W c - v|^2 + r |W - W_0|^2, divided by r.
        held_back = min(other.ridge for other in self.erasures) / edit.ridge
        for name in names:
            spared = self._spared(edit, name)
            templates = [*(edit.templates or (ALONE,)), *self._contexts(edit, name, len(names))]
            templates += self._composed(edit, name)
            weight = held_back / len(templates) if edit.templates else held_back
            for template in templates:
                self.columns.move(template, name, edit.anchor, weight=weight, scale=edit.scale, spared=spared)

    def _spared(self, edit: Erase, name: str) -> int:
        """How many tokens of a compound are a word that is preserved by name: "moon" of "moon boat".

        The text encoder is causal: up to there it has read nothing but that word, and moving it is losing it.
        """
        words, kept = name.split(), {*self.spec.preserve.concepts, *edit.preserve}
        starts = (" ".join(words[:count]) for count in range(len(words) - 1, 0, -1))
        start = next((start for start in starts if start in kept), None)
        return 0 if start is None else self.text.token_count(start) - ENDS

    def _contexts(self, edit: Erase, name: str, names: int) -> list[str]:
        """Sentences for one name of an edit, as long as they fit the window with the anchor in them."""
        if not edit.templates:
            return []
        seed = derive(self.spec.seed, "contexts", edit.id, name)
        made = contexts(edit.kind, self.words, max(FEWEST, CONTEXTS // names), seed)
        return [
            template for template in made if self._fits(template, name) and self._fits(template, edit.anchor)
        ]

    def _composed(self, edit: Erase, name: str) -> list[str]:
        """Sentences with `name` beside what is preserved by name, by turns: there the others must stay."""
        others = list(dict.fromkeys((*edit.preserve, *self.spec.preserve.concepts))) if edit.templates else []
        patterns = [pattern for pattern, _ in COMPOSED[edit.kind]]
        made = (
            patterns[(turn + turn // len(others)) % len(patterns)].replace(
                "{other}", others[turn % len(others)]
            )
            for turn in range(min(BESIDE, len(patterns) * len(others)))
        )
        return [
            template
            for template in dict.fromkeys(made)
            if self._fits(template, name) and self._fits(template, edit.anchor)
        ]

    def _keep(self, concept: str, edits: Sequence[Erase]) -> None:
        """Keep a concept alone, in the templates of `edits`, and among other words as their concepts are."""
        templates = dict.fromkeys((ALONE, *(template for edit in edits for template in edit.templates)))
        for kind in self._kinds(edits):
            seed = derive(self.spec.seed, "preserved", concept, kind)
            made = contexts(kind, self.words, FEWEST, seed)
            templates |= dict.fromkeys(template for template in made if self._fits(template, concept))
        weight = PRESERVED_WEIGHT / len(templates) if self.in_context else 1.0
        for template in templates:
            if "{}" in template:
                self.columns.preserve(fill(template, concept), weight=weight)

    def _keep_beside(self) -> None:
        """Keep what the spec's other passes are for: each prompt as a concept that is preserved by name."""
        found = beside(self.erasures, self.spec)
        prompts = [prompt for prompt in found if self.text.token_count(prompt) <= self.text.window]
        for prompt in prompts:
            self.columns.preserve(prompt, weight=min(PRESERVED_WEIGHT, BESIDE_WEIGHT / len(prompts)))

    def _keep_pool(self) -> None:
        """Keep words of the vocabulary and sentences of them: all the rest that the model knows."""
        prompts = [f"a {word}" for word in self.words]
        for kind in self._kinds(self.in_context):
            templates = contexts(kind, self.words, POOL, derive(self.spec.seed, "pool", kind))
            subjects = draws(self.words, len(templates), derive(self.spec.seed, "pool subjects", kind))
            prompts += [fill(template, word) for template, word in zip(templates, subjects, strict=True)]
        names = sum(1 + len(edit.aliases) for edit in self.in_context)
        prompts = [prompt for prompt in prompts if self.text.token_count(prompt) <= self.text.window]
        for prompt in prompts:
            self.columns.preserve(prompt, weight=POOL_WEIGHT * names / len(prompts))

    def _kinds(self, edits: Sequence[Erase]) -> list[Kind]:
        return list(dict.fromkeys(edit.kind for edit in edits if edit.templates))

    def _fits(self, template: str, name: str) -> bool:
        return self.text.token_count(fill(template, name)) <= self.text.window
