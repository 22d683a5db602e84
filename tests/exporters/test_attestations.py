from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from signing_keys import Keys
from small_artifact import build as small

from compiler import artifact as layout
from compiler.artifact import Artifact
from exporters.attestations import TEST_RESULT_TYPE, signed_statements, statements
from exporters.inventory import Inventory
from exporters.manifest import PREDICATE_TYPE
from exporters.sign import Signer, private_key, sign_artifact
from exporters.signature import Trust, known_digests
from exporters.verify import VerifyReport, verify_artifact

pytest.importorskip("model_signing", reason="needs the extra 'sign'")

Envelopes = list[dict[str, Any]]


def found(report: VerifyReport) -> list[tuple[str, str, str]]:
    return [(finding.check, finding.path, finding.what) for finding in report.findings]


def envelopes(folder: Path) -> Envelopes:
    return [json.loads(line) for line in (folder / layout.ATTESTATIONS).read_bytes().splitlines()]


def sign_what_is_there(folder: Path, private: Path, certificate: Path | None = None) -> None:
    """Write model.sig alone, by the library, over all files as they are."""
    from model_signing import signing

    digests = Inventory.of(folder).digests()
    covered = {n: digest for n, digest in digests.items() if n not in (layout.SIGNATURE, layout.CARD)}
    config = signing.Config()
    if certificate is None:
        config.use_elliptic_key_signer(private_key=private)
    else:
        config.use_certificate_signer(
            private_key=private, signing_certificate=certificate, certificate_chain=[certificate]
        )
    config.set_hashing_config(known_digests(covered, folder.name)).sign(folder, folder / layout.SIGNATURE)


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_a_stock_verifier_finds_provenance_and_gate_results_by_the_signers_key(
    curve: str, built: Path, keys: Keys
) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined] # exported, but not marked so

    private, public = keys.pair("release", curve)
    sign_artifact(built, Signer(key=private))
    own, strange = (
        SSlibKey.from_crypto(load_pem_public_key(path.read_bytes()))
        for path in (public, keys.pair("stranger", curve)[1])
    )
    payloads = []
    for found_one in envelopes(built):
        envelope = Envelope.from_dict(found_one)
        envelope.verify([own], 1)
        with pytest.raises(VerificationError):
            envelope.verify([strange], 1)
        assert envelope.payload_type == "application/vnd.in-toto+json"
        payloads.append(envelope.payload)
    assert payloads[0] == (built / layout.MANIFEST).read_bytes()
    kinds = [json.loads(payload)["predicateType"] for payload in payloads]
    assert kinds == [PREDICATE_TYPE, TEST_RESULT_TYPE]
    assert (built / layout.ATTESTATIONS).stat().st_mode & 0o777 == 0o644
    assert verify_artifact(built, public).signature == "verified"


def test_the_gate_results_are_a_statement_that_the_specifications_own_types_accept(built: Path) -> None:
    from google.protobuf.json_format import ParseDict
    from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement

    provenance, results = map(json.loads, statements(Artifact(built)))
    Statement.copy_from_pb(ParseDict(results, statement_pb2.Statement())).validate()
    ParseDict(results["predicate"], test_result_pb2.TestResult())  # an unknown field is an error
    assert results["subject"] == provenance["subject"]
    gates = Artifact(built).read(layout.GATES)["gates"]
    assert results["predicate"]["passedTests"] == [gate["id"] for gate in gates] != []
    assert (results["predicate"]["result"], results["predicate"]["failedTests"]) == ("PASSED", [])
    spec = {"name": layout.SPEC, "digest": {"sha256": Artifact(built).sha256(layout.SPEC)}}
    assert spec in results["predicate"]["configuration"]


def test_where_nothing_was_tested_no_result_is_attested(tmp_path: Path) -> None:
    (only,) = statements(Artifact(small(tmp_path / "small")))
    assert json.loads(only)["predicateType"] == PREDICATE_TYPE


def test_a_failed_gate_makes_the_result_a_failure(built: Path) -> None:
    artifact = Artifact(built)
    gates = artifact.read(layout.GATES)
    gates["gates"][0]["passed"] = False
    artifact.write(layout.GATES, gates)
    predicate = json.loads(statements(artifact)[1])["predicate"]
    assert (predicate["result"], predicate["passedTests"]) == ("FAILED", [])
    assert predicate["failedTests"] == [gates["gates"][0]["id"]]


def test_attestations_that_are_removed_or_changed_are_missed_by_the_signature(
    signed: tuple[Path, Path],
) -> None:
    folder, public = signed
    path = folder / layout.ATTESTATIONS
    original = path.read_bytes()
    path.write_bytes(original.replace(b"payload", b"payl0ad", 1))
    for key in (None, public):
        assert (
            "signature",
            layout.SIGNATURE,
            f"covers another {layout.ATTESTATIONS} than this one",
        ) in found(verify_artifact(folder, key))
    path.unlink()
    assert found(verify_artifact(folder, public)) == [
        ("signature", layout.SIGNATURE, f"covers {layout.ATTESTATIONS}, which is missing")
    ]


def test_attestations_by_another_key_are_refused_though_the_signature_covers_them(
    signed: tuple[Path, Path], keys: Keys
) -> None:
    folder, public = signed
    forged = signed_statements(Artifact(folder), private_key(keys.pair("thief")[0]))
    (folder / layout.ATTESTATIONS).write_bytes(forged)
    sign_what_is_there(folder, keys.folder / "release.pem")
    report = verify_artifact(folder, public)
    assert set(found(report)) == {("signature", layout.ATTESTATIONS, "is not by the key of the signature")}
    assert report.signature == "not checked"


def altered(lines: Envelopes) -> None:
    statement = json.loads(base64.b64decode(lines[1]["payload"]))
    statement["predicate"]["passedTests"].append("never-run")
    lines[1]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()


WRONG: dict[str, tuple[Callable[[Envelopes], object], str]] = {
    "a result that no gate gave": (altered, f"does not say what the record says ({TEST_RESULT_TYPE})"),
    "one left out": (lambda lines: lines.pop(), "holds 1 statements, where the record makes 2"),
    "exchanged": (lambda lines: lines.reverse(), f"does not say what the record says ({PREDICATE_TYPE})"),
    "another type": (
        lambda lines: lines[0].update(payloadType="text/plain"),
        f"does not say what the record says ({PREDICATE_TYPE})",
    ),
    "more than an envelope": (
        lambda lines: lines[0].update(note="trust me"),
        "is not written as signing writes it",
    ),
    "no envelope": (
        lambda lines: lines[0].pop("signatures"),
        "lacks what a build records (KeyError: 'signatures')",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_attestations_other_than_the_record_makes_are_refused_though_the_signer_covers_them(
    wrong: str, signed: tuple[Path, Path], keys: Keys
) -> None:
    folder, public = signed
    change, says = WRONG[wrong]
    lines = envelopes(folder)
    change(lines)
    text = "".join(json.dumps(line, separators=(",", ":"), sort_keys=True) + "\n" for line in lines)
    (folder / layout.ATTESTATIONS).write_text(text, "ascii")
    sign_what_is_there(folder, keys.folder / "release.pem")
    for key in (None, public):
        assert ("signature", layout.ATTESTATIONS, says) in found(verify_artifact(folder, key))


def test_an_artifact_signed_without_attestations_still_verifies(built: Path, keys: Keys) -> None:
    private, public = keys.pair("release")
    sign_what_is_there(built, private)
    assert not (built / layout.ATTESTATIONS).exists()
    assert verify_artifact(built, public).signature == "verified"


def test_with_a_certificate_the_attestations_are_by_its_key(built: Path, keys: Keys) -> None:
    private, certificate, root = keys.certified("release")
    sign_artifact(built, Signer(key=private, certificate=certificate))
    trust = Trust(certificates=(root,))
    assert verify_artifact(built, trust=trust).signature == "verified"
    forged = signed_statements(Artifact(built), private_key(keys.pair("thief")[0]))
    (built / layout.ATTESTATIONS).write_bytes(forged)
    sign_what_is_there(built, private, certificate)
    report = verify_artifact(built, trust=trust)
    assert set(found(report)) == {("signature", layout.ATTESTATIONS, "is not by the key of the signature")}


def test_signing_that_ended_between_its_two_files_does_not_verify_and_is_mended_by_signing(
    built: Path, keys: Keys
) -> None:
    private, public = keys.pair("release")
    (built / layout.ATTESTATIONS).write_bytes(signed_statements(Artifact(built), private_key(private)))
    assert found(verify_artifact(built)) == [
        ("files", layout.ATTESTATIONS, "is unexpected: the artifact is not signed")
    ]
    sign_artifact(built, Signer(key=private))
    assert verify_artifact(built, public).signature == "verified"
