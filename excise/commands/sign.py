"""`excise sign`: sign an artifact, so that others can verify who released it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

PASSWORD = "EXCISE_KEY_PASSWORD"  # noqa: S105 - the name of a variable

_file = click.Path(path_type=Path)


@click.command()
@click.argument("artifact", metavar="DIR", type=_file)
@click.option("--key", type=_file, help="Private key (PEM; EC on P-256, P-384 or P-521).")
@click.option("--certificate", type=_file, help="The key's certificate (PEM).")
@click.option(
    "--chain", type=_file, multiple=True, help="Certificates between it and the root (PEM); may be repeated."
)
@click.option("--sigstore", is_flag=True, help="Sign by an identity through Sigstore; needs the network.")
@click.option("--force", is_flag=True, help="Replace a signature that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print what was signed as JSON.")
def sign(
    artifact: Path,
    key: Path | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    sigstore: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write model.sig, an OpenSSF Model Signing bundle over every file, into the artifact DIR.

    With a key provenance/attestations.intoto.jsonl is written first: the manifest and the gates' results as
    signed in-toto attestations, one DSSE envelope a line. model.sig covers it too.

    Only an intact artifact that passed its gates is signed. The password of an encrypted key is asked for, or
    taken from the variable EXCISE_KEY_PASSWORD. `excise verify DIR --key PUBLIC` and the command
    `model_signing verify` check the result.
    """
    from compiler.artifact import ATTESTATIONS, SIGNATURE
    from editspec import InputError
    from exporters.sign import Signer, sign_artifact

    if (certificate or chain) and key is None:
        raise InputError("--certificate", "goes with the --key that it is for", "give both")
    if chain and certificate is None:
        raise InputError("--chain", "goes with --certificate", "give both")
    password = _password(key) if key is not None else None
    signer = Signer(key, certificate, chain, password, sigstore)
    report = sign_artifact(artifact, signer, force=force)
    if as_json:
        facts = {"ok": True, "artifact": str(artifact), "signature": str(artifact / SIGNATURE)}
        facts["attestations"] = None if sigstore else str(artifact / ATTESTATIONS)
        click.echo(json.dumps({**facts, "digest": report.digest, "files": len(report.files)}, indent=2))
    else:
        click.echo(str(artifact / SIGNATURE))


def _password(key: Path) -> bytes | None:
    """The password of an encrypted key: from the environment, else asked for; None for an open key."""
    from exporters.signature import read_pem

    if b"ENCRYPTED" not in read_pem(key):
        return None
    given = os.environ.get(PASSWORD)
    return (given or str(click.prompt("Password of the key", hide_input=True, err=True))).encode("utf-8")
