"""Flower as its user sees it, over HTTP. Knows no container."""

import base64
import json
import urllib.error
import urllib.request
from http import HTTPStatus

from tests.compose.installation import Installation
from tests.support.waiting import eventually

_WITHIN_S = 10.0


def check(installation: Installation, *, workers: int) -> None:
    """Nobody gets in without the password; with it, all workers are listed and none can be stopped."""
    login = f"lab:{installation.secrets['FLOWER_BASIC_AUTH']}"

    assert _status(installation, "/workers") == HTTPStatus.UNAUTHORIZED
    assert _status(installation, "/api/workers") == HTTPStatus.UNAUTHORIZED
    assert _status(installation, "/workers", login="lab:wrong") == HTTPStatus.UNAUTHORIZED
    assert _status(installation, "/workers", login=login) == HTTPStatus.OK
    eventually(
        lambda: len(_online(installation, login)) == workers, f"Flower lists {workers} workers", within_s=60
    )
    (name, *_) = _online(installation, login)
    shutdown = f"/api/worker/shutdown/{name}"
    assert _status(installation, shutdown, login=login, method="POST") == HTTPStatus.FORBIDDEN


def _online(installation: Installation, login: str) -> list[str]:
    body = _answer(installation, "/api/workers?status=1", login=login)[1]
    return [name for name, is_online in json.loads(body).items() if is_online]


def _status(installation: Installation, path: str, *, login: str | None = None, method: str = "GET") -> int:
    return _answer(installation, path, login=login, method=method)[0]


def _answer(
    installation: Installation, path: str, *, login: str | None, method: str = "GET"
) -> tuple[int, bytes]:
    headers = {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"} if login else {}
    request = urllib.request.Request(installation.flower_url + path, headers=headers, method=method)  # noqa: S310 - loopback
    try:
        with urllib.request.urlopen(request, timeout=_WITHIN_S) as answer:  # noqa: S310 - as above
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
