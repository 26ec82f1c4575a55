"""What the tests of fidelity share: a site for each module, emptied before each test, and the tools of a worker."""

from collections.abc import Iterator

import pytest

from producer.local.stack import Stack
from tests.conftest import TEMPLATE, Site, _database, _empty_redis, _site
from tests.support.runs import tools_of
from worker.jobs.tools import Tools


@pytest.fixture(scope="module")
def _site_of_module(
    stack: Stack, _template: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Make one installation, without workers: jobs are done in this process."""
    with (
        _database(stack, template=TEMPLATE) as engine,
        _site(engine, _empty_redis(stack), tmp_path_factory.mktemp("site")) as made,
    ):
        yield made


@pytest.fixture
def site(_site_of_module: Site) -> Site:
    """Empty the module's installation: that takes a third of the time of making one."""
    _site_of_module.empty()
    for leftover in _site_of_module.folder.iterdir():
        if leftover not in {_site_of_module.data_dir, _site_of_module.legacy_root}:
            leftover.unlink() if leftover.is_file() else None
    return _site_of_module


@pytest.fixture
def tools(site: Site) -> Iterator[Tools]:
    """Give what a worker process of this test's site has."""
    with tools_of(site) as made:
        yield made
