"""Signals that ask a run to stop: it then finishes its step, and keeps what it has, before it does."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A stop that a signal asked for.

    Args:
        number: the signal's.
        message: what has been kept.
    """

    def __init__(self, number: int, message: str = "interrupted"):
        super().__init__(message)
        self.status = 128 + number  # with which a shell's commands end


class StopRequest:
    """The signal that has arrived; 0 before one has."""

    number: int = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Take note of the first SIGINT or SIGTERM, where it would end the process; a second one interrupts at once.

    Only the main thread can: in another one nothing is noted, and signals do what they did.
    """
    request = StopRequest()

    def note(number: int, frame: object) -> None:
        if request.number:
            raise Interrupted(number)
        request.number = number

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {n: old for n in STOP_SIGNALS if (old := signal.getsignal(n)) not in (None, signal.SIG_IGN)}
    try:
        for number in before:
            signal.signal(number, note)
        yield request
    finally:
        for number, old in before.items():
            signal.signal(number, old)
