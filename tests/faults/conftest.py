"""What the tests of faults share: the library, a site for each module, and the process that forks watched workers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Site
from tests.faults.child import Children, children
from tests.fidelity.conftest import _site_of_module, site, tools
from tests.support.shim import build

__all__ = ["_site_of_module", "site", "tools"]


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the library once."""
    return build(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def watched(_site_of_module: Site, shim: Path) -> Iterator[Children]:
    """Start the process that forks watched workers of the module's site."""
    with children(_site_of_module, shim) as started:
        yield started
