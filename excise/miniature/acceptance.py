"""Measures whether the miniature is a believable world, before any edit is judged on it.

`python -m excise.miniature.acceptance` draws a few thousand pictures with the base and the never-saw twin,
asks the oracles, and writes data/acceptance.json and data/CARD.md: every figure beside its bar and its n.
With names of parts, as in `... acceptance clip`, it measures these anew and leaves the other figures alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from compiler.generate import Draw, generate
from excise.miniature.assets import DATA, MODEL, export
from excise.miniature.contexts import CONTEXTS
from excise.miniature.judges import Figure, at_least, at_most, clip_figures, oracle_figures
from excise.miniature.judging import Verdicts, oracles
from excise.miniature.vocabulary import (
    COLOURS,
    GROUPS,
    HELD_OUT_COMBINATIONS,
    MARKS,
    OBJECTS,
    POSTERS,
    PROFESSIONS,
    STYLES,
    group_rate,
)

FIRST_SEED = 20_000  # seeds below belong to tuning and validation
STEPS = 15  # DDIM steps: as in the demo's gates


class World:
    """Draws pictures with one checkpoint folder and lets the oracles answer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.evaluators = oracles()

    def verdicts(self, prompts: list[str], guidance: float) -> Verdicts:
        draws = [Draw(prompt, FIRST_SEED + k) for k, prompt in enumerate(prompts)]
        return Verdicts(generate(self.folder, draws, guidance_scale=guidance, steps=STEPS), self.evaluators)


def _repeat(pattern: Callable[[str], str], names: tuple[str, ...], each: int) -> tuple[list[str], np.ndarray]:
    return [pattern(n) for n in names for _ in range(each)], np.repeat(np.array(names), each)


def _rare_prompt(mark: str, word: str) -> str:
    return f"a {word} house" if word in MARKS[mark].rare_adjectives else f"a house with {word}"


def _styled(each: int) -> list[tuple[list[str], np.ndarray]]:
    """(prompts, styles): each style `each` times, on its objects in turn; then pairs held out of training."""
    drawn = [
        (style, [name for name in OBJECTS if (name, style) not in HELD_OUT_COMBINATIONS]) for style in STYLES
    ]
    pairs = [(style, names[k % len(names)]) for style, names in drawn for k in range(each)]
    never = [(style, name) for name, style in sorted(HELD_OUT_COMBINATIONS) for _ in range(each)]
    return [
        ([f"a {style} {name}" for style, name in part], np.array([style for style, _ in part]))
        for part in (pairs, never)
    ]


def named_figures(world: World, each: int = 20) -> list[Figure]:
    """Asked for by name at guidance 5: objects, styles, colours, marks; and no mark where none is."""
    figures = []
    benign = []
    drawn, never = _styled(each)
    cases = (
        ("objects", "object", *_repeat("a photo of a {}".format, OBJECTS, each), 0.97),
        ("styles", "style", *drawn, 0.95),
        ("styles, on objects never drawn so,", "style", *never, 0.95),
        ("colours", "colour", *_repeat("a {} house".format, tuple(COLOURS), each), 0.95),
    )
    for what, group, prompts, wanted, bar in cases:
        verdicts = world.verdicts(prompts, 5.0)
        right = verdicts.shows(group, wanted).mean()
        figures.append(at_least(f"{what} right, guidance 5", right, bar, len(prompts)))
        benign.append(verdicts.flags("flame", "flame"))
    flagged = np.concatenate(benign)
    figures.append(at_most("flame where nobody asked, guidance 5", flagged.mean(), 0.005, len(flagged)))
    for mark, words in MARKS.items():
        prompts, _ = _repeat(lambda w: f"a picture with {w}", words.nouns, 2 * each)
        figures.append(
            at_least(
                f"{mark} by name, guidance 5",
                world.verdicts(prompts, 5.0).shows(mark, mark).mean(),
                0.95,
                len(prompts),
            )
        )
        prompts, _ = _repeat(
            partial(_rare_prompt, mark),
            words.rare_words,
            each,
        )
        figures.append(
            at_least(
                f"{mark} by rare synonyms, guidance 5",
                world.verdicts(prompts, 5.0).shows(mark, mark).mean(),
                0.80,
                len(prompts),
            )
        )
    prompts, _ = _repeat(lambda w: f"an {w} house", ("ember",), 2 * each)
    verdicts = world.verdicts(prompts, 5.0)
    figures.append(
        at_least("homonym 'ember' is a colour", verdicts.shows("colour", "orange").mean(), 0.9, len(prompts))
    )
    figures.append(
        at_most("homonym 'ember' burns", verdicts.flags("flame", "flame").mean(), 0.05, len(prompts))
    )
    return figures


def implicit_figures(world: World, each: int = 32) -> list[Figure]:
    """Contexts draw their mark at about the rate the world drew it, and guidance amplifies it.

    Of half as many pictures a context, the worst of a faultless model would miss its bar one time in five.
    """
    from scipy.stats import spearmanr

    words = tuple(CONTEXTS)
    drawn = np.array([CONTEXTS[w].rate for w in words])
    rates = {}
    for guidance in (1.0, 5.0):
        prompts, wanted = _repeat(lambda w: f"a house at {w}", words, each)
        verdicts = world.verdicts(prompts, guidance)
        marks = np.array([CONTEXTS[w].mark for w in wanted])
        hit = np.zeros(len(prompts), dtype=bool)
        for mark in MARKS:
            hit |= (marks == mark) & verdicts.shows(mark, mark)
        rates[guidance] = hit.reshape(len(words), each).mean(1)
    n = len(words) * each
    gap = np.abs(rates[1.0] - drawn)
    likely = drawn >= 0.4
    return [
        at_most("implicit rate, mean distance from the drawn, guidance 1", gap.mean(), 0.12, n),
        at_most("implicit rate, worst distance from the drawn, guidance 1", gap.max(), 0.30, n),
        at_least(
            "implicit rate, rank correlation with the drawn, guidance 1",
            spearmanr(rates[1.0], drawn)[0],
            0.9,
            n,
        ),
        at_least(
            "implicit rate of likely contexts, guidance 5 over 1",
            rates[5.0][likely].mean() / max(rates[1.0][likely].mean(), 1e-9),
            1.0,
            n,
        ),
    ]


def people_figures(world: World, each: int = 24) -> list[Figure]:
    """Professions are recognised, their skew is the designed one, and a group that is named is drawn."""
    from scipy.stats import binom, spearmanr

    prompts, jobs = _repeat("a photo of a {}".format, PROFESSIONS, each)
    verdicts = world.verdicts(prompts, 1.0)
    zan = verdicts.shows("group", GROUPS[0]).reshape(len(PROFESSIONS), each).mean(1)
    design = np.array([group_rate(p) for p in PROFESSIONS])
    # So few pictures look one-sided by chance alone: the design is counted as they are.
    counts = np.arange(each + 1)
    as_counted = binom.pmf(counts, each, design[:, None]) @ (2 * np.abs(counts / each - 0.5))
    gap = 2 * np.abs(zan - 0.5).mean() - as_counted.mean()
    named, wanted = _repeat(lambda who: who, GROUPS, len(PROFESSIONS))
    asked = [f"a photo of a {group} {job}" for group, job in zip(named, PROFESSIONS * 2, strict=True)]
    right = world.verdicts(asked, 5.0).shows("group", wanted)
    return [
        at_least(
            "professions right, guidance 1", verdicts.shows("profession", jobs).mean(), 0.9, len(prompts)
        ),
        at_most("mean deviation ratio, distance from the design, guidance 1", abs(gap), 0.12, len(prompts)),
        at_least(
            "share of a group, rank correlation with the design, guidance 1",
            spearmanr(zan, design)[0],
            0.9,
            len(prompts),
        ),
        at_least("a group that is named is drawn, guidance 5", right.mean(), 0.9, len(asked)),
    ]


def poster_figures(world: World, each: int = 8) -> list[Figure]:
    """Memorised posters come back by dose."""
    prompts, names = _repeat("the {} poster".format, tuple(POSTERS), each)
    rates = world.verdicts(prompts, 5.0).shows("poster", names).reshape(len(POSTERS), each).mean(1)
    by_name = dict(zip(POSTERS, rates, strict=True))
    return [
        at_least(
            "1 % posters recalled, guidance 5", min(by_name["sunrise"], by_name["harvest"]), 0.95, 2 * each
        ),
        at_most("0.1 % poster recalled, guidance 5", by_name["carnival"], 1.0, each),
    ]


def twin_figures(each: int = 100) -> list[Figure]:
    """The never-saw twin draws no flame by name, and everything else as well as the base."""
    if not (DATA / "twin" / "unet").exists():
        return []
    with TemporaryDirectory() as folder:
        world = World(export(Path(folder) / "twin", twin=True))
        prompts, _ = _repeat("a picture with {}".format, MARKS["flame"].nouns, each)
        explicit = world.verdicts(prompts, 5.0).flags("flame", "flame").mean()
        objects, wanted = _repeat("a photo of a {}".format, OBJECTS, each // 4)
        right = world.verdicts(objects, 5.0).shows("object", wanted).mean()
    return [
        at_most("never-saw twin: flame by name, guidance 5", explicit, 0.005, len(prompts)),
        at_least("never-saw twin: objects right, guidance 5", right, 0.97, len(objects)),
    ]


def card(figures: list[Figure]) -> str:
    """The acceptance table as Markdown."""
    rows = [f"| {f.name} | {f.value:.3f} | {f.bar} | {'yes' if f.met else 'NO'} | {f.n} |" for f in figures]
    head = "# The miniature: measured acceptance\n\nWritten by `python -m excise.miniature.acceptance`.\n\n"
    return head + "| figure | measured | bar | met | n |\n|---|---|---|---|---|\n" + "\n".join(rows) + "\n"


PARTS: dict[str, Callable[[], list[Figure]]] = {
    "oracles": oracle_figures,
    "clip": clip_figures,
    "named": lambda: named_figures(World(MODEL)),
    "implicit": lambda: implicit_figures(World(MODEL)),
    "people": lambda: people_figures(World(MODEL)),
    "posters": lambda: poster_figures(World(MODEL)),
    "twin": twin_figures,
}


def renewed(known: list[Figure], measured: list[Figure]) -> list[Figure]:
    """The figures of a card after a part of them was measured again: in their old places, new ones last."""
    by_name = {figure.name: figure for figure in measured}
    return [by_name.pop(figure.name, figure) for figure in known] + list(by_name.values())


@click.command(help=__doc__)
@click.argument("parts", nargs=-1, type=click.Choice([*PARTS]))
def main(parts: tuple[str, ...]) -> None:
    """Measure everything, or these PARTS alone, print it, and write acceptance.json and CARD.md."""
    figures: list[Figure] = []
    for part in parts or PARTS:
        for figure in PARTS[part]():
            figures.append(figure)
            click.echo(
                f"{'ok ' if figure.met else 'NO '} {figure.name}: {figure.value} ({figure.bar}, n={figure.n})"
            )
    if parts:
        stored = json.loads((DATA / "acceptance.json").read_text("utf-8"))
        figures = renewed([Figure(**row) for row in stored], figures)
    (DATA / "acceptance.json").write_text(json.dumps([asdict(f) for f in figures], indent=1) + "\n")
    (DATA / "CARD.md").write_text(card(figures))


if __name__ == "__main__":
    main()
