"""Each thing that a conversion from MySQL may leave wrong is made so, found, and set right by its remedy."""

from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from producer.doctor.label_checks import check_label, times_check
from tests.estate import make_participant, make_project
from tests.producer.doctor.chapters import bad
from worker.findings import Verdict

WRONG = {
    'alter table models rename to "Models"': ("names", "fail", "Models is spelt with capitals"),
    'alter table sessions rename column keep to "Keep"': ("names", "fail", "sessions.Keep is spelt"),
    "alter table sessions alter verified drop default, alter verified type boolean using verified > 0": (
        "types",
        "warn",
        "sessions.verified is boolean, not smallint: 100",
    ),
    "alter table sessions alter bouts type text": ("types", "warn", "sessions.bouts is text, not json"),
    "alter table models drop constraint models_pkey": ("keys", "fail", "models.model_id is no primary key"),
    "alter table sessions drop constraint sessions_project_id_session_name_key": (
        "keys",
        "warn",
        "sessions.session_name may be there twice for one project_id",
    ),
    "alter table sessions drop constraint sessions_project_id_fkey": (
        "references",
        "warn",
        "sessions.project_id has no foreign key to projects",
    ),
    "alter table sessions alter project_id type bigint": (
        "references",
        "warn",
        "projects.project_id is integer, and sessions.project_id bigint",
    ),
    "alter table models alter model_id drop identity": (
        "numbers",
        "warn",
        "models.model_id is not numbered by the database",
    ),
    "insert into models (model_id, name, py_filename, pt_filename, class_name) values (7, '', '', '', '')": (
        "numbers",
        "warn",
        "sequences give numbers that rows have already",
    ),
}
"""What a conversion leaves: the check that finds it, its verdict and its words."""


def test_what_a_conversion_got_wrong_is_found_and_its_remedy_sets_it_right(database: Engine):
    for number, (mistake, (name, verdict, words)) in enumerate(WRONG.items()):
        assert bad(check_label(database)) == {}, f"before mistake {number}"
        with database.begin() as conn:
            conn.execute(text(mistake))

        chapter = check_label(database)

        found = chapter.checks[name]
        assert bad(chapter) == {name: verdict}, mistake
        assert words in found.finding
        assert found.remedy is not None
        with database.begin() as conn:
            conn.execute(text(found.remedy.partition("owner: ")[2].partition("; where 100")[0]))
    assert bad(check_label(database)) == {}
    with database.begin() as conn:
        added = text(
            "insert into models (name, py_filename, pt_filename, class_name) values ('', '', '', '')"
        )
        conn.execute(added)
        assert conn.scalar(text("select max(model_id) from models")) == 8


def test_tables_that_nothing_finds_are_not_checked(empty_database: Engine):
    chapter = check_label(empty_database)

    assert chapter.checks == {}
    assert set(chapter.not_checked) >= {"names", "keys", "times"}


def test_names_that_mysql_takes_for_one_are_named(database: Engine, tmp_path: Path):
    with database.begin() as conn:
        one = make_participant(conn, "P001")
        make_participant(conn, "p001")
        first, second = (
            make_project(conn, tmp_path, name, participant_id=one, directory=name).project_id
            for name in ("Study", "STUDY ")
        )

    found = check_label(database).checks["capitals"]

    assert found.verdict is Verdict.WARN
    assert f"projects {first} and {second} ('Study' and 'STUDY ')" in found.finding
    assert "('P001' and 'p001')" in found.finding


def test_utf_8_that_was_taken_for_latin1_is_named_with_what_it_would_be(database: Engine, tmp_path: Path):
    names = ["Zoë's Á", "Café 日本", "plain", "Zoë, whose name is right"]
    with database.begin() as conn:
        for number, name in enumerate(names):
            make_project(conn, tmp_path, name, directory=str(number))
        # U+0081 is what MySQL's latin1 has for a byte that Windows-1252 lacks.
        garbled = {1: "ZoÃ«'s Ã\x81", 2: "CafÃ© æ—¥æœ¬"}
        for number, name in garbled.items():
            conn.execute(
                text("update projects set project_name = :name where project_id = :number"),
                {"name": name, "number": number},
            )

    found = check_label(database).checks["garbled names"]

    assert found.verdict is Verdict.WARN
    assert "projects 3" not in found.finding
    assert "projects 4" not in found.finding
    assert found.remedy is not None
    with database.begin() as conn:
        conn.execute(text(found.remedy.partition("owner: ")[2].partition("; and so on")[0]))
        assert set(conn.scalars(text("select project_name from projects"))) == set(names)
    assert check_label(database).checks["garbled names"].verdict is Verdict.PASS


@pytest.mark.parametrize(("hours", "verdict"), [(0, Verdict.PASS), (2, Verdict.WARN), (-5, Verdict.WARN)])
def test_times_are_compared_with_those_in_the_names_of_directories(
    database: Engine, tmp_path: Path, hours: int, verdict: Verdict
):
    with database.begin() as conn:
        for day in range(1, 5):
            make_project(
                conn,
                tmp_path,
                f"day {day}",
                directory=f"day_P001_2025070{day}_120000",
                created_at=f"2025-07-0{day} 12:00:03Z",
            )
        make_project(
            conn, tmp_path, "far", directory="far_P001_20250701_120000", created_at="20250-07-01 12:00:00Z"
        )
        make_project(conn, tmp_path, "no date", directory="day_P001_20259999_120000", created_at="infinity")
        conn.execute(
            text("update projects set created_at = created_at + :by"), {"by": timedelta(hours=hours)}
        )

    found = check_label(database).checks["times"]

    assert found.verdict is verdict
    assert (f"{hours:+}:00 off the time" in found.finding) is (verdict is Verdict.WARN)


def test_a_lag_that_no_time_zone_explains_is_no_shift():
    slow = [timedelta(minutes=37 + 20 * number) for number in range(9)]

    assert times_check(slow, "UTC").verdict is Verdict.PASS
    assert times_check([timedelta(hours=5, seconds=9)] * 2, "UTC").verdict is Verdict.PASS, "two tell nothing"
    assert times_check(slow + [timedelta(hours=5, minutes=45)] * 10, "UTC").verdict is Verdict.WARN
    assert "may not read" in times_check(None, "UTC").finding
