from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from signing_keys import Keys

from compiler import artifact as layout
from compiler.artifact import Artifact
from editspec.errors import GateFailed, InputError
from exporters.manifest import write_manifest
from exporters.sign import Signer, sign_artifact
from exporters.signature import Trust
from exporters.verify import VerifyReport, verify_artifact

pytest.importorskip("model_signing", reason="needs the extra 'sign'")


def what(report: VerifyReport) -> str:
    return "\n".join(finding.what for finding in report.findings if finding.check == "signature")


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_what_is_signed_verifies_with_the_public_key(curve: str, built: Path, keys: Keys) -> None:
    private, public = keys.pair("release", curve)
    sign_artifact(built, Signer(key=private))
    report = verify_artifact(built, public)
    assert report.ok
    assert report.signature == "verified"
    assert (built / layout.SIGNATURE).stat().st_mode & 0o777 == 0o644


def test_a_signed_artifact_may_be_moved_and_renamed(signed: tuple[Path, Path], tmp_path: Path) -> None:
    folder, public = signed
    assert verify_artifact(folder.rename(tmp_path / "elsewhere"), public).ok


def test_the_model_signing_command_verifies_it_too_even_with_an_edited_card(
    signed: tuple[Path, Path],
) -> None:
    folder, public = signed

    def verified() -> int:
        command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder)]
        command += ["--signature", str(folder / layout.SIGNATURE), "--public_key", str(public)]
        return subprocess.run(command, capture_output=True, check=False).returncode

    (folder / "README.md").write_text("edited on the Hub", "utf-8")
    assert verified() == 0
    assert verify_artifact(folder, public, edited_card=True).ok
    assert not verify_artifact(folder, public).ok
    (folder / "unet/config.json").write_text("{}", "utf-8")
    assert verified() == 1


def test_without_a_key_a_signature_is_not_counted_as_checked(signed: tuple[Path, Path]) -> None:
    report = verify_artifact(signed[0])
    assert report.ok
    assert report.signature == "not checked"


def test_the_signature_of_another_key_is_refused(signed: tuple[Path, Path], keys: Keys) -> None:
    folder, public = signed
    sign_artifact(folder, Signer(key=keys.pair("thief")[0]), force=True)
    report = verify_artifact(folder, public)
    assert what(report) == "is not by this key"
    assert report.signature == "not checked"


def test_a_forged_manifest_signed_by_another_key_is_refused(signed: tuple[Path, Path], keys: Keys) -> None:
    folder, public = signed
    (folder / "README.md").write_text("safe for children", "utf-8")
    write_manifest(Artifact(folder))
    sign_artifact(folder, Signer(key=keys.pair("thief")[0]), force=True)
    assert verify_artifact(folder).ok, "whole, but by somebody else"
    assert what(verify_artifact(folder, public)) == "is not by this key"


def test_a_manifest_made_anew_is_not_the_one_that_was_signed(signed: tuple[Path, Path]) -> None:
    folder, public = signed
    (folder / "README.md").write_text("safe for children", "utf-8")
    write_manifest(Artifact(folder))
    assert what(verify_artifact(folder, public)) == f"covers another {layout.MANIFEST} than this one"


def test_a_missing_signature_is_refused_where_a_key_is_given(built: Path, keys: Keys) -> None:
    report = verify_artifact(built, keys.pair("release")[1])
    assert "nobody signed" in what(report)
    assert report.signature == "absent"


def test_the_signature_of_another_artifact_is_refused(
    signed: tuple[Path, Path], tiny_artifact: Path, tmp_path: Path
) -> None:
    folder, public = signed
    other = Path(shutil.copytree(tiny_artifact, tmp_path / "other"))
    (other / "README.md").write_text("another card", "utf-8")
    write_manifest(Artifact(other))
    shutil.copy(folder / layout.SIGNATURE, other)
    assert "another" in what(verify_artifact(other, public))


def test_every_flipped_byte_of_the_signature_is_found(signed: tuple[Path, Path]) -> None:
    """JSON and base64 have spellings that decode alike; only the one that signing writes is taken."""
    folder, public = signed
    path = folder / layout.SIGNATURE
    original = path.read_bytes()
    draw = random.Random(5)
    text = original.decode("ascii")
    ends = [text.index('","payloadType') - 3, text.index('","keyid') - 3, text.index('hint"') + 3]
    for at in (*ends, *(draw.randrange(len(original)) for _ in range(40))):
        flipped = bytes([original[at] ^ draw.choice((1, 2, 4, 8, 16, 32))])
        path.write_bytes(original[:at] + flipped + original[at + 1 :])
        assert not verify_artifact(folder, public).ok, f"byte {at} became {flipped!r} unseen"


def bundle_with(change: Callable[[dict[str, Any], dict[str, Any]], object], path: Path) -> None:
    """Change bundle and statement, and write both in the form that signing has."""
    bundle = json.loads(path.read_text("utf-8"))
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    change(bundle, statement)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    path.write_text(json.dumps(bundle, separators=(",", ":")), "utf-8")


BUNDLES: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "leaves out": lambda b, s: s["predicate"]["serialization"].update(ignore_paths=["unet"]),
    "by sha256": lambda b, s: s["predicate"]["serialization"].update(hash_type="blake2"),
    "whole files": lambda b, s: s["predicate"]["serialization"].update(method="shards"),
    "does not cover": lambda b, s: s["predicate"]["resources"].pop(),
    "read twice": lambda b, s: s["predicate"]["resources"][0].update(name="../x"),
    "predicate type": lambda b, s: s.update(predicateType="https://slsa.dev/provenance/v1"),
    "statement type": lambda b, s: s.update(_type="https://in-toto.io/Statement/v0.1"),
    "media type": lambda b, s: b.update(mediaType="application/json"),
    "other parts": lambda b, s: b.update(note="trust me"),
    "not a model-signing bundle": lambda b, s: b["dsseEnvelope"].update(signatures=[]),
    "whom it is by": lambda b, s: b.update(verificationMaterial={}),
    "payload type": lambda b, s: b["dsseEnvelope"].update(payloadType="text/plain"),
}


@pytest.mark.parametrize("flaw", BUNDLES)
def test_a_bundle_that_claims_what_signing_never_writes_is_refused_without_a_key_too(
    flaw: str, signed: tuple[Path, Path]
) -> None:
    folder, _ = signed
    bundle_with(BUNDLES[flaw], folder / layout.SIGNATURE)
    assert flaw in what(verify_artifact(folder))


def test_a_certificate_is_verified_against_its_root(built: Path, keys: Keys) -> None:
    private, certificate, root = keys.certified("release")
    sign_artifact(built, Signer(key=private, certificate=certificate))
    assert verify_artifact(built, trust=Trust(certificates=(root,))).signature == "verified"
    stranger = keys.certified("stranger")[2]
    report = verify_artifact(built, trust=Trust(certificates=(stranger,)))
    assert "is not by a certificate of these roots" in what(report)


def test_a_certificate_below_an_intermediate_is_verified_against_the_root(built: Path, keys: Keys) -> None:
    private, certificate, chain, root = keys.certified_through("release")
    sign_artifact(built, Signer(key=private, certificate=certificate, chain=(chain,)))
    assert verify_artifact(built, trust=Trust(certificates=(root,))).signature == "verified"
    sign_artifact(built, Signer(key=private, certificate=certificate), force=True)
    report = verify_artifact(built, trust=Trust(certificates=(root,)))
    assert "is not by a certificate of these roots" in what(report), "nothing leads from it to the root"


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server can be reached: whatever is asked for goes to a closed port of this machine."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def test_without_the_network_sigstore_is_refused_and_nothing_is_signed(built: Path, nowhere: None) -> None:
    with pytest.raises(InputError, match=r"Sigstore: did not answer as it should.*\n.*or use a key"):
        sign_artifact(built, Signer(sigstore=True))
    assert not (built / layout.SIGNATURE).exists()
    assert not (built / layout.ATTESTATIONS).exists()


def test_an_identity_that_cannot_be_looked_up_is_no_verdict_on_the_artifact(
    signed: tuple[Path, Path], nowhere: None
) -> None:
    trust = Trust(identity="a@b.c", issuer="https://accounts.example.org")
    with pytest.raises(InputError, match="Sigstore: did not answer"):
        verify_artifact(signed[0], trust=trust)


def test_an_encrypted_key_signs_with_its_password(built: Path, keys: Keys) -> None:
    private, public = keys.pair("release", password=b"open sesame")
    for password, said in ((None, "is encrypted"), (b"wrong", "cannot be opened")):
        with pytest.raises(InputError, match=said):
            sign_artifact(built, Signer(key=private, password=password))
    sign_artifact(built, Signer(key=private, password=b"open sesame"))
    assert verify_artifact(built, public).signature == "verified"


def test_neither_key_nor_password_is_shown_in_a_signer() -> None:
    assert "sesame" not in repr(Signer(key=Path("k"), password=b"sesame", identity_token="sesame"))


def test_only_an_intact_artifact_is_signed(built: Path, keys: Keys) -> None:
    private, _ = keys.pair("release")
    (built / "unet/config.json").write_text("{}", "utf-8")
    with pytest.raises(GateFailed, match=r"unet/config\.json: is changed"):
        sign_artifact(built, Signer(key=private))
    assert not (built / layout.SIGNATURE).exists()


def test_a_signature_is_replaced_only_by_force(signed: tuple[Path, Path], keys: Keys) -> None:
    folder, _ = signed
    private, public = keys.pair("next")
    with pytest.raises(InputError, match="is signed already"):
        sign_artifact(folder, Signer(key=private))
    sign_artifact(folder, Signer(key=private), force=True)
    assert verify_artifact(folder, public).ok


def test_keys_that_cannot_sign_or_verify_are_bad_input(built: Path, keys: Keys) -> None:
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private, public = keys.pair("release")
    edwards = Ed25519PrivateKey.generate()
    other = keys.folder / "ed.pem"
    other.write_bytes(edwards.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption()))
    with pytest.raises(InputError, match="P-256"):
        sign_artifact(built, Signer(key=other))
    with pytest.raises(InputError, match="no private key"):
        sign_artifact(built, Signer(key=public))
    with pytest.raises(InputError, match="is a private key"):
        verify_artifact(built, private)
    with pytest.raises(InputError, match="no public key"):
        verify_artifact(built, built / "README.md")
    with pytest.raises(InputError, match="cannot be read"):
        verify_artifact(built, keys.folder / "absent")
    with pytest.raises(InputError, match="another key"):
        sign_artifact(built, Signer(key=private, certificate=keys.certified("x")[1]))
