"""The database's address, as libpq's other users write it, for SQLAlchemy. Opens no connection."""

import re
from urllib.parse import unquote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

_DRIVER = "postgresql+psycopg2"
_DEFAULT_PORT = 5432
_SCHEMES = {"postgresql", "postgres", _DRIVER}
_OF_MYSQL = {"mysql", "mariadb"}


class NotUnderstoodError(ValueError):
    """A URL that is none of PostgreSQL. The text holds nothing of it."""


def parse(text: str) -> URL:
    """Take `postgresql://…` or `postgres://…` apart: one host or several, a host name, an address or the
    directory of a socket, or none at all and a `service`. Raises `NotUnderstoodError`, with a text that holds
    nothing of the URL's.
    """
    scheme, found, rest = text.strip().partition("://")
    if not found or (not scheme.isidentifier() and "+" not in scheme):
        raise NotUnderstoodError(_why_no_url(text))
    if scheme.startswith("postgresql+") and scheme != _DRIVER:
        raise NotUnderstoodError("the driver is psycopg2; write postgresql://")
    if scheme.partition("+")[0] in _OF_MYSQL:
        raise NotUnderstoodError(
            "Label's database has to be in PostgreSQL; docs/from-mysql.md brings it there from MySQL or MariaDB"
        )
    if scheme not in _SCHEMES:
        raise NotUnderstoodError("the scheme is neither postgresql nor postgres")
    place, slash, tail = rest.partition("/") if "/" in rest.partition("?")[0] else _without_database(rest)
    credentials, at, hosts = place.rpartition("@")
    if "@" in credentials or "@" in tail.partition("?")[0]:
        raise NotUnderstoodError("in user and password write %40 for @, %2F for /, %3F for ?, %23 for #")
    return _with_hosts(f"{_DRIVER}://{credentials}{at}", hosts, f"{slash}{tail}")


def places(url: URL) -> list[str]:
    """Each host of an address with its port, for people; a socket's directory, or libpq's own, as it is."""
    hosts, ports = (_listed(url, name) for name in ("host", "port"))
    if not hosts:
        return ["local socket"]
    # libpq takes one port for all hosts, too.
    each = ports if len(ports) == len(hosts) else (ports or [""]) * len(hosts)
    return [
        f"{host or 'local socket'}:{port or _DEFAULT_PORT}" for host, port in zip(hosts, each, strict=False)
    ]


def hosts(url: URL) -> list[str]:
    """The hosts that an address names."""
    return [host for host in _listed(url, "host") if host]


def _listed(url: URL, name: str) -> list[str]:
    """What an address has one of, or several in its query, as SQLAlchemy wants them."""
    one = getattr(url, name)
    if one is not None:
        return [str(one)]
    given = url.query.get(name, "")
    given = given if isinstance(given, str) else ",".join(given)
    return given.split(",") if given else []


def _without_database(rest: str) -> tuple[str, str, str]:
    place, mark, query = rest.partition("?")
    return place, "/" if mark else "", f"{mark}{query}"


def _with_hosts(before: str, hosts: str, after: str) -> URL:
    """One plain host is SQLAlchemy's affair; several, or a socket's directory, it reads in the query
    alone.
    """
    if "," not in hosts and "%" not in hosts:
        return _made(f"{before}{hosts}{after}")
    url = _made(f"{before}{after}")
    if "host" in url.query or "port" in url.query:
        raise NotUnderstoodError("hosts stand both before the database and after ?")
    names, ports = zip(*(_host_and_port(one) for one in hosts.split(",")), strict=True)
    query = {"host": ",".join(names)} | ({"port": ",".join(ports)} if any(ports) else {})
    return url.update_query_dict(query)


def _host_and_port(text: str) -> tuple[str, str]:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]]*)(?::(\d*))?", text)
    if match is None:
        raise NotUnderstoodError("several hosts are written HOST:PORT,HOST:PORT")
    return unquote(match[1].strip("[]")), match[2] or ""


def _made(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise NotUnderstoodError(
            "it is no URL; in user and password write %40 for @, %2F for /, %3F for ?, %23 for #"
        ) from None
    if url.port == 0:
        raise NotUnderstoodError("the port is 0")
    return url


def _why_no_url(text: str) -> str:
    if text.strip()[:1] in {'"', "'"}:
        return "the quotation marks are a part of the value"
    if re.match(r"\s*\w+\s*=", text):
        return "libpq's keywords are not understood; write the same as a URL"
    return "it is no URL"
