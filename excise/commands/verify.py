"""`excise verify`: is an artifact, byte for byte, what its maker built and signed?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from excise.rebuild import Rebuild
    from exporters.signature import Trust
    from exporters.verify import VerifyReport

MOST_SHOWN = 50  # findings of one kind printed for people; --json has all

_file = click.Path(path_type=Path)


@click.command()
@click.argument("artifact", metavar="DIR", type=_file)
@click.option("--key", type=_file, help="Public key (PEM) that DIR must be signed by.")
@click.option(
    "--certificate", "certificates", type=_file, multiple=True, help="Root certificate (PEM) of the signer."
)
@click.option("--identity", help="Signer's identity, for a signature by Sigstore.")
@click.option("--issuer", help="Who vouches for that identity.")
@click.option("--edited-card", is_flag=True, help="Let README.md differ: it was edited after the build.")
@click.option("--rebuild", is_flag=True, help="Also compile the recorded spec anew and compare all digests.")
@click.option("--spec", type=_file, help="With --rebuild: the spec's own file, where its inputs lie.")
@click.option("--base", type=_file, help="The base's folder: DIR must be that plus the published change.")
@click.option("--device", default="auto", show_default=True, help="With --rebuild: auto, cuda, mps or cpu.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def verify(
    artifact: Path,
    key: Path | None,
    certificates: tuple[Path, ...],
    identity: str | None,
    issuer: str | None,
    edited_card: bool,
    rebuild: bool,
    spec: Path | None,
    base: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Check every file of the artifact DIR, its records and its signature. Exits with 3 if anything is wrong.

    The key must come from elsewhere than DIR: one that travels with a model proves nothing. Without a key
    DIR is only shown to be whole. With --rebuild, relative paths of the recorded spec start at the current
    folder, and the base is taken from --base where that is given.
    """
    from editspec import GateFailed, InputError
    from excise import embedded
    from exporters.verify import verify_artifact

    if spec and not rebuild:
        raise InputError("--spec", "goes with --rebuild", "add --rebuild")
    embedded.register()
    trust = _trust(key, certificates, identity, issuer)
    report = verify_artifact(artifact, trust=trust, base=base, edited_card=edited_card)
    again = None
    if rebuild and report.ok:
        from excise.rebuild import rebuilt

        again = rebuilt(artifact, spec=spec, base=base, device=device)
    if as_json:
        facts = report.as_dict() | ({"rebuild": again.as_dict()} if again else {})
        facts["ok"] = report.ok and (again is None or again.ok)
        click.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _show(report, again)
    if report.ok and (again is None or again.ok):
        return
    if as_json:  # the report is the one object on stdout
        click.get_current_context().exit(3)
    count = len(report.findings) + (len(again.differences) if again else 0)
    raise GateFailed(f"{artifact} is not what was built: {count} finding{'s' if count != 1 else ''}")


def _trust(
    key: Path | None, certificates: tuple[Path, ...], identity: str | None, issuer: str | None
) -> Trust | None:
    if not (key or certificates or identity or issuer):
        return None
    from exporters.signature import Trust

    return Trust(key, certificates, identity, issuer)


def _show(report: VerifyReport, again: Rebuild | None) -> None:
    """Each check in a line, what it found below it."""
    from editspec.errors import printable

    states = report.as_dict()["checks"]
    for check, state in states.items():
        click.echo(f"{check:<10} {report.signature if (check, state) == ('signature', 'passed') else state}")
        found = [finding for finding in report.findings if finding.check == check]
        for finding in found[:MOST_SHOWN]:
            click.echo(f"  {printable(str(finding))}")
        if len(found) > MOST_SHOWN:
            click.echo(f"  and {len(found) - MOST_SHOWN} more")
    if again is not None:
        click.echo(f"{'rebuild':<10} {'passed' if again.ok else 'failed'}")
        for line in (*again.differences, *again.notes):
            click.echo(f"  {printable(line)}")
    if report.ok:
        click.echo(f"whole: {len(report.files)} files, {report.bytes:,} bytes, build {report.digest}")
        if report.signature != "verified":
            click.echo("nothing shows who made it: give the maker's public key with --key", err=True)
