"""Fixtures of the tests of the doctor."""

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port on which no server listens, and none can begin to."""
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
