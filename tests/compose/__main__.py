"""`python -m tests.compose`: builds the image and plays the operator's story by Compose, from nothing and
back to nothing.

It needs a Docker engine on this machine, which may be any user's who may send signals to the containers'
processes.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.compose import bundled_database, story, throughput
from tests.compose.engine import EngineError, docker, why_not
from tests.compose.installation import IMAGE, Installation, image_bytes, installation
from worker.units import human_bytes

_NO_ENGINE = 5

Say = Callable[[str], None]


def main() -> int:
    """Do what the arguments say; 0 when all was well, 5 without an engine."""
    arguments = _arguments()
    if reason := why_not():
        sys.stderr.write(f"{reason}\n")
        return _NO_ENGINE
    # Whoever ends us lets us take down what we started.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))
    os.umask(0o022)  # containers read what we write
    say = _clock()
    try:
        if arguments.throughput:
            throughput.measure(megabytes=arguments.megabytes, say=say)
        else:
            _play(say)
    finally:
        docker("image", "rm", "--force", IMAGE)
    say("all is well, and nothing is left")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.compose", description=__doc__)
    parser.add_argument(
        "--throughput",
        action="store_true",
        help=f"compare {', '.join(map(str, throughput.COUNTS))} workers on one estate in place of the story",
    )
    parser.add_argument(
        "--megabytes", type=int, default=2000, metavar="N", help="the size of the estate for --throughput"
    )
    return parser.parse_args()


def _clock() -> Say:
    """Say lines with the seconds since now before them."""
    begin = time.monotonic()
    return lambda line: print(f"[{time.monotonic() - begin:5.1f} s] {line}", flush=True)


def _play(say: Say) -> None:
    with _explained(installation()) as made:
        made.build()
        say(f"the image is built: {human_bytes(image_bytes())}")
        bundled_database.check_what_is_said_without_labels_tables(made)
        say("without Label's tables no worker starts, and the terminal says what to restore and how")
        bundled_database.check_backup_and_restore(made)
        say("a backup is restored, and another one does not mix with it")
        begin = time.monotonic()
        made.start_everything(workers=story.WORKERS)
        say(f"everything is up and well after {time.monotonic() - begin:.1f} s")
        story.tell(made, say)
        bundled_database.check_upgrade(made)
        say("an upgrade applies tables as their owner, and the migrator's role has its rights again")
    with _explained(installation(in_data_dir=True)) as made:
        made.make_labels_tables()
        made.start_everything(workers=1)
        story.tell_in_short(made)
        say("projects that lie directly in DATA_DIR are migrated and taken back, and were never written")


@contextmanager
def _explained(making: AbstractContextManager[Installation]) -> Iterator[Installation]:
    """An installation that says what its containers said last when something is not as it should be."""
    with making as made:
        try:
            yield made
        except (AssertionError, EngineError):
            sys.stderr.write(made.compose.last_words())
            raise


if __name__ == "__main__":
    sys.exit(main())
