"""What the tests of fidelity share: the tools of a worker, in this process, on the test's own site."""

from collections.abc import Iterator

import pytest

from tests.conftest import Site
from tests.fidelity.runs import tools_of
from worker.job import Tools


@pytest.fixture
def tools(site: Site) -> Iterator[Tools]:
    """Give what a worker process of this test's site has."""
    with tools_of(site) as made:
        yield made
