"""Certificates of an afternoon: an authority, a server's certificate of it, and an unknown authority."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

PROGRAM = "openssl"

_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
_OF_A_SERVER = """
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = IP:{address}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Files in PEM format. `authority` has signed `certificate`, `stranger` has signed nothing."""

    authority: Path
    certificate: Path
    key: Path
    stranger: Path


def make(folder: Path, address: str) -> Certificates:
    """Make all of them for a server at this address."""
    authority, its_key = _authority(folder, "authority")
    stranger, _ = _authority(folder, "stranger")
    request, extensions = folder / "server.csr", folder / "server.cnf"
    certificate, key = folder / "server.pem", folder / "server.key"
    extensions.write_text(_OF_A_SERVER.format(address=address))
    _openssl("req", *_KEY, "-keyout", key, "-out", request, "-subj", "/CN=server of a test")
    _openssl(
        *("x509", "-req", "-in", request, "-CA", authority, "-CAkey", its_key, "-CAcreateserial"),
        *("-days", "2", "-extfile", extensions, "-out", certificate),
    )
    return Certificates(authority=authority, certificate=certificate, key=key, stranger=stranger)


def _authority(folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
    _openssl(
        *("req", "-x509", *_KEY, "-keyout", key, "-out", certificate, "-days", "2"),
        *("-subj", f"/CN={name} of a test", "-addext", "keyUsage=critical,keyCertSign,cRLSign"),
    )
    return certificate, key


def _openssl(*arguments: str | Path) -> None:
    subprocess.run([PROGRAM, *arguments], check=True, capture_output=True)
