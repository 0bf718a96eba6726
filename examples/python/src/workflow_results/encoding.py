"""JSON for what workflows return: strict, and without third-party imports."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID


def to_jsonable(value: Any) -> Any:
    """Turn what ``json`` does not know into what it knows.

    Models (pydantic, LangChain messages) by ``model_dump(mode="json")``,
    dataclasses as objects, times in ISO 8601, UUID and Decimal as strings (no
    digit is lost), enums by their value, sets as lists, bytes in base64.

    Raises:
        TypeError: for anything else.
    """
    if callable(dump := getattr(value, "model_dump", None)):
        return dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    match value:
        case datetime() | date() | time():
            return value.isoformat()
        case UUID() | Decimal():
            return str(value)
        case Enum():
            return value.value
        case set() | frozenset():
            return list(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode("ascii")
    raise TypeError(f"cannot write a {type(value).__qualname__} as JSON; pass dumps= or convert it first")


Dumps = Callable[[Any], str | bytes]


def dumps(value: Any) -> str:
    """Write compact JSON. NaN and infinities, which JSON lacks, raise ValueError."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=to_jsonable)
