"""The built wheel works without the checkout: commands, SQL files, templates and the report's schema are
inside.
"""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).parents[1]

LOOK = """
import json, pathlib, producer, worker
from producer.report import document, html
from worker.db import sql_files

print(json.dumps({
    "worker": worker.__file__,
    "producer": producer.__file__,
    "version": worker.__version__,
    "steps": {name: len(sql_files.read(name)) for name in (sql_files.BASELINE, *sql_files.STEPS)},
    "schema": document.schema_document()["type"],
    "templates": sorted(path.name for path in pathlib.Path(html.__file__).with_name("templates").iterdir()),
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `python -m build` makes it."""
    folder = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(CHECKOUT))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment with the wheel in it; what it depends on comes from the environment of
    the tests.

    A path in a .pth file brings those, but not the checkout: .pth files are not read from a place that is
    named so.
    """
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    libraries = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (libraries / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
    ]
    _run(*pip, "--force-reinstall", str(wheel))
    return folder / "bin"


def _run(*command: str, cwd: Path | None = None) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_that_the_program_reads(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())

    sql = {f"worker/sql/{path.name}" for path in (CHECKOUT / "sql").glob("*.sql")}
    beside_the_code = {
        str(path.relative_to(CHECKOUT))
        for package in ("worker", "producer")
        for path in (CHECKOUT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(sql) >= 4
    assert sql | beside_the_code <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"worker", "producer"}


def test_the_installed_program_runs_outside_the_checkout_and_finds_its_files(installed: Path, tmp_path: Path):
    found = json.loads(_run(str(installed / "python"), "-P", "-c", LOOK, cwd=tmp_path))

    for package in ("worker", "producer"):
        assert Path(found[package]).is_relative_to(installed.parent)
    # The role is for psql and an administrator; the program does not read its file.
    files = [path for path in (CHECKOUT / "sql").glob("*.sql") if path.stem != "create_migrator_role"]
    assert found["steps"] == {path.stem: path.stat().st_size for path in files}
    assert found["schema"] == "object"
    assert found["templates"] == sorted(
        path.name for path in (CHECKOUT / "producer/report/templates").iterdir()
    )


def test_the_installed_command_answers(installed: Path, tmp_path: Path):
    answer = _run(str(installed / "producer"), "--help", cwd=tmp_path)

    assert "enqueue" in answer
    assert "Exit codes" in answer
