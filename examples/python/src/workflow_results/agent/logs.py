"""The agent's log: one line per event on standard error, as text or JSON, with IDs and never with payloads."""

from __future__ import annotations

import json
import logging
import time
import traceback
from datetime import UTC, datetime
from typing import Any

logger = logging.getLogger("workflow_results.agent")


def say(level: int, message: str, **fields: Any) -> None:
    """Log a message with its fields."""
    logger.log(level, message, extra={"fields": fields})


def where(error: BaseException) -> str:
    """Tell an exception's type and the place that raised it.

    Its message is left out, for it may quote what the workflow was given.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
    return type(error).__name__ + place


class Formatter(logging.Formatter):
    """Writes a record as ``time=… level=… msg=… key=value``, or as a JSON object."""

    def __init__(self, as_json: bool) -> None:
        """Choose the form."""
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Write one line, and below it the traceback if there is one."""
        fields = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "msg": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if self._as_json:
            if record.exc_info:
                fields["traceback"] = self.formatException(record.exc_info)
            return json.dumps(fields, ensure_ascii=False, default=str)
        line = " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if not text or any(c in text for c in ' "=\n') else text


def configure(level: str, as_json: bool) -> None:
    """Send the log of this package, and warnings of others, to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter(as_json))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("workflow_results").setLevel(level.upper())


class Interval:
    """Lets a line that would come again and again pass once per so many seconds."""

    def __init__(self, seconds: float) -> None:
        """Let the first one pass at once."""
        self._seconds = seconds
        self._next = 0.0

    def due(self) -> bool:
        """Tell whether to log now, and count from now if so."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._seconds
        return True
