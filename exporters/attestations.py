"""What a signed artifact attests to tools that know nothing of Excise: how it was made, and what it passed.

One DSSE envelope a line, by the key that signs model.sig: the manifest as it is (SLSA provenance), and where
the spec has gates a test result over the same files. Both statements follow from the artifact's records, so
they are compared byte for byte; only the signatures are new.
https://github.com/secure-systems-lab/dsse, https://in-toto.io/attestation/test-result/v0.1
"""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compiler.artifact import ATTESTATIONS, GATES, MANIFEST, SIGNATURE, SPEC, Artifact
from compiler.json_file import read_object
from exporters.manifest import STATEMENT_TYPE, encoded
from exporters.signature import PAYLOAD_TYPE, Trust, public_key

TEST_RESULT_TYPE = "https://in-toto.io/attestation/test-result/v0.1"


def statements(artifact: Artifact) -> tuple[bytes, ...]:
    """What is attested, each as it is signed. `InputError` or `KeyError` for records that no build leaves."""
    manifest, gates = read_object(artifact.path(MANIFEST)), artifact.read(GATES)
    provenance = artifact.path(MANIFEST).read_bytes()
    # Where nothing was tested there is no result: "passed" would say more than is known.
    return (provenance, encoded(gate_results(manifest, gates))) if gates["gates"] else (provenance,)


def gate_results(manifest: Mapping[str, Any], gates: Mapping[str, Any]) -> dict[str, Any]:
    """The gates as an in-toto test result on the files of `manifest`; the numbers are in its gates.json.

    What the tests were is said by the spec and the evaluators, so these are its configuration.
    """
    made_from = manifest["predicate"]["buildDefinition"]["resolvedDependencies"]
    configuration = [one for one in made_from if one["name"] == SPEC or one["name"].startswith("evaluator/")]
    passed = [gate["id"] for gate in gates["gates"] if gate["passed"] is True]
    failed = [gate["id"] for gate in gates["gates"] if gate["passed"] is not True]
    return {
        "_type": STATEMENT_TYPE,
        "subject": manifest["subject"],
        "predicateType": TEST_RESULT_TYPE,
        "predicate": {
            "result": "FAILED" if failed else "PASSED",
            "configuration": configuration,
            "passedTests": passed,
            "failedTests": failed,
        },
    }


def signed_statements(artifact: Artifact, private: Any) -> bytes:
    """The file's content: every statement of the artifact in an envelope by the EC key `private`."""
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # it lists no exports

    signer = CryptoSigner(private)
    envelopes = [Envelope(payload, PAYLOAD_TYPE, {}) for payload in statements(artifact)]
    for envelope in envelopes:
        envelope.sign(signer)
    return b"".join(_line(envelope.to_dict()) for envelope in envelopes)


def attestation_flaws(artifact: Artifact, trust: Trust | None) -> Iterator[str]:
    """What is wrong with the attestations, in words that follow the file's name; nothing where they hold.

    Without `trust` all but the cryptography is checked. With it, model.sig must have been verified: a
    certificate is believed because that was signed by it.
    """
    lines = artifact.path(ATTESTATIONS).read_bytes().splitlines(keepends=True)
    expected = statements(artifact)
    if len(lines) != len(expected):
        yield f"holds {len(lines)} statements, where the record makes {len(expected)}"
        return
    if trust is not None and trust.identity:
        yield "is by a key, where an identity is trusted"
        return
    key = None if trust is None else _signing_key(artifact, trust)
    for line, payload in zip(lines, expected, strict=True):
        yield from _line_flaws(line, payload, key)


def _line_flaws(line: bytes, payload: bytes, key: Any) -> Iterator[str]:
    envelope = json.loads(line)
    (one,) = envelope["signatures"]
    expected = {"payload": base64.b64encode(payload).decode("ascii"), "payloadType": PAYLOAD_TYPE}
    if any(envelope[name] != value for name, value in expected.items()):
        yield f"does not say what the record says ({json.loads(payload)['predicateType']})"
    elif _line(expected | {"signatures": [{"keyid": one["keyid"], "sig": one["sig"]}]}) != line:
        yield "is not written as signing writes it"
    elif key is not None and not _is_by(envelope, key):
        yield "is not by the key of the signature"


def _is_by(envelope: dict[str, Any], key: Any) -> bool:
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import UnverifiedSignatureError
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

    try:
        Envelope.from_dict(copy.deepcopy(envelope)).verify(
            [SSlibKey.from_crypto(key)], 1
        )  # changes its input
    except UnverifiedSignatureError:
        return False
    return True


def _signing_key(artifact: Artifact, trust: Trust) -> Any:
    """The public key that the artifact's own, verified signature is by."""
    if trust.key is not None:
        return public_key(trust.key)
    from cryptography.x509 import load_der_x509_certificate

    material: Mapping[str, Any] = read_object(artifact.path(SIGNATURE))["verificationMaterial"]
    chain: Sequence[Mapping[str, str]] = material["x509CertificateChain"]["certificates"]
    return load_der_x509_certificate(base64.b64decode(chain[0]["rawBytes"])).public_key()


def _line(envelope: Mapping[str, Any]) -> bytes:
    return json.dumps(envelope, separators=(",", ":"), sort_keys=True).encode("ascii") + b"\n"
