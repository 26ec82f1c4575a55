"""Control of a run from the command line; tests/acceptance/test_control_cli.py has it with workers."""

import pytest

from tests.producer.cli.calls import Call, at_a_terminal, runs
from tests.support.sites import Site


@pytest.mark.usefixtures("three_projects")
def test_a_person_is_asked_before_a_run_is_cancelled(site: Site, call: Call):
    call("enqueue")

    declined = at_a_terminal(site, "n\n", "cancel")
    still = runs(site.engine)
    confirmed = at_a_terminal(site, "y\n", "cancel")

    assert declined[0] == 2
    assert "Not confirmed: nothing was changed" in declined[1]
    assert still == [("running", 3)]
    assert confirmed[0] == 0, confirmed[1]
    assert runs(site.engine) == [("cancelled", 3)]
