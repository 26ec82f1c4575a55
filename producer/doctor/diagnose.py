"""`producer doctor`: looks at everything a migration stands on and says what is not as it should be. Leaves nothing behind."""

import os
import stat
import sys
from collections.abc import Sequence
from importlib.metadata import version

from sqlalchemy import Engine

from producer.doctor import (
    broker_checks as doctor_broker,
)
from producer.doctor import (
    database_checks as doctor_database,
)
from producer.doctor import (
    worker_checks as doctor_workers,
)
from producer.doctor.findings import Chapter, Diagnosis, Notes
from worker import settings as settings_module
from worker.db import engine as engine_module
from worker.db import overview
from worker.doctor.protocol import edition
from worker.errors import SettingsError
from worker.findings import Check, failed, passed, warned
from worker.settings import ENV_FILE, Settings

PYTHON = (3, 11)
CELERY = (5, 7)
"""What pyproject.toml asks for; somebody may have installed without asking it."""


def diagnose() -> Diagnosis:
    """Look at everything. Without usable settings there is nothing to look at but these."""
    notes = Notes("Here")
    notes.add(program_check(sys.version_info[:3], version("celery")))
    try:
        settings = settings_module.load()
    except SettingsError as error:
        notes.add(failed("settings", str(error), error.remedy))
        return Diagnosis(chapters=(notes.chapter(),))
    notes.add(
        _settings_check(settings), environment_check(list(settings_module.variables_of_other_applications()))
    )
    engine = engine_module.connect(
        settings.sqlalchemy_url,
        application_name="label-migrator doctor",
        statement_limit_s=doctor_database.STATEMENT_S,
    )
    try:
        return Diagnosis(
            chapters=(
                notes.chapter(),
                doctor_database.look(engine),
                doctor_broker.look(settings, engine),
                doctor_workers.look(settings, engine),
                _runs(engine),
            )
        )
    finally:
        engine.dispose()


def program_check(python: tuple[int, ...], celery: str) -> Check:
    """Are the versions those that this program was tested with?"""
    name = "program"
    words = f"{edition()}, Python {'.'.join(map(str, python))}, Celery {celery}"
    installed = tuple(int(part) for part in celery.split(".")[:2])
    if python < PYTHON or installed != CELERY:
        remedy = "Install it from requirements.txt: Python 3.11 or newer, Celery 5.7."
        return failed(name, words, remedy)
    return passed(name, words)


def _settings_check(settings: Settings) -> Check:
    roots = ":".join(map(str, settings.legacy_roots))
    name, words = "settings", f"DATA_DIR={settings.data_dir} LEGACY_ROOTS={roots}"
    if _others_may_read(ENV_FILE):
        return warned(name, f"{words}; others may read the passwords in {ENV_FILE}", f"chmod 600 {ENV_FILE}")
    return passed(name, words)


def environment_check(of_others: Sequence[str]) -> Check:
    """Are there variables that would lead Celery to another application's broker? They are shut out, and said to be."""
    name = "environment"
    if not of_others:
        return passed(name, "nothing in it points Celery elsewhere")
    words = f"{', '.join(of_others)}: not used here; REDIS_URL alone says where the broker is"
    return warned(name, words, "Nothing, if another Celery application has set it; else unset it.")


def _others_may_read(file: str) -> bool:
    try:
        return bool(os.stat(file).st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return False


# Runs -------------------------------------------------------------------------------------------------------------


def _runs(engine: Engine) -> Chapter:
    notes = Notes("Runs")
    notes.look("held runs", lambda: _held(engine))
    notes.look("dead holders", lambda: _dead(engine))
    return notes.chapter()


def _held(engine: Engine) -> Check:
    with engine.connect() as conn:
        held = overview.paused_runs(conn)
    if not held:
        return passed("held runs", "none")
    words = "; ".join(f"{str(run.run_id)[:8]}: {run.paused_because or 'no reason is known'}" for run in held)
    return warned("held runs", words, f"When the reason is gone: producer resume {str(held[0].run_id)[:8]}")


def _dead(engine: Engine) -> Check:
    name = "dead holders"
    with engine.connect() as conn:
        jobs = overview.open_jobs(conn)
    if jobs.dead:
        words = f"{jobs.dead} of {jobs.running} running jobs are held by workers that died or sleep"
        return warned(name, words, "Start workers: each of them lets such jobs wait again within seconds.")
    return passed(name, f"none; {jobs.running} jobs are running, {jobs.waiting} are waiting")
