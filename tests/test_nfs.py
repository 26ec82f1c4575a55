"""What can be said of the test on NFS without a machine. `make nfs-test` runs it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_where_it_cannot_run_one_line_says_so_and_the_exit_code_is_its_own(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.nfs"],
        cwd=ROOT,
        env=os.environ | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("did not run: ")
    assert done.stderr.count("\n") == 1
