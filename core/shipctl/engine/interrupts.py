"""A process that is asked to end does what it does on Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does, and yield what is set when either has come.

    Such blocks may be nested; each of them is told. In another thread than the main one nothing is changed.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    signals = [signal.SIGTERM]
    if (
        signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    ):  # as a shell does with what it runs in the background
        signals.append(signal.SIGINT)
    before = {number: signal.getsignal(number) for number in signals}

    def handle(number: int, frame: FrameType | None) -> None:
        asked.set()
        outer = before[signal.Signals(number)]
        if callable(outer):
            outer(number, frame)
        raise KeyboardInterrupt

    for number in signals:
        signal.signal(number, handle)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
