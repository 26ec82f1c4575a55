"""What the tests of faults share: the library, a site for each module, and the process that forks watched
workers.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.child import Children, children
from tests.support.shim import build
from tests.support.sites import Site


@pytest.fixture
def site(emptied_site: Site) -> Site:
    """Give the module's installation, emptied."""
    return emptied_site


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library once."""
    return build(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def watched(module_site: Site, shim: Path) -> Iterator[Children]:
    """Start the process that forks watched workers of the module's site."""
    with children(module_site, shim) as started:
        yield started
