"""`excise push`: publish an artifact on the Hugging Face Hub, in one commit, verified and tagged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from exporters.hub import Published
    from exporters.release import Release

MOST_SHOWN = 10  # findings; `excise verify` prints all


@click.command()
@click.argument("artifact", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repository", metavar="REPO_ID")
@click.option("--key", type=click.Path(path_type=Path), help="Public key (PEM) that DIR must be signed by.")
@click.option("--private", "visibility", flag_value="private", help="Only if the repository is private.")
@click.option("--public", "visibility", flag_value="public", help="Create it public; refuse a private one.")
@click.option(
    "--pull-request", is_flag=True, help="Open a pull request instead of committing; no tag is set."
)
@click.option("--branch", default="main", show_default=True, help="The branch to commit to.")
@click.option("--tag", "tags", multiple=True, help="Tag the revision with this too, such as v1.0.0.")
@click.option("--replace", is_flag=True, help="Remove files that no build of Excise put there.")
@click.option("--message", default="", help="The commit's message; default: name and digest of the build.")
@click.option(
    "--dry-run", is_flag=True, help="Look, check everything, say what would be done, change nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def push(
    artifact: Path,
    repository: str,
    key: Path | None,
    visibility: Literal["private", "public"] | None,
    pull_request: bool,
    branch: str,
    tags: tuple[str, ...],
    replace: bool,
    message: str,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Publish the artifact DIR as the model repository REPO_ID (owner/name).

    A new repository is created private. All files go in one commit, made only if nobody else committed
    meanwhile; then the server's digests are read back and the revision is tagged `build-DIGEST`. Interrupted
    or refused, the same command goes on: files that arrived are not sent again. Log in with `hf auth login`
    or HF_TOKEN; HF_ENDPOINT names another Hub.
    """
    from compiler.artifact import SPEC, Artifact
    from compiler.progress import for_terminal
    from exporters.hub import Wish
    from exporters.hub import push as publish

    built = Artifact.open(artifact)
    progress = for_terminal()
    with progress.task("verify the artifact"):
        release = verified(artifact, key)
    name = str(built.read(SPEC).get("name", "artifact"))
    wish = Wish(
        branch=branch,
        visibility=visibility,
        pull_request=pull_request,
        tags=tags,
        replace=replace,
        message=message or f"{name}: build {release.digest[:12]}",
        dry_run=dry_run,
    )
    done = publish(release, repository, wish, progress=progress)
    if as_json:
        click.echo(json.dumps(done.as_dict(), indent=2, ensure_ascii=False))
        return
    click.echo(told(done), err=True)
    click.echo(done.pull_request or done.url)


def verified(folder: Path, key: Path | None) -> Release:
    """The files to publish. `GateFailed` unless they are what was built, gates passed, signed by `key`."""
    from editspec import GateFailed
    from exporters.release import Release
    from exporters.verify import verify_artifact

    report = verify_artifact(folder, key)
    if not report.ok:
        found = [str(finding) for finding in report.findings]
        if len(found) > MOST_SHOWN:
            found = [*found[:MOST_SHOWN], f"and {len(found) - MOST_SHOWN} more"]
        raise GateFailed("\n  ".join([f"{folder} is not what was built; nothing was sent", *found]))
    return Release.of(folder, report.files)


def told(done: Published) -> str:
    """What was done, in a few lines for people."""
    counts = [
        f"{len(names)} {word}"
        for word, names in (
            ("added", done.changes.add),
            ("changed", done.changes.change),
            ("removed", done.changes.remove),
        )
        if names
    ]
    lines = [f"{done.files} files, {done.size / 1e6:,.1f} MB: {', '.join(counts) or 'all there already'}"]
    if done.creates:
        lines.append(f"{'would create' if done.dry_run else 'created'} the {done.creates} repository")
    lines += [f"{'would tag' if done.dry_run else 'tagged'} {tag}" for tag in done.tags]
    if done.pull_request:
        lines.append("no tag yet: push again once the pull request is merged")
    if done.dry_run:
        lines.append("dry run: nothing was changed")
    else:
        lines.append("verified: the server's digests are the artifact's")
    return "\n".join(lines)
