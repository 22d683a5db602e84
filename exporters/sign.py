"""Signs an artifact: attestations of how it was made, then a Model Signing bundle over every file.

By key, certificate or Sigstore identity. The bundle covers the attestations too, so that none can be taken
away or exchanged; a Sigstore identity has no key of its own to make any with.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compiler.artifact import ATTESTATIONS, CARD, SIGNATURE, Artifact
from editspec.errors import GateFailed, InputError
from exporters.attestations import signed_statements
from exporters.signature import CURVES, known_digests, read_pem, require_library, sigstore_told
from exporters.verify import VerifyReport, verify_artifact

if TYPE_CHECKING:
    from model_signing.signing import Config as SigningConfig


@dataclass(frozen=True)
class Signer:
    """What to sign with. A private `key` (PEM, EC P-256, P-384 or P-521), alone or with its `certificate`
    and the `chain` up to the root; or `sigstore`, which asks an identity provider and needs the network.
    """

    key: Path | None = None
    certificate: Path | None = None
    chain: tuple[Path, ...] = ()
    password: bytes | None = field(default=None, repr=False)
    sigstore: bool = False
    identity_token: str | None = field(default=None, repr=False)

    def require_usable(self) -> None:
        """Raise `InputError` for a key that cannot sign, another key's certificate, or a missing library."""
        require_library()
        if self.sigstore == (self.key is not None):
            raise InputError("sign", "needs a key, or Sigstore, and not both", "give --key or --sigstore")
        if self.key is None:
            return
        private = private_key(self.key, self.password)
        if self.certificate is not None:
            self._require_own_certificate(private)

    def _require_own_certificate(self, private: Any) -> None:
        from cryptography.x509 import load_pem_x509_certificate, load_pem_x509_certificates

        assert self.certificate is not None
        try:
            certificate = load_pem_x509_certificate(read_pem(self.certificate))
            for path in self.chain:
                load_pem_x509_certificates(read_pem(path))
        except ValueError as error:
            raise InputError(
                str(self.certificate), "it or its chain is no certificate in PEM form"
            ) from error
        if certificate.public_key() != private.public_key():
            raise InputError(str(self.certificate), "is the certificate of another key", "give the key's own")
        if self.password is not None:
            remedy = "decrypt the key first: model-signing reads no encrypted key with a certificate"
            raise InputError(str(self.key), "is encrypted", remedy)


def private_key(path: Path, password: bytes | None = None) -> Any:
    """The elliptic-curve private key in a PEM file. `InputError` for everything else."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_pem(path), password)
    except TypeError as error:
        given = "is not encrypted, but a password was given" if password else "is encrypted"
        raise InputError(str(path), given, "its password comes from EXCISE_KEY_PASSWORD") from error
    except ValueError as error:
        what = "cannot be opened with this password" if password else "is no private key in PEM form"
        raise InputError(str(path), what) from error
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        remedy = "openssl ecparam -name prime256v1 -genkey -noout -out release.pem"
        raise InputError(str(path), "is not an EC key on P-256, P-384 or P-521", remedy)
    return key


def sign_artifact(folder: Path, signer: Signer, *, force: bool = False) -> VerifyReport:
    """Write the attestations and model.sig into the artifact `folder`; what was verified before signing.

    Only an intact artifact that passed its gates is signed: `GateFailed` says what is wrong with it. A
    signature that is there stays unless `force`. `InputError` for a key that cannot sign.
    """
    signer.require_usable()
    artifact = Artifact.open(folder)
    if artifact.path(SIGNATURE).exists() and not force:
        raise InputError(str(artifact.path(SIGNATURE)), "is signed already", "sign it anew with --force")
    report = verify_artifact(folder)
    replaced = (SIGNATURE, ATTESTATIONS)  # those of an earlier signing, or of one that was interrupted
    flaws = [str(one) for one in report.findings if one.check != "signature" and one.path not in replaced]
    if flaws:
        raise GateFailed("not signed: " + "\n  ".join(flaws[:20]))
    signed = {name: digest for name, digest in report.files.items() if name not in (*replaced, CARD)}
    attested = None
    if signer.key is not None:
        attested = signed_statements(artifact, private_key(signer.key, signer.password))
        signed[ATTESTATIONS] = hashlib.sha256(attested).hexdigest()
    bundle = _bundle(artifact, signed, signer)
    # Whatever ends this between the two files leaves what does not verify, and what signing again mends.
    _write(artifact, ATTESTATIONS, attested)
    _write(artifact, SIGNATURE, bundle)
    return report


def _bundle(artifact: Artifact, signed: dict[str, str], signer: Signer) -> bytes:
    from model_signing import signing

    config = signing.Config()
    with (
        tempfile.TemporaryDirectory(prefix="excise-sign-") as place,
        sigstore_told() if signer.sigstore else contextlib.nullcontext(),
    ):
        _choose(config, signer)
        config.set_hashing_config(known_digests(signed, artifact.folder.resolve().name))
        written = Path(place) / SIGNATURE
        config.sign(artifact.folder, written)
        return written.read_bytes()


def _choose(config: SigningConfig, signer: Signer) -> None:
    if signer.sigstore:
        config.use_sigstore_signer(
            use_ambient_credentials=signer.identity_token is None, identity_token=signer.identity_token
        )
    elif signer.certificate is not None:
        assert signer.key is not None
        config.use_certificate_signer(
            private_key=signer.key,
            signing_certificate=signer.certificate,
            # The library cannot read an empty chain; the certificate itself adds nothing to it.
            certificate_chain=signer.chain or (signer.certificate,),
        )
    else:
        assert signer.key is not None
        password: Any = signer.password  # the library declares text, and hands it on to one that wants bytes
        config.use_elliptic_key_signer(private_key=signer.key, password=password)


def _write(artifact: Artifact, name: str, data: bytes | None) -> None:
    """Put a file in place in one step; None takes it away."""
    path = artifact.path(name)
    if data is None:
        path.unlink(missing_ok=True)
        return
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.write_bytes(data)
        fresh.chmod(0o644)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
