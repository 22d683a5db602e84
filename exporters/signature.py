"""The signature of an artifact: an OpenSSF Model Signing bundle, read strictly and checked by a trusted key.

The bundle (model.sig) is a Sigstore bundle of a DSSE envelope of an in-toto statement that lists every file.
Its cryptography is the model-signing library's. What the library lets pass is refused here first: another
spelling of the same JSON or base64, an ignore list of the signer's choice, hashes other than sha256.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.artifact import CARD, SIGNATURE, Artifact
from compiler.json_file import read_object
from editspec.errors import InputError

if TYPE_CHECKING:
    from model_signing.hashing import Config as HashingConfig

BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SIGNATURE_TYPE = "https://model_signing/signature/v1.0"

#: Not in the bundle. The card is bound by the manifest, so that the model-signing command still verifies an
#: artifact whose card was edited on the Hub; the others are what downloading adds.
IGNORED = (CARD, SIGNATURE, ".cache", ".git", ".gitattributes", ".github", ".gitignore")

INSTALL = "pip install 'excise[sign]'"
CURVES = ("secp256r1", "secp384r1", "secp521r1")


class BundleFlaw(Exception):
    """A bundle that is not as signing writes it; the message says what is wrong with the file."""


@dataclass(frozen=True)
class Trust:
    """Whose signature counts; exactly one of a public key (PEM), root certificates (PEM), or an identity.

    An `identity` (an e-mail address or a workflow's URL) is vouched for by its `issuer`, through Sigstore.
    """

    key: Path | None = None
    certificates: tuple[Path, ...] = ()
    identity: str | None = None
    issuer: str | None = None

    def require_usable(self) -> None:
        """Raise `InputError` for a key or certificate that can verify nothing, or a missing library."""
        require_library()
        if self.key is not None:
            public_key(self.key)
        for path in self.certificates:
            _require_certificate(path)
        if bool(self.identity) != bool(self.issuer):
            raise InputError("--identity", "goes with --issuer, and --issuer with it", "give both")
        if (self.key is not None) + bool(self.certificates) + bool(self.identity) != 1:
            raise InputError(
                "verify", "several kinds of trust, or none", "give a key, certificates or an identity"
            )

    @property
    def title(self) -> str:
        """Whom it trusts, in words."""
        if self.identity:
            return f"{self.identity} ({self.issuer})"
        return "this key" if self.key else "a certificate of these roots"


def signature_flaws(
    artifact: Artifact, digests: Mapping[str, str], trust: Trust | None, edited_card: bool = False
) -> Iterator[str]:
    """What is wrong with model.sig, in words that follow its name; nothing where it holds.

    `digests` are the sha256 of all files of the artifact as they are. Without `trust` all but the
    cryptography is checked.
    """
    try:
        bundle = read_object(artifact.path(SIGNATURE))
        _require_canonical(artifact.path(SIGNATURE).read_bytes(), bundle)
        signed = signed_files(bundle)
    except (BundleFlaw, InputError) as flaw:
        yield flaw.what if isinstance(flaw, InputError) else str(flaw)
        return
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as flaw:
        yield f"is not a model-signing bundle ({type(flaw).__name__})"
        return
    unsigned = {SIGNATURE, CARD} - ({CARD} if CARD in signed and not edited_card else set())
    expected = {name: digest for name, digest in digests.items() if name not in unsigned}
    seen = {name: digest for name, digest in signed.items() if name not in unsigned}
    for name in sorted(expected.keys() | seen.keys()):
        if name not in seen:
            yield f"does not cover {name}"
        elif name not in expected:
            yield f"covers {name}, which is missing"
        elif seen[name] != expected[name]:
            yield f"covers another {name} than this one"
    if trust is not None and (refusal := _refusal(artifact, signed, trust)) is not None:
        yield refusal


def signed_files(bundle: Mapping[str, Any]) -> dict[str, str]:
    """Name -> sha256 (hex) of what a bundle claims to sign. `BundleFlaw` where it could be read twice."""
    from exporters.manifest import is_canonical

    envelope = _exactly(bundle, "mediaType", "verificationMaterial", "dsseEnvelope")["dsseEnvelope"]
    _same("media type", bundle["mediaType"], BUNDLE_TYPE)
    _require_plain_material(bundle["verificationMaterial"])
    _exactly(envelope, "payload", "payloadType", "signatures")
    _same("payload type", envelope["payloadType"], PAYLOAD_TYPE)
    (one,) = envelope["signatures"]
    _same("key id", _exactly(one, "sig", "keyid").get("keyid"), "")
    _decoded(one["sig"])
    statement = json.loads(_decoded(envelope["payload"]))
    _exactly(statement, "_type", "subject", "predicateType", "predicate")
    _same("statement type", statement["_type"], STATEMENT_TYPE)
    _same("predicate type", statement["predicateType"], SIGNATURE_TYPE)
    predicate = _exactly(statement["predicate"], "serialization", "resources")
    how = predicate["serialization"]
    if (how["method"], how["hash_type"], how["allow_symlinks"]) != ("files", "sha256", False):
        raise BundleFlaw("does not sign whole files by sha256")
    if foreign := set(how.get("ignore_paths", [])) - set(IGNORED):
        raise BundleFlaw(f"leaves out {min(foreign)}, which only its signer chose")
    files: dict[str, str] = {}
    for resource in predicate["resources"]:
        _exactly(resource, "name", "algorithm", "digest")
        name = resource["name"]
        if not is_canonical(name) or name in files or resource["algorithm"] != "sha256":
            raise BundleFlaw(f"lists {name[:80]!r} in a way that could be read twice")
        files[name] = resource["digest"]
    return files


def known_digests(digests: Mapping[str, str], name: str) -> HashingConfig:
    """A hashing configuration of model-signing that has its hashes already: no byte is read twice."""
    from model_signing import hashing, manifest

    # Two parts of the library that it does not export make up a manifest.
    from model_signing._hashing.hashing import Digest

    how = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": list(IGNORED)}
    kind = manifest.SerializationType.from_args(how)
    items = [kind.new_item(path, Digest("sha256", bytes.fromhex(found))) for path, found in digests.items()]

    class Known(hashing.Config):
        def hash(self, model_path: Any, *, files_to_hash: Any = None) -> manifest.Manifest:
            return manifest.Manifest(name, items, kind)

    return Known()  # type: ignore[no-untyped-call]  # the constructor that it inherits


def require_library() -> None:
    """Raise `InputError` where the extra `sign` is not installed."""
    import importlib.util

    # model-signing 1.1.1 imports OpenSSL without declaring it.
    missing = [
        name
        for name in ("model_signing", "OpenSSL", "securesystemslib")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise InputError("signatures", f"need the package {missing[0]}", INSTALL)


@contextlib.contextmanager
def sigstore_told() -> Iterator[None]:
    """Inside, what goes wrong with Sigstore's servers or with the identity is an `InputError`."""
    try:
        yield
    except Exception as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        remedy = "check the network and who you are logged in as, or use a key: --key"
        raise InputError("Sigstore", f"did not answer as it should: {why}", remedy) from error


def public_key(path: Path) -> Any:
    """The elliptic-curve public key in a PEM file. `InputError` for everything else."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = read_pem(path)
    if b"PRIVATE KEY" in data:
        raise InputError(str(path), "is a private key", "verify with the public one; keep this one secret")
    try:
        key = load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(str(path), "is no public key in PEM form", "give the signer's public key") from error
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise InputError(str(path), "is not an EC key on P-256, P-384 or P-521", "model signing knows these")
    return key


def read_pem(path: Path) -> bytes:
    """The bytes of a small PEM file. `InputError` where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(2**20)
    except OSError as error:
        raise InputError(str(path), f"cannot be read: {error.strerror}") from error


def _require_certificate(path: Path) -> None:
    from cryptography.x509 import load_pem_x509_certificates

    try:
        load_pem_x509_certificates(read_pem(path))
    except ValueError as error:
        raise InputError(str(path), "is no certificate in PEM form", "give the root's certificate") from error


def _refusal(artifact: Artifact, signed: Mapping[str, str], trust: Trust) -> str | None:
    """Why the library does not find the bundle to be by somebody trusted; None where it does."""
    from model_signing import verifying

    config = verifying.Config()
    if trust.identity:
        with sigstore_told():
            config.use_sigstore_verifier(identity=trust.identity, oidc_issuer=trust.issuer or "")
    try:
        if trust.key is not None:
            config.use_elliptic_key_verifier(public_key=trust.key)
        elif trust.certificates:
            config.use_certificate_verifier(certificate_chain=trust.certificates)
        config.set_hashing_config(known_digests(signed, artifact.folder.name))
        config.verify(artifact.folder, artifact.path(SIGNATURE))
    except Exception as error:  # noqa: BLE001 - four libraries raise here, and each error is a refusal
        why = (
            "" if trust.key is not None else f" ({str(error).partition(chr(10))[0] or type(error).__name__})"
        )
        return f"is not by {trust.title}{why}"
    return None


def _require_canonical(data: bytes, bundle: Mapping[str, Any]) -> None:
    if json.dumps(bundle, separators=(",", ":"), ensure_ascii=False).encode("utf-8") != data:
        raise BundleFlaw("is not written as signing writes it")


def _require_plain_material(material: Mapping[str, Any]) -> None:
    """A key's hint, a chain of certificates, or Sigstore's certificate: one, and nothing beside it."""
    if "publicKey" in material:
        hint = _exactly(_exactly(material, "publicKey", "tlogEntries")["publicKey"], "hint")["hint"]
        if not isinstance(hint, str) or len(hint) != 64:
            raise BundleFlaw("does not say which key it is by")
    elif "x509CertificateChain" in material:
        chain = _exactly(material, "x509CertificateChain", "tlogEntries")["x509CertificateChain"]
        for certificate in _exactly(chain, "certificates")["certificates"]:
            _decoded(_exactly(certificate, "rawBytes")["rawBytes"])
    elif "certificate" not in material:
        raise BundleFlaw("does not say whom it is by")
    if "certificate" not in material:
        _same("transparency log", material["tlogEntries"], [])


def _exactly(value: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    if set(value) != set(keys):
        raise BundleFlaw(f"has other parts than {', '.join(keys)}")
    return value


def _same(name: str, value: object, expected: object) -> None:
    if value != expected:
        raise BundleFlaw(f"has another {name} than {expected!r}")


def _decoded(text: str) -> bytes:
    """Base64 in its only spelling: the last letter has bits that decoding ignores."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BundleFlaw("has base64 that cannot be decoded") from error
    if base64.b64encode(data).decode("ascii") != text:
        raise BundleFlaw("is not written as signing writes it")
    return data
