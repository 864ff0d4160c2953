"""The process's standard streams, whatever the caller connected them to: nothing, a full disk, ASCII."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Literal, TextIO


def prepare() -> None:
    """Make writing text safe: a closed stream becomes the null device, what cannot be encoded becomes `?`."""
    sys.stdin = _usable(sys.stdin, "r")
    sys.stdout = _usable(sys.stdout, "w")
    sys.stderr = _usable(sys.stderr, "w")


def settle() -> None:
    """Flush; a stream that cannot be written is given up, so that the interpreter's last flush succeeds."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print, to stderr unless told otherwise, if somebody can read it."""
    with contextlib.suppress(OSError):
        print(text, file=stream or sys.stderr, flush=True)


def _usable(stream: TextIO | None, mode: Literal["r", "w"]) -> TextIO:
    if stream is None:  # closed when the interpreter started
        return open(os.devnull, mode, encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
        stream.reconfigure(errors="replace")
    return stream
