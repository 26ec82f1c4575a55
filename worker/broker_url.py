"""The broker's address, parsed once for clients that each read URLs in their own way. Opens no connection."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

_TLS = "rediss"
_DEFAULT_PORT = 6379
_CERTIFICATE_IS = {
    "required": "required",
    "optional": "optional",
    "none": "none",
    # As Celery spells them.
    "CERT_REQUIRED": "required",
    "CERT_OPTIONAL": "optional",
    "CERT_NONE": "none",
}
_TRUTH = {"true": True, "false": False}
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class NotUnderstoodError(ValueError):
    """A URL that is none of a broker. The text holds nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerUrl:
    """Where the broker is and how to speak to it.

    `url` has the password, percent-encoded throughout, and no query: kombu, Celery's result backend, Flower
    and redis-py each understand another part of one. `tls` has what the query said, in the names that all of
    them take as arguments; it is empty if and only if the scheme is `redis`, and then nothing is encrypted.
    """

    url: str = field(repr=False)
    tls: Mapping[str, str | bool]
    host: str
    port: int

    @property
    def scheme(self) -> Literal["redis", "rediss"]:
        """`rediss` when everything that goes over the wire is encrypted."""
        return "rediss" if self.tls else "redis"

    @property
    def place(self) -> str:
        """Host and port, for people."""
        return f"{self.host}:{self.port}"


def parse(text: str) -> BrokerUrl:
    """Take `redis://…` or `rediss://…` apart. Raises `NotUnderstoodError`, whose text holds nothing of the
    URL.

    What no client would understand is refused, and so is an option about certificates in a URL that says
    plain text: its author believes that the connection is encrypted.
    """
    parts, query = _split(text)
    if parts.scheme not in {"redis", _TLS}:
        raise NotUnderstoodError("the scheme is neither redis nor rediss")
    if not parts.hostname or parts.port == 0:
        raise NotUnderstoodError("host or port is missing")
    if parts.fragment:
        raise NotUnderstoodError("what follows # means nothing; in a password write %23")
    database = parts.path.strip("/")
    if database and not database.isdecimal():
        raise NotUnderstoodError("the database is no number")
    tls = _tls_options(query) if parts.scheme == _TLS else _no_options(query)
    return BrokerUrl(
        url=f"{parts.scheme}://{_credentials(parts)}{_host(parts)}/{database or 0}",
        tls=tls,
        host=parts.hostname,
        port=parts.port or _DEFAULT_PORT,
    )


def _split(text: str) -> tuple[SplitResult, dict[str, str]]:
    try:
        parts = urlsplit(text)
        # One that is no number shows itself only when it is read.
        _ = parts.port
        return parts, dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise NotUnderstoodError(
            "it is no URL; in a password write %23 for #, %2F for /, %3F for ?"
        ) from None


def _tls_options(query: Mapping[str, str]) -> dict[str, str | bool]:
    """What the query says of certificates. By default the server must have a valid one for its name."""
    known = {"ssl_cert_reqs", "ssl_check_hostname", *_FILES}
    if not query.keys() <= known:
        raise NotUnderstoodError(f"of what follows ? only {', '.join(sorted(known))} are understood")
    try:
        options: dict[str, str | bool] = {
            "ssl_cert_reqs": _CERTIFICATE_IS[query.get("ssl_cert_reqs", "required")],
            "ssl_check_hostname": _TRUTH[query.get("ssl_check_hostname", "true").lower()],
        }
    except KeyError:
        raise NotUnderstoodError(
            "ssl_cert_reqs is required, optional or none, ssl_check_hostname true or false"
        ) from None
    for name in (name for name in _FILES if name in query):
        # Clients say no more than "No such file or directory", and some only when they connect again after
        # days.
        if not (os.path.isfile(query[name]) and os.access(query[name], os.R_OK)):
            raise NotUnderstoodError(f"{name} names no file that can be read")
        options[name] = query[name]
    return options


def _no_options(query: Mapping[str, str]) -> dict[str, str | bool]:
    if any(name.startswith("ssl_") for name in query):
        raise NotUnderstoodError("with ssl_… the scheme must be rediss")
    if query:
        raise NotUnderstoodError("nothing may follow ?")
    return {}


def _credentials(parts: SplitResult) -> str:
    """User and password, encoded anew: a semicolon, for instance, would be two addresses to kombu."""
    if parts.username is None and parts.password is None:
        return ""
    return f"{_encoded(parts.username)}:{_encoded(parts.password)}@"


def _encoded(text: str | None) -> str:
    return quote(unquote(text or ""), safe="")


def _host(parts: SplitResult) -> str:
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{host}:{parts.port or _DEFAULT_PORT}"
