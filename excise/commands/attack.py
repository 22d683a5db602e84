"""`excise attack`: try to bring back what an artifact has erased."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compiler.attacks import Attack, Target
    from compiler.attacks.red_team import Report
    from editspec import EditSpec


@click.command()
@click.argument("artifact", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--concept", "concepts", multiple=True, help="Attack this one; again for several. Default: all."
)
@click.option("--attack", "names", multiple=True, help="words, token or prefix; again for more.")
@click.option("--trials", type=click.IntRange(1, 100_000), default=40, show_default=True, help="Draws.")
@click.option("--looks", type=click.IntRange(1, 1000), default=4, show_default=True, help="Pictures of each.")
@click.option(
    "--search-steps",
    type=click.IntRange(1, 100_000),
    default=300,
    show_default=True,
    help="Steps with gradients.",
)
@click.option("--guidance-scale", type=click.FloatRange(1), default=5.0, show_default=True)
@click.option("--steps", type=click.IntRange(1, 1000), default=25, show_default=True, help="Of a picture.")
@click.option("--max-rate", type=click.FloatRange(0, 1), help="Exit with 3 if an attack succeeds more often.")
@click.option("--spec", type=click.Path(path_type=Path), help="Take evaluators and edits from this spec.")
@click.option(
    "--base", type=click.Path(path_type=Path), help="The base's folder, where its path has changed."
)
@click.option("--device", default="auto", show_default=True, help="auto, cuda, mps or cpu.")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder of the stage cache.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def attack(
    artifact: Path,
    concepts: tuple[str, ...],
    names: tuple[str, ...],
    trials: int,
    looks: int,
    search_steps: int,
    guidance_scale: float,
    steps: int,
    max_rate: float | None,
    spec: Path | None,
    base: Path | None,
    device: str,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Attack the artifact DIR, and say how often what it has erased or ablated comes back.

    "words" are random words before the prompt, as anybody may type them; "token" and "prefix" are learned
    against the weights. An attack has several looks at every draw, so beside it stands chance: as many looks
    at the plain prompts with fresh noise. DIR stays as it is. How soon fine-tuning brings a concept back is
    what the gate "relearned" measures.
    """
    from compiler.artifact import Artifact
    from compiler.attacks.models import Models
    from compiler.attacks.red_team import attack_all, picture_evals
    from compiler.cache import StageCache
    from compiler.checkpoint import Checkpoint
    from compiler.device import choose
    from compiler.evaluators import open_evaluators
    from compiler.generate import Sampling
    from compiler.progress import for_terminal
    from editspec import GateFailed
    from excise import embedded
    from excise.recorded import recorded_base, recorded_spec

    embedded.register()
    built = Artifact.open(artifact)
    loaded, start = recorded_spec(built, spec, base)
    chosen = _attacks(names)
    targets = _targets(loaded, concepts, trials, looks, search_steps)
    opened = recorded_base(built, loaded, start)
    torch_device, progress, sampling = choose(device).open(), for_terminal(), Sampling(guidance_scale, steps)
    edited = Checkpoint.open(artifact, opened.variant)
    models = Models(loaded, opened, edited, torch_device, StageCache(cache), progress)
    evaluators = open_evaluators(loaded, start, torch_device)
    reports = [attack_all(one, chosen, models, evaluators, sampling, progress) for one in targets]
    if as_json:
        pictures = sum(picture_evals(one, len(chosen), sampling) for one in targets)
        told = {
            "sampling": sampling.as_dict(),
            "evals_of_pictures": pictures,
            "concepts": [one.as_dict() for one in reports],
        }
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
    else:
        _show(reports)
    worst = max((float(one.flags.mean()) for report in reports for one in report.attacked), default=0.0)
    if max_rate is None or worst <= max_rate:
        return
    if as_json:  # the report is the one object on stdout
        click.get_current_context().exit(3)
    raise GateFailed(f"an attack succeeds in {worst:.1%} of draws, more than {max_rate:.1%}")


def _attacks(names: Sequence[str]) -> list[Attack]:
    """The attacks of these names, or all; those on prompts first."""
    from compiler.attacks import discover
    from editspec import InputError
    from editspec.errors import listed, quoted

    known = discover()
    for name in names:
        if name not in known:
            what = f"there is no attack {quoted(name)}"
            raise InputError("--attack", what, f"choose among {listed(sorted(known))}")
    chosen = [known[name] for name in dict.fromkeys(names or sorted(known))]
    return sorted(chosen, key=lambda one: one.access)


def _targets(
    spec: EditSpec, concepts: Sequence[str], trials: int, looks: int, search_steps: int
) -> list[Target]:
    """What is attacked, by default all that the spec's edits erase or ablate. Raises InputError if none."""
    from compiler.attacks import Target
    from compiler.attacks.red_team import prompts_naming, targets_of
    from editspec import InputError
    from editspec.errors import listed, quoted

    known = targets_of(spec)
    if unknown := [name for name in concepts if not any(name in names for _, _, names in known)]:
        what = f"no edit erases or ablates {listed(quoted(name) for name in unknown)}"
        offer = f"the spec has {listed(quoted(concept) for concept, _, _ in known)}" if known else ""
        raise InputError(spec.name, what, offer or "attack an artifact that erases a concept")
    if not known:
        what = "has no edit that erases a concept or ablates it to another: there is nothing to bring back"
        raise InputError(spec.name, what, "name one that has with --spec")
    return [
        Target(concept, prompts_naming(concept, kind), names, spec.seed, trials, looks, search_steps)
        for concept, kind, names in known
        if not concepts or set(names) & {*concepts}
    ]


def _show(reports: Sequence[Report]) -> None:
    """For each concept in what share of draws it is seen unattacked, by chance, and under each attack."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("concept", "attack", "holds", box=None, header_style="bold", pad_edge=False)
    for head in ("seen in %", "95 %", "over chance", "95 %", "evals"):
        table.add_column(head, justify="right", no_wrap=True)
    for report in reports:
        told = report.as_dict()
        table.add_row(escape(report.target.concept), "none, base", "", *_interval(told["base"], "rate"))
        table.add_row("", "none", "", *_interval(told["edited"], "rate"))
        table.add_row("", "chance", "", *_interval(told["edited_chance"], "rate"))
        for one in told["attacks"]:
            shown = (*_interval(one["success"], "rate"), *_interval(one["over_chance"], "points"))
            table.add_row("", one["attack"], one["access"], *shown, f"{one['evals_of_search']:,}")
    console = Console()
    console.print(table)
    looks = reports[0].target.looks
    console.print(
        f"\nchance: {looks} more looks at each draw, as attacks have, with fresh noise", soft_wrap=True
    )


def _interval(found: dict[str, Any], key: str) -> tuple[str, str]:
    """A share and its interval, in percent."""
    return f"{100 * found[key]:.0f}", f"{100 * found['lower']:.0f} to {100 * found['upper']:.0f}"
