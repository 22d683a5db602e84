"""Keys and certificates to sign with, made for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Keys:
    """Key pairs and certificates in a folder, made as they are needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def pair(self, name: str, curve: str = "SECP256R1", password: bytes | None = None) -> tuple[Path, Path]:
        from cryptography.hazmat.primitives import serialization as s
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(getattr(ec, curve)())
        locked = s.BestAvailableEncryption(password) if password else s.NoEncryption()
        private, public = self.folder / f"{name}.pem", self.folder / f"{name}.pub"
        private.write_bytes(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, locked))
        public.write_bytes(key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
        return private, public

    def certified(self, name: str) -> tuple[Path, Path, Path]:
        """A private key, its certificate, and the root that signed it."""
        leaf, root = self._chain(name, f"{name}-ca")
        return self.folder / f"{name}.pem", leaf, root

    def certified_through(self, name: str) -> tuple[Path, Path, Path, Path]:
        """A private key, its certificate, that of the authority which signed it, and of that one's root."""
        leaf, middle, root = self._chain(name, f"{name}-middle", f"{name}-ca")
        return self.folder / f"{name}.pem", leaf, middle, root

    def _chain(self, *names: str) -> list[Path]:
        """Certificates of fresh keys, each signed by the next, the last by itself."""
        import datetime

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import NameOID

        keys: list[Any] = [
            serialization.load_pem_private_key(self.pair(name)[0].read_bytes(), None) for name in names
        ]
        titles = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in names]
        start = datetime.datetime(2026, 1, 1)
        paths = []
        for at, key in enumerate(keys):
            above = min(at + 1, len(keys) - 1)
            usage = x509.KeyUsage(at == 0, False, False, False, False, at > 0, False, False, False)
            issuer = keys[above].public_key()
            certificate = (
                x509.CertificateBuilder()
                .subject_name(titles[at])
                .issuer_name(titles[above])
                .public_key(key.public_key())
                .serial_number(at + 1)
                .not_valid_before(start)
                .not_valid_after(start + datetime.timedelta(days=3650))
                .add_extension(x509.BasicConstraints(ca=at > 0, path_length=None), critical=True)
                .add_extension(usage, critical=True)
                .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer), critical=False)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .sign(keys[above], hashes.SHA256())
            )
            paths.append(self.folder / f"{names[at]}.crt")
            paths[-1].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return paths
