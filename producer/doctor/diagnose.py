"""`producer doctor`: checks all that a migration needs and says what is wrong. Leaves nothing behind."""

import os
import stat
import sys
from collections.abc import Sequence
from importlib.metadata import version

from producer.doctor.broker_checks import check_broker
from producer.doctor.database_checks import STATEMENT_S, check_database
from producer.doctor.findings import Chapter, Diagnosis
from producer.doctor.label_checks import check_label
from producer.doctor.run_checks import check_runs
from producer.doctor.worker_checks import check_workers
from worker import settings as settings_module
from worker.db.engine import connect
from worker.doctor.protocol import edition
from worker.errors import SettingsError
from worker.findings import Check, failed, passed, warned
from worker.settings import ENV_FILE, Settings

PYTHON = (3, 11)
CELERY = (5, 7)
"""What pyproject.toml asks for; an installation may have ignored it."""


def diagnose() -> Diagnosis:
    """Check everything. Without usable settings there is nothing to check but these."""
    here = Chapter("Here")
    here.checks["program"] = program_check(sys.version_info[:3], version("celery"))
    try:
        settings = settings_module.load()
    except SettingsError as error:
        here.checks["settings"] = failed(str(error), error.remedy)
        return Diagnosis(chapters=(here,))
    here.checks["settings"] = settings_check(settings)
    here.checks["environment"] = environment_check(list(settings_module.variables_of_other_applications()))
    engine = connect(
        settings.sqlalchemy_url,
        application_name="label-migrator doctor",
        statement_limit_s=STATEMENT_S,
    )
    try:
        return Diagnosis(
            chapters=(
                here,
                check_database(engine),
                check_label(engine),
                check_broker(settings, engine),
                check_workers(settings, engine),
                check_runs(engine),
            )
        )
    finally:
        engine.dispose()


def program_check(python: tuple[int, ...], celery: str) -> Check:
    """Are the versions those that this program was tested with?"""
    finding = f"{edition()}, Python {'.'.join(map(str, python))}, Celery {celery}"
    installed = tuple(int(part) for part in celery.split(".")[:2])
    if python < PYTHON or installed != CELERY:
        return failed(finding, "Install it from requirements.txt: Python 3.11 or newer, Celery 5.7.")
    return passed(finding)


def settings_check(settings: Settings) -> Check:
    """Where data is, and whether other users of this machine can read the passwords."""
    roots = ":".join(map(str, settings.legacy_roots))
    finding = f"DATA_DIR={settings.data_dir} LEGACY_ROOTS={roots}"
    if _others_may_read(ENV_FILE):
        return warned(f"{finding}; others may read the passwords in {ENV_FILE}", f"chmod 600 {ENV_FILE}")
    return passed(finding)


def environment_check(of_others: Sequence[str]) -> Check:
    """Are there variables that name another application's broker? They are ignored, with a warning."""
    if of_others:
        finding = f"{', '.join(of_others)}: not used here; REDIS_URL alone says where the broker is"
        return warned(finding, "Nothing, if another Celery application has set it; else unset it.")
    return passed("nothing in it points Celery elsewhere")


def _others_may_read(file: str) -> bool:
    try:
        return bool(os.stat(file).st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return False
