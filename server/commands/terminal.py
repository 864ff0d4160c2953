"""Answers on the terminal: the answer on stdout, everything about it on stderr."""

from __future__ import annotations

import json
import sys
from typing import TextIO

from mdinfer.result import Result
from mdinfer.server.protocols import Handle

CONTROL = {code: "�" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def show(text: str, stream: TextIO | None = None) -> None:
    """Write at once. On a terminal, control characters that a model might emit are not obeyed."""
    stream = stream or sys.stdout
    stream.write(text.translate(CONTROL) if stream.isatty() else text)
    stream.flush()


def show_stream(handle: Handle) -> Result:
    """Print an answer as it comes, its reasoning before it on stderr; an interrupt cancels the request."""
    result: Result | None = None
    thinking = False
    try:
        for event in handle:
            if event.reasoning:
                thinking = thinking or _begin_thinking()
                show(event.reasoning, sys.stderr)
            if event.text:
                thinking = thinking and _end_thinking()
                show(event.text)
            result = event.result or result
    finally:
        if thinking:
            _end_thinking()
        if result is None:
            handle.cancel()
    show("\n")
    assert result is not None, "the last event of a stream carries its result"
    if result.finish_reason == "length":
        note("the answer was cut by the token limit; --max-tokens raises it")
    return result


def show_json(payload: object) -> None:
    unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(json.dumps(payload, ensure_ascii=not unicode, indent=2))


def note(text: str) -> None:
    print(f"mdinfer: {text}", file=sys.stderr)


def _begin_thinking() -> bool:
    if sys.stderr.isatty():
        sys.stderr.write(DIM)
    return True


def _end_thinking() -> bool:
    sys.stderr.write(f"{PLAIN if sys.stderr.isatty() else ''}\n")
    sys.stderr.flush()
    return False
