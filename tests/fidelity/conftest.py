"""Tests of fidelity do jobs in this process, in one installation a module."""

import pytest

from tests.support.sites import Site


@pytest.fixture
def site(emptied_site: Site) -> Site:
    """Give the module's installation: no worker runs in it, and making one takes three times as long as
    emptying one.
    """
    return emptied_site
