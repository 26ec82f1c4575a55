"""`producer project export` and `project import`, as an operator calls them on two servers."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tests.estate import readings
from tests.support.runs import migrate_all, tools_of
from tests.support.sites import Site
from tests.support.studies import plain_study


def migrated(site: Site) -> int:
    plain_study(site, "study", 1, 2)
    with tools_of(site) as tools:
        (outcome,) = migrate_all(site, tools)
    assert outcome.project_id is not None
    return outcome.project_id


def test_a_project_goes_to_another_server_in_a_file(
    make_site: Callable[[], AbstractContextManager[Site]], tmp_path: Path
):
    file = tmp_path / "study.json"
    with make_site() as here, make_site() as there:
        number = migrated(here)
        sent = here.run_producer("project", "export", f"{number}", "--output", f"{file}")
        assert sent.returncode == 0, sent.stderr
        assert "2 sessions of project 1 and 1 dataset named" in sent.stderr

        missing = there.run_producer("project", "import", f"{file}", "--json")
        assert missing.returncode == 3
        assert "1 of 1 datasets are not here: study (" in json.loads(missing.stdout)["error"]
        assert "What is here: producer datasets list" in missing.stderr

        migrated(there)
        rehearsed = there.run_producer("project", "import", f"{file}", "--dry-run", "--json")
        assert json.loads(rehearsed.stdout)["project_id"] is None
        made = there.run_producer("project", "import", f"{file}", "--name", "from there", "--json")
        assert made.returncode == 0, made.stderr
        found = json.loads(made.stdout)
        assert (found["project_name"], found["sessions"]) == ("from there", 2)
        with here.engine.connect() as ours, there.engine.connect() as theirs:
            before = readings(ours, here.data_dir, project_id=number)
            after = readings(theirs, there.data_dir, project_id=found["project_id"])
        assert len(before) == len(after) > 0
        for one, other in zip(before.values(), after.values(), strict=True):
            assert one is not None
            assert one.equals(other)


def test_an_export_to_standard_output_is_the_file_and_no_file_is_written_over(site: Site):
    number = migrated(site)
    printed = site.run_producer("project", "export", f"{number}")
    assert json.loads(printed.stdout)["export_version"] == "2.0"
    taken = site.folder / "taken.json"
    taken.write_text("mine")
    refused = site.run_producer("project", "export", f"{number}", "--output", f"{taken}")
    assert (refused.returncode, taken.read_text()) == (2, "mine")
    assert "is there already" in refused.stderr


def test_a_session_that_is_left_out_is_named_and_ends_with_3(site: Site):
    number = migrated(site)
    document = json.loads(site.run_producer("project", "export", f"{number}").stdout)
    del document["migrator"]
    document["sessions"][0].update(session_name="[night]", raw_session_name="night")
    file = site.folder / "edited.json"
    file.write_text(json.dumps(document))
    made = site.run_producer("project", "import", f"{file}")
    assert made.returncode == 3
    assert "Left out: session [night]: dataset 1 has no recording night" in made.stderr
    assert "1 session" in made.stderr
