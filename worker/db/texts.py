"""Texts on their way into databases of any encoding, and out of them. Knows no table.

PostgreSQL translates between the connection's encoding, which is always UTF-8, and the database's. A database
in UTF-8 holds every text but NUL; one in SQL_ASCII holds bytes and translates nothing; others have fewer
characters than names on a disk.
"""

import json
from collections.abc import Iterator
from typing import Any

from psycopg2.extensions import encodings
from sqlalchemy import Connection

_HOLDS_ALL = {"UTF8", "SQL_ASCII"}
_FEWER = {"EUC_JP": "\xa2\xa3\xac\u2016\u2212\u301c"}
"""Signs that Python's table of an encoding has and PostgreSQL's has not; compared over the whole Basic
Multilingual Plane.
"""

_UNLIKE = {"EUC_JIS_2004"}
"""Encodings of which the two have too little in common: only ASCII is certain."""

_LONGEST = 3
"""Bytes of the longest character of any of PostgreSQL's encodings for servers but UTF-8 and EUC_TW, which
Python has not.
"""

_AROUND = 20
"""So many characters of a long text are shown on each side of the one that is meant."""


def as_json(value: Any) -> str:
    """A value as JSON for a column, not in ASCII: a database in SQL_ASCII refuses the escapes of that."""
    return json.dumps(value, ensure_ascii=False)


def server_encoding(conn: Connection) -> str:
    """The database's encoding by PostgreSQL's name; no round trip."""
    driver = conn.connection.driver_connection
    said = driver.get_parameter_status("server_encoding") if driver is not None else None
    return said or "UTF8"


def storable(conn: Connection, value: Any) -> Any:
    """The same JSON value in texts that the database can hold, what it cannot escaped: for messages, which
    must not cost a job its outcome by a name of any bytes.
    """
    return _storable(value, server_encoding(conn))


def first_unholdable(value: Any, encoding: str) -> str | None:
    """The first character, in its place, that a database of this encoding cannot hold; None if it holds
    all.
    """
    for text in _texts(value):
        at = next((i for i, one in enumerate(text) if not _holds(one, encoding)), None)
        if at is not None:
            return f"{text[at]!r} of {shown(text, at)}"
    return None


def shown(text: str, at: int = 0) -> str:
    """A text for a message: whole when it is as short as a name, otherwise what is around one place."""
    begin, end = max(0, at - _AROUND), at + _AROUND
    if len(text) <= 255:
        return repr(text)
    return repr(("…" if begin else "") + text[begin:end] + ("…" if end < len(text) else ""))


def _holds(text: str, encoding: str) -> bool:
    if text == "\0":
        return False
    if encoding in _HOLDS_ALL:
        return not "\ud800" <= text <= "\udfff"
    if text in _FEWER.get(encoding, ""):
        return False
    codec = "ascii" if encoding in _UNLIKE else encodings.get(encoding, "ascii")
    try:
        # A Korean syllable that KS X 1001 lacks is composed of eight bytes by Python, and refused by
        # PostgreSQL.
        return len(text.encode(codec)) <= _LONGEST
    except UnicodeError:
        return False


def _storable(value: Any, encoding: str) -> Any:
    match value:
        case str():
            # Mostly all of it can be held: that is asked at once.
            if "\0" not in value and (value.isascii() or _is_held_whole(value, encoding)):
                return value
            return "".join(one if _holds(one, encoding) else _escaped(one) for one in value)
        case dict():
            return {key: _storable(one, encoding) for key, one in value.items()}
        case list():
            return [_storable(one, encoding) for one in value]
        case _:
            return value


def _is_held_whole(text: str, encoding: str) -> bool:
    try:
        return encoding in _HOLDS_ALL and bool(text.encode())
    except UnicodeError:
        return False


def _escaped(character: str) -> str:
    return character.encode("ascii", "backslashreplace").decode() if character != "\0" else "\\x00"


def _texts(value: Any) -> Iterator[str]:
    """Every text in the parameters of a statement, also inside those that are JSON."""
    match value:
        case str():
            try:
                inside = json.loads(value) if value[:1] in {"{", "["} else None
            except ValueError:
                inside = None
            if inside is None:
                yield value
            else:
                yield from _texts(inside)
        case dict():
            for key, one in value.items():
                yield from _texts(key)
                yield from _texts(one)
        case list() | tuple():
            for one in value:
                yield from _texts(one)
        case _:
            return
