"""`kill -9` at every statement of an import: before the last one nothing was written, after it everything."""

import json
import os
import signal
from itertools import count

from sqlalchemy import event

from producer.projects import project_file
from producer.projects.exported import export
from producer.projects.imported import import_project
from producer.projects.project_file import ProjectFile
from tests.estate import dump
from tests.estate.compare import CONVERTED_TABLES
from tests.support.runs import migrate_all, tools_of
from tests.support.sites import Site
from tests.support.studies import plain_study
from worker.db.engine import connect


def imported_until(site: Site, file: ProjectFile, at: int) -> bool:
    """Let a process import the file and kill itself before its statement or commit of this number; did it
    come to the end?
    """
    child = os.fork()
    if not child:
        code = 1
        try:
            engine = connect(site.settings.sqlalchemy_url, application_name="dying")
            numbers = count(1)

            def tick(*_arguments: object) -> None:
                if next(numbers) == at:
                    os.kill(os.getpid(), signal.SIGKILL)

            event.listen(engine, "before_cursor_execute", tick)
            event.listen(engine, "commit", tick)
            import_project(site.settings, engine, file, participant="P-new")
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def test_an_import_may_be_killed_at_every_statement(site: Site):
    plain_study(site, "study", 1, 2)
    with tools_of(site) as tools:
        (outcome,) = migrate_all(site, tools)
    document = json.loads(json.dumps(export(site.engine, outcome.project_id or 0).document))
    file = project_file.check(document, "the file")
    with site.engine.connect() as conn:
        before = dump(conn, CONVERTED_TABLES)

    deaths = 0
    while not imported_until(site, file, at=deaths + 1):
        deaths += 1
        with site.engine.connect() as conn:
            assert dump(conn, CONVERTED_TABLES) == before

    assert deaths > 10
    with site.engine.connect() as conn:
        after = dump(conn, CONVERTED_TABLES)
    added = {table: len(rows) - len(before[table]) for table, rows in after.items()}
    assert {table: rows for table, rows in added.items() if rows} == {
        "participants": 1,
        "projects": 1,
        "sessions": 2,
        "project_dataset_refs": 1,
    }
