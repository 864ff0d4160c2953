"""What the server writes to its log, and how: lines for people, or one JSON object a line for machines.

A record's `fields` (logging's `extra`) become fields of the JSON. Whatever a message holds, lines are bounded and long
words cut, so that no image ends up in a log by way of some exception's text.
"""

from __future__ import annotations

import logging
import re
from datetime import datetime, timezone
from typing import Literal

import msgspec

from mdinfer.server.call import request_id_in_log

LogFormat = Literal["text", "json"]

MAX_LINE = 400
_BASE64 = re.compile(r"([A-Za-z0-9+/=_%-]{16})[A-Za-z0-9+/=_%-]{112,}")
_PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__(_PLAIN)

    def format(self, record: logging.LogRecord) -> str:
        return bounded(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The first line, which ends in the request's id; a traceback follows it."""
        return " ".join(filter(None, (super().formatMessage(record), request_id_in_log.get())))


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": bounded(record.getMessage()),
        }
        if (request_id := request_id_in_log.get()) is not None:
            line["request_id"] = request_id
        if record.exc_info:
            line["traceback"] = bounded(self.formatException(record.exc_info))
        return msgspec.json.encode(line | getattr(record, "fields", {})).decode()


def bounded(text: str) -> str:
    """Each line cut to MAX_LINE characters; of a word as long as base64 only the start is left."""
    lines = _BASE64.sub(r"\1...", text).split("\n")
    return "\n".join(line if len(line) <= MAX_LINE else line[:MAX_LINE] + " ..." for line in lines)


def log_to_stderr(level: str, log_format: LogFormat) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("mdinfer").setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
