"""A reclaim takes no directory that anything reads, however its path is spelled."""

from pathlib import Path

from tests.estate import make_project, make_session, record_session
from tests.estate.rows import Project
from tests.support.runs import run
from tests.support.sites import Site
from worker.errors import LegacyProjectThereError, SessionReadsThereError
from worker.jobs.tools import Tools
from worker.messages import Verb


def test_directories_that_sessions_read_are_not_reclaimed(site: Site, tools: Tools) -> None:
    made: dict[str, Project] = {}
    with site.engine.begin() as conn:
        for number, name in enumerate(["free", "lent", "being split", "around", "fine", "left"]):
            made[name] = make_project(conn, site.legacy_root, name)
            record_session(conn, made[name], "day", rows=20, seed=number)
        # Left alone, because its parent path is another project's.
        lent = f"{made['lent'].path}//./day/"
        make_session(conn, made["free"].project_id, "borrowed", parent_path=lent, offsets=(0, 5))
        inner = make_project(conn, Path(made["around"].path or ""), "inner", directory="day/inner")
        record_session(conn, inner, "day", rows=20, seed=9)
    run(tools, Verb.MIGRATE, only=[one.project_id for name, one in made.items() if name != "left"])
    with site.engine.begin() as conn:
        # What a split writes that began before the conversion and ends after it.
        path = f"{made['being split'].path}/day"
        make_session(conn, made["being split"].project_id, "day.1", parent_path=path, offsets=(0, 9))

    outcomes = run(
        tools,
        Verb.RECLAIM,
        only=[one.project_id for name, one in made.items() if name != "left"],
        dry_run=True,
    )

    remedies = {name: outcomes[one.project_id].remedy for name, one in made.items() if name != "left"}
    assert remedies == {
        "free": SessionReadsThereError.remedy,
        "lent": SessionReadsThereError.remedy,
        "being split": SessionReadsThereError.remedy,
        "around": LegacyProjectThereError.remedy,
        "fine": None,
    }
