"""How signals end a program that runs in the foreground. Knows nothing of what it does."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Never


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Turn the first Ctrl-C, SIGTERM or hang-up into `KeyboardInterrupt`; ignore the rest, to stop in
    peace.
    """
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup is respected
        signals.append(signal.SIGHUP)

    def interrupt(_signum: int, _frame: FrameType | None) -> Never:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
