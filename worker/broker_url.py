"""The broker's address, parsed once for clients that each read URLs in their own way. Opens no connection."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

_TLS = "rediss"
_SENTINEL = "sentinel"
_DEFAULT_PORT = 6379
_SENTINELS_PORT = 26379
_NEXT = ";"
"""Between two sentinels, as kombu has it."""

_OF_SENTINELS = ("master_name", "sentinel_username", "sentinel_password")
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
class Sentinels:
    """Redis Sentinels, which know the server that is the primary of `master_name` now. Their own user and
    password, if they ask for one, are not the servers'.
    """

    addresses: tuple[tuple[str, int], ...]
    master_name: str
    username: str | None
    password: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerUrl:
    """Where the broker is and how to speak to it.

    `url` has the password, percent-encoded throughout, and no query: kombu, Celery's result backend, Flower
    and redis-py each understand another part of one. With `sentinels` it is as kombu has it, an address of
    each with the servers' password and database: kombu goes on with any of them when one is away. `tls` has
    what the query said, in the names that all of them take as arguments; where it is empty nothing is
    encrypted.
    """

    url: str = field(repr=False)
    tls: Mapping[str, str | bool]
    addresses: tuple[tuple[str, int], ...]
    """Of the server or, with `sentinels`, theirs."""

    username: str | None
    password: str | None = field(repr=False)
    database: int
    sentinels: Sentinels | None = None

    @property
    def scheme(self) -> Literal["redis", "rediss", "sentinel"]:
        """`rediss` when everything that goes over the wire to the one server is encrypted."""
        if self.sentinels is not None:
            return "sentinel"
        return "rediss" if self.tls else "redis"

    @property
    def place(self) -> str:
        """Host and port, for people; with sentinels the name that they are asked for, and theirs."""
        addresses = ", ".join(f"{host}:{port}" for host, port in self.addresses)
        return f"{self.sentinels.master_name} (sentinels {addresses})" if self.sentinels else addresses


def parse(text: str) -> BrokerUrl:
    """Take `redis://…`, `rediss://…` or `sentinel://…;sentinel://…` apart. Raises `NotUnderstoodError`, whose
    text holds nothing of the URL.

    What no client would understand is refused, and so is an option about certificates in a URL that says
    plain text: its author believes that the connection is encrypted.
    """
    if text.startswith(f"{_SENTINEL}://"):
        return _of_sentinels(text)
    if f"{_NEXT}redis" in text:
        raise NotUnderstoodError("several servers are found by their sentinels: sentinel://…;sentinel://…")
    parts, query = _split(text)
    if parts.scheme not in {"redis", _TLS}:
        raise NotUnderstoodError("the scheme is none of redis, rediss and sentinel")
    _check(parts)
    tls = _tls_options(query) if parts.scheme == _TLS else _no_options(query)
    address = (parts.hostname or "", parts.port or _DEFAULT_PORT)
    database = _database(parts) or 0
    return BrokerUrl(
        url=f"{parts.scheme}://{_credentials(parts)}{_host(address)}/{database}",
        tls=tls,
        addresses=(address,),
        username=_decoded(parts.username),
        password=_decoded(parts.password),
        database=database,
    )


def _of_sentinels(text: str) -> BrokerUrl:
    """As kombu and Celery write it: a URL for each sentinel. User, password and database are the servers';
    they may stand in any of them, and what follows ? counts for all, at the end.

    TLS, for sentinels and servers alike, is what an `ssl_…` asks for: the scheme has no form for it.
    """
    each = text.split(_NEXT)
    if not all(one.startswith(f"{_SENTINEL}://") for one in each):
        raise NotUnderstoodError("each address after ; begins with sentinel://, and in a password ; is %3B")
    found = [_split(one) for one in each]
    for parts, query in found:
        _check(parts)
        if query and parts is not found[-1][0]:
            raise NotUnderstoodError(
                "what follows ? counts for all sentinels: it stands at the end, after the last"
            )
    credentials = {_credentials(parts) for parts, _query in found} - {""}
    databases = {_database(parts) for parts, _query in found} - {None}
    if len(credentials) > 1 or len(databases) > 1:
        raise NotUnderstoodError(
            "user, password and database are the servers', so they are the same in each address"
        )
    query = found[-1][1]
    of_sentinels = {name: query.pop(name) for name in _OF_SENTINELS if name in query}
    if not of_sentinels.get("master_name"):
        raise NotUnderstoodError("?master_name=NAME is missing: what the sentinels monitor")
    tls = _tls_options(query, also=_OF_SENTINELS) if query else {}
    database = next(iter(databases), None) or 0
    addresses = tuple((parts.hostname or "", parts.port or _SENTINELS_PORT) for parts, _query in found)
    with_password = next((parts for parts, _query in found if _credentials(parts)), found[0][0])
    return BrokerUrl(
        url=_NEXT.join(
            f"{_SENTINEL}://{_credentials(with_password)}{_host(address)}/{database}" for address in addresses
        ),
        tls=tls,
        addresses=addresses,
        username=_decoded(with_password.username),
        password=_decoded(with_password.password),
        database=database,
        sentinels=Sentinels(
            addresses=addresses,
            master_name=of_sentinels["master_name"],
            username=of_sentinels.get("sentinel_username"),
            password=of_sentinels.get("sentinel_password"),
        ),
    )


def _check(parts: SplitResult) -> None:
    if not parts.hostname or parts.port == 0:
        raise NotUnderstoodError("host or port is missing")
    if parts.fragment:
        raise NotUnderstoodError("what follows # means nothing; in a password write %23")


def _database(parts: SplitResult) -> int | None:
    number = parts.path.strip("/")
    if number and not number.isdecimal():
        raise NotUnderstoodError("the database is no number")
    return int(number) if number else None


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


def _tls_options(query: Mapping[str, str], also: Sequence[str] = ()) -> dict[str, str | bool]:
    """What the query says of certificates. By default the server must have a valid one for its name. `also`
    are options that were taken out of the query already.
    """
    known = {"ssl_cert_reqs", "ssl_check_hostname", *_FILES}
    if not query.keys() <= known:
        raise NotUnderstoodError(
            f"of what follows ? only {', '.join(sorted({*known, *also}))} are understood"
        )
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


def _decoded(text: str | None) -> str | None:
    return unquote(text) if text else None


def _host(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
