"""What Ctrl-C does while an engine comes up."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130


@contextmanager
def ending_the_process() -> Iterator[None]:
    """For imports and loading: an interrupt ends the process at once, for there is nothing to put in order yet.

    As an exception it could get lost: modules such as numpy and torch catch whatever ends an import of theirs, and
    go on without, or raise ImportError in its place.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)
