"""What people read, as values: whole on a narrow terminal, and harmless whatever projects are called."""

import re
import uuid
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from rich.text import Text
from sqlalchemy import Engine

from producer.cli.render import (
    left_out_lines,
    paused_words,
    plan_table,
    progress_words,
    report_lines,
    runs_table,
    status_lines,
    watch_line,
)
from producer.cli.terminal import Terminal
from producer.report.document import build
from producer.runs import status
from producer.runs.open import Opened
from producer.runs.selection import LeftOut
from tests.support.reports import failed, migrated, run_facts, skipped
from worker.db import ledger
from worker.db.ledger import NewJob
from worker.messages import Damage, Outcome, Status, Subject, Verb, Warning_


def test_a_plan_on_a_narrow_terminal_is_shown_whole(monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    job = NewJob(subject_id=4711, subject_name="N" * 60, path="/" + "P" * 80, files=1234, size_bytes=5)
    opened = Opened(run_id=uuid.uuid4(), verb=Verb.MIGRATE, dry_run=False, jobs=(job,))

    Terminal(as_json=False).table(plan_table(opened))

    words = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err)
    for shown in ("4711", "1,234", "5 bytes"):
        assert shown in words
    assert (words.count("N"), words.count("P")) == (60, 80)
    assert max(map(len, words.splitlines())) <= 80


def test_a_long_plan_shows_fifty_rows_and_counts_the_rest(capsys: Any):
    jobs = tuple(NewJob(subject_id=n, subject_name=f"study {n}", path=f"/{n}") for n in range(1, 1_062))
    left_out = tuple(LeftOut(subject_id=n, subject_name="gone", reason="excluded") for n in range(1, 55))
    opened = Opened(run_id=uuid.uuid4(), verb=Verb.MIGRATE, dry_run=False, jobs=jobs, left_out=left_out)

    Terminal(as_json=False).table(plan_table(opened))

    rows = capsys.readouterr().err.splitlines()
    assert len(rows) == 53
    assert rows[-2].split() == ["50", "?", "?", "not", "visible", "here", "study", "50", "/50"]
    assert " and 1,011 more " in rows[-1]
    lines = [Text.from_markup(line).plain for line in left_out_lines(opened.left_out, opened.of_other_type)]
    assert (len(lines), lines[-1]) == (51, "… and 4 more left out")


def test_a_long_report_s_lines_are_fifty_of_a_kind_and_name_its_file():
    many = [failed(n, warnings=(Warning_(message="left alone"),)) for n in range(1, 1_101)]
    reclaimed = [skipped(n, remedy="Wait.") for n in range(1, 61)]
    damage = Damage(digest="a" * 64, what="missing", path="/blob", dataset_ids=(1,), repaired=True)
    left = [replace(damage, path=f"/left {n}", repaired=False) for n in range(70)]
    verified = Outcome(
        subject=Subject.DATASET,
        project_id=None,
        project_name=None,
        dataset_id=1,
        status=Status.FAILED,
        reason="damaged",
        damaged=(damage, *left),
    )
    coverage = {"bytes_total": 1, "oldest_check": None, "bytes_elsewhere": 0, "oldest_check_elsewhere": None}

    def lines(verb: Verb, outcomes: list[Outcome], **selection: Any) -> list[str]:
        document = build(run_facts(verb=verb, selection=selection), outcomes)
        return [Text.from_markup(line).plain for line in report_lines(document, "/reports/[r].json")]

    shown = lines(Verb.MIGRATE, many)
    assert len([line for line in shown if line.startswith("failed ")]) == 50
    assert len([line for line in shown if line.startswith("warning ")]) == 50
    assert "… and 1,050 more failures in /reports/[r].json" in shown
    assert "… and 1,050 more warnings in /reports/[r].json" in shown
    assert "… and 10 more skipped in /reports/[r].json" in lines(Verb.RECLAIM, reclaimed)
    shown = lines(Verb.VERIFY, [verified], coverage=coverage)
    assert next(line for line in shown if line.startswith(("damaged", "repaired"))).startswith(
        "damaged /left 0"
    )
    assert not [line for line in shown if line.startswith("repaired")]
    assert "… and 21 more damaged things in /reports/[r].json" in shown


def test_control_characters_in_names_do_not_reach_the_terminal(capsys: Any):
    job = NewJob(subject_id=1, subject_name="\x1b[2J\x07[red]x\r\nb", path="/a\x1b[31m\tb")
    opened = Opened(run_id=uuid.uuid4(), verb=Verb.MIGRATE, dry_run=False, jobs=(job,))

    Terminal(as_json=False).table(plan_table(opened))

    words = capsys.readouterr().err
    assert not set(words) & set("\x1b\x07\r\t")
    assert "[red]x" in words
    assert len(words.splitlines()) == 3


@pytest.mark.parametrize(
    ("subjects", "words"),
    [
        ([Subject.DATASET] * 2, "datasets"),
        ([Subject.DATASET], "dataset"),
        ([Subject.PROJECT] * 2, "projects"),
        ([Subject.DATASET, Subject.PROJECT], "jobs"),
        ([Subject.STORE], "job"),
    ],
)
def test_a_run_is_counted_in_what_its_jobs_are_about(
    database: Engine, subjects: list[Subject], words: str, capsys: Any
):
    with database.begin() as conn:
        run_id = uuid.uuid4()
        jobs = [
            NewJob(subject=subject, subject_id=number, subject_name="day", path="/day")
            for number, subject in enumerate(subjects, 1)
        ]
        ledger.open_run(conn, run_id, Verb.VERIFY, dry_run=False, selection={})
        ledger.add_jobs(conn, run_id, jobs)
        ledger.start_run(conn, run_id)
    with database.connect() as conn:
        found = status.describe(database, ledger.find_run(conn, str(run_id)))
    count = len(subjects)

    assert f"0 of {count} {words} ended" in "\n".join(status_lines(found))
    assert f"0/{count} {words}, 0 failed" in watch_line(found, 0)
    assert progress_words(found.progress, 0) == f"0/{count} {words}"
    assert paused_words(found.progress) == f"Paused: 0 of {count} {words} ended."
    assert found.to_json()["subjects"] == Counter(map(str, subjects))
    (listed,) = status.all_runs(database, 1)
    assert listed.to_json()["subjects"] == Counter(map(str, subjects))
    terminal = Terminal(as_json=False)
    terminal.table(runs_table([listed]))
    opened = Opened(run_id=run_id, verb=Verb.VERIFY, dry_run=False, jobs=tuple(jobs))
    terminal.table(plan_table(opened))
    shown = capsys.readouterr().err
    assert f" {count} {words} " in shown
    assert re.search(rf"^ *{words.removesuffix('s')}  sessions", shown, re.MULTILINE)


def test_a_dry_run_s_summary_predicts_what_a_real_run_s_says():
    outcomes = [migrated(1, stored=10), failed(2), skipped(3)]
    predicted = [migrated(1, stored=10, status=Status.WOULD_MIGRATE), *outcomes[1:]]

    real, dry = (
        Text.from_markup(next(report_lines(build(run_facts(dry_run=dry_run), of)))).plain
        for dry_run, of in ((False, outcomes), (True, predicted))
    )

    assert real == "1 of 3 projects migrated, 1 failed, 1 skipped"
    assert dry == "1 of 3 projects would be migrated, 1 would fail, 1 would be skipped"
