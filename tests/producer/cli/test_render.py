"""What people read, as values: whole on a narrow terminal, and harmless whatever projects are called."""

import re
import uuid
from typing import Any

import pytest
from rich.text import Text

from producer.cli.render import plan_table, report_lines
from producer.cli.terminal import Terminal
from producer.report.document import build
from producer.runs.open import Opened
from tests.support.reports import failed, migrated, run_facts, skipped
from worker.db.ledger import NewJob
from worker.messages import Status, Verb


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


def test_control_characters_in_names_do_not_reach_the_terminal(capsys: Any):
    job = NewJob(subject_id=1, subject_name="\x1b[2J\x07[red]x\r\nb", path="/a\x1b[31m\tb")
    opened = Opened(run_id=uuid.uuid4(), verb=Verb.MIGRATE, dry_run=False, jobs=(job,))

    Terminal(as_json=False).table(plan_table(opened))

    words = capsys.readouterr().err
    assert not set(words) & set("\x1b\x07\r\t")
    assert "[red]x" in words
    assert len(words.splitlines()) == 3


def test_a_dry_run_s_summary_predicts_what_a_real_run_s_says():
    outcomes = [migrated(1, stored=10), failed(2), skipped(3)]
    predicted = [migrated(1, stored=10, status=Status.WOULD_MIGRATE), *outcomes[1:]]

    real, dry = (
        Text.from_markup(next(report_lines(build(run_facts(dry_run=dry_run), of)))).plain
        for dry_run, of in ((False, outcomes), (True, predicted))
    )

    assert real == "1 of 3 projects migrated, 1 failed, 1 skipped"
    assert dry == "1 of 3 projects would be migrated, 1 would fail, 1 would be skipped"
