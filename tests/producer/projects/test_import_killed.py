"""`kill -9` at every statement of an import: before the last one nothing was written, after it everything."""

import json

from producer.projects import project_file
from producer.projects.exported import export
from producer.projects.imported import import_project
from producer.projects.project_file import ProjectFile
from tests.estate import dump
from tests.estate.compare import CONVERTED_TABLES
from tests.support.dying import done_until
from tests.support.runs import migrate_all, tools_of
from tests.support.sites import Site
from tests.support.studies import plain_study


def imported_until(site: Site, file: ProjectFile, at: int) -> bool:
    """Let a process import the file until that statement; did it come to the end?"""
    return done_until(
        site, lambda engine: import_project(site.settings, engine, file, participant="P-new"), at
    )


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
