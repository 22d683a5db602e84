"""`excise registry`: what was built, from what, in which state, and its bytes kept once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from registry.catalogue import Registry

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group()
def registry() -> None:
    """Keep builds by digest: untouched tensors of one base are stored once, histories only grow.

    The registry is a folder (--registry). For several machines name a PostgreSQL database as its --index and
    s3://BUCKET/PREFIX as its --store; a bucket's address and keys come from AWS_ENDPOINT_URL,
    AWS_ACCESS_KEY_ID and their like. BUILD is a digest, its first six digits or more, or the name of a
    released build.
    """
    from importlib.util import find_spec

    from editspec import InputError

    if missing := [name for name in ("sqlalchemy", "fsspec") if find_spec(name) is None]:
        remedy = "pip install 'excise[registry]'"
        raise InputError("excise registry", f"needs the package {missing[0]}, which is not here", remedy)


def _located(command: _Command) -> _Command:
    """The options that say where the registry is, and --json."""
    options = [
        click.option(
            "--registry",
            "folder",
            envvar="EXCISE_REGISTRY",
            type=click.Path(path_type=Path),
            help="Its folder.",
        ),
        click.option("--index", envvar="EXCISE_REGISTRY_INDEX", help="URL of its database."),
        click.option("--store", envvar="EXCISE_REGISTRY_STORE", help="Folder or URL of its blobs."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@registry.command()
@click.argument("folder_added", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", help="What to call it; an artifact has the name of its spec.")
@click.option("--by", default="", help="Who adds it; kept in the history.")
@_located
def add(folder_added: Path, name: str | None, by: str, as_json: bool, **where: Any) -> None:
    """Add the artifact in DIR as a candidate, or a plain checkpoint that others are built from."""
    from compiler.progress import for_terminal
    from registry.adding import add as add_build

    added = add_build(_opened(where, create=True), folder_added, name=name, by=by, progress=for_terminal())
    state = "added" if added.new else "was there already:"
    text = f"{state} {added.build[:12]}, {_bytes(added.size)}, of which {_bytes(added.stored)} were new"
    _show(asdict(added), text, as_json)


@registry.command(name="list")
@click.option("--name", help="Only builds called so.")
@click.option("--state", type=click.Choice(["candidate", "released", "withdrawn", "dropped"]))
@_located
def list_(name: str | None, state: str | None, as_json: bool, **where: Any) -> None:
    """List builds, oldest first."""
    opened = _opened(where)
    found = opened.entries(name=name, state=state)
    if as_json:
        click.echo(json.dumps([entry.as_dict() for entry in found], ensure_ascii=False))
        return
    for entry in found:
        why = f"  ({entry.reason})" if entry.reason else ""
        facts = f"{entry.build[:12]}  {entry.state:<9}  {entry.added[:16]}  {_bytes(entry.size):>9}"
        click.echo(f"{facts}  {entry.kind:<8}  {_plain(entry.name + why)}")
    total = sum(entry.size for entry in found)
    kept = f"the store holds {_bytes(opened.stored_bytes())} for all builds"
    click.echo(f"{len(found):,} builds of {_bytes(total)}; {kept}", err=True)


@registry.command()
@click.argument("build")
@_located
def show(build: str, as_json: bool, **where: Any) -> None:
    """Show a build: what it was made from, its gates, its files, and every step of its history."""
    from registry.exporting import record_of

    opened = _opened(where)
    entry = opened.find(build)
    record = record_of(entry, opened.files(entry), opened.history(entry))
    if as_json:
        _show(record, "", as_json)
        return
    for key in (
        "build",
        "name",
        "kind",
        "state",
        "family",
        "checkpoint",
        "base",
        "spec",
        "relation",
        "origin",
    ):
        if record[key]:
            click.echo(f"{key:>10}  {_plain(str(record[key]))}")
    for key, value in entry.facts.items():
        click.echo(f"{key:>10}  {_plain(json.dumps(value, ensure_ascii=False))}")
    click.echo(f"     files  {len(record['files'])}, {_bytes(entry.size)}")
    for event in record["history"]:
        note = "  ".join(text for text in (event["by"], event["reason"]) if text)
        click.echo(f"{event['number']:>10}  {event['at'][:19]}  {event['state']:<9}  {_plain(note)}".rstrip())


@registry.command()
@click.argument("build")
@_located
def lineage(build: str, as_json: bool, **where: Any) -> None:
    """Show what a build was made from and what was made from it, each with its state."""
    found = _opened(where).ancestry(build)

    def line(relation: str, entry: Any) -> dict[str, str]:
        facts = {"build": entry.build, "name": entry.name, "kind": entry.kind, "state": entry.state}
        return {"relation": relation, **facts, "reason": entry.reason}

    parents, children = ([line(*pair) for pair in pairs] for pairs in (found.parents, found.children))
    result = {"build": found.entry.build, "base": found.entry.base, "parents": parents, "children": children}
    lines = [f"{'from ' + row['relation']:>12}  {_row(row)}" for row in parents]
    if found.entry.base and not found.parents:
        lines.append(f"{'from base':>12}  {found.entry.base[:12]}  not in this registry")
    lines.append(f"{'':>12}  {found.entry.build[:12]}  {found.entry.state:<9}  {_plain(found.entry.name)}")
    into = {"base": "base of", "undo": "undone to", "rebase": "rebased to"}
    lines += [f"{into[row['relation']]:>12}  {_row(row)}" for row in children]
    _show(result, "\n".join(lines), as_json)


@registry.command()
@click.argument("build")
@click.argument("state", type=click.Choice(["released", "withdrawn"]))
@click.option("--reason", default="", help="Why; required for withdrawing.")
@click.option("--by", default="", help="Who decides; kept in the history.")
@_located
def promote(build: str, state: str, reason: str, by: str, as_json: bool, **where: Any) -> None:
    """Release a candidate whose gates passed and whose bytes are intact, or withdraw a build for good."""
    event = _opened(where).promote(build, state, reason=reason, by=by)
    _show(event.as_dict(), f"{event.build[:12]} is {event.state}", as_json)


@registry.command()
@click.argument("build")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to create.")
@click.option("--force", is_flag=True, help="Replace an earlier artifact at the output path.")
@click.option("--withdrawn", is_flag=True, help="Take a withdrawn build all the same.")
@_located
def pull(build: str, output: Path, force: bool, withdrawn: bool, as_json: bool, **where: Any) -> None:
    """Write a build to the folder OUTPUT, byte for byte as it was added."""
    from compiler.progress import for_terminal
    from registry.pulling import pull as pull_build

    opened = _opened(where)
    entry = pull_build(opened, build, output, force=force, withdrawn=withdrawn, progress=for_terminal())
    result = {"build": entry.build, "name": entry.name, "state": entry.state, "folder": str(output)}
    _show(result, str(output), as_json)


@registry.command()
@click.argument("build", nargs=-1)
@click.option("--deep", is_flag=True, help="Put every file together and check its own digest too.")
@_located
def verify(build: tuple[str, ...], deep: bool, as_json: bool, **where: Any) -> None:
    """Check histories, lists of files and every stored byte of these builds, or of all builds."""
    from compiler.progress import for_terminal
    from editspec import GateFailed
    from registry.checking import check

    opened = _opened(where)
    entries = [opened.find(one) for one in build] if build else opened.entries()
    problems = check(opened, entries, deep=deep, progress=for_terminal())
    if as_json:
        result = {"ok": not problems, "builds": len(entries), "problems": [asdict(one) for one in problems]}
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
        click.get_current_context().exit(3 if problems else 0)
    if problems:
        lines = [f"{one.build[:12]} {one.path or '(record)'}: {one.what}" for one in problems]
        raise GateFailed("\n  ".join(lines))
    click.echo("1 build is intact" if len(entries) == 1 else f"{len(entries):,} builds are intact")


@registry.command()
@click.option(
    "--withdrawn", is_flag=True, help="Remove the bytes of withdrawn builds too; their records stay."
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--wait", default=60.0, show_default=True, help="Seconds to wait for those who add or pull.")
@_located
def gc(withdrawn: bool, dry_run: bool, wait: float, as_json: bool, **where: Any) -> None:
    """Remove bytes that no build needs, such as those of an interrupted add."""
    from compiler.progress import for_terminal
    from registry.sweep import sweep

    swept = sweep(
        _opened(where), withdrawn=withdrawn, dry_run=dry_run, patience=wait, progress=for_terminal()
    )
    verb = "would be removed" if dry_run else "removed"
    text = f"{swept.removed:,} blobs of {_bytes(swept.removed_bytes)} {verb}; {swept.kept:,} stay"
    _show(asdict(swept), text, as_json)


@registry.command()
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("build", nargs=-1)
@_located
def export(target: Path, build: tuple[str, ...], as_json: bool, **where: Any) -> None:
    """Copy these builds, or all, into the registry in DIR: a new one, or one that knows some of them already.

    Histories go along, step by step. DIR/records.jsonl says the same for people and other programs.
    """
    from compiler.progress import for_terminal
    from registry.catalogue import Registry
    from registry.exporting import RECORDS, write_records
    from registry.exporting import export as export_builds

    source = _opened(where)
    entries = [source.find(one) for one in build] if build else source.entries()
    sink = Registry.open(target, create=True)
    exported = export_builds(source, sink, entries, for_terminal())
    write_records(sink, sink.entries(), target / RECORDS)
    text = (
        f"{exported.builds:,} builds, {exported.new:,} of them new there, {_bytes(exported.stored)} written"
    )
    _show({**asdict(exported), "folder": str(target)}, text, as_json)


def _opened(where: dict[str, Any], *, create: bool = False) -> Registry:
    from registry.catalogue import Registry

    return Registry.open(where["folder"], index=where["index"], store=where["store"], create=create)


def _show(result: dict[str, Any], text: str, as_json: bool) -> None:
    click.echo(json.dumps(result, indent=2, ensure_ascii=False) if as_json else text)


def _row(row: dict[str, str]) -> str:
    why = f"  ({row['reason']})" if row["reason"] else ""
    return f"{row['build'][:12]}  {row['state']:<9}  {_plain(row['name'] + why)}"


def _plain(text: str) -> str:
    from editspec.errors import printable

    return printable(text)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
