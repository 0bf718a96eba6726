"""JSON for what workflows return: strict, and without third-party imports.

A value becomes what ``to_jsonable`` says. The key of an object is a string in
JSON: an enum stands for its value; UUID, Decimal and numbers are written as they
are as values, times in ISO 8601, True, False and None as ``true``, ``false`` and
``null``, as ``json`` does. Any other key is refused, and so are two keys that
would be written alike: one of the two values would be lost to most readers.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

Dumps = Callable[[Any], str | bytes]


def to_jsonable(value: Any) -> Any:
    """Turn what ``json`` does not know into what it knows, one level deep: a ``default=`` for any encoder.

    Models (pydantic, LangChain messages) by ``model_dump(mode="json")``,
    dataclasses as objects, times in ISO 8601, UUID and Decimal as strings (no
    digit is lost), enums by their value, bytes in base64. Sets become lists in
    an order that another process gives them too: a repeated result must not
    differ from the first by chance. Sets within a model are written by the model.

    Raises:
        TypeError: for anything else.
        Exception: whatever ``model_dump`` raised.
    """
    if not isinstance(value, type):
        if callable(dump := getattr(value, "model_dump", None)):
            return dump(mode="json")
        if dataclasses.is_dataclass(value):
            return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    match value:
        case datetime() | date() | time():
            return value.isoformat()
        case UUID() | Decimal():
            return str(value)
        case Enum():
            return value.value
        case Mapping():
            return dict(value)
        case set() | frozenset():
            return sorted(value, key=_order)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode("ascii")
    raise TypeError(f"cannot write a {type(value).__qualname__} as JSON; pass dumps= or convert it first")


def _order(item: Any) -> str:
    """Return what orders a set: a repr may tell an address, or a set within in the order of this process."""
    try:
        return dumps(item)
    except (TypeError, ValueError):
        return repr(item)  # of what another encoder knows, or nobody


def dumps(value: Any) -> str:
    """Write compact JSON.

    Raises:
        TypeError: a value or a key of a type that is not known; the message says where.
        ValueError: NaN, an infinity, two keys that are written alike, a circle, too deep a nesting, or whatever a
            value's own ``model_dump`` raised.
    """
    try:
        return _ENCODER.encode(_plain(value, ()))
    except RecursionError as e:
        raise ValueError("cannot write as JSON what contains itself or is nested too deeply") from e


_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))
_SCALARS = frozenset((str, int, float, bool, type(None)))  # written as they are; a type derived from one may not be

Path = tuple[str | int, ...]  # where a value is, for whoever looks for it


def _plain(value: Any, path: Path) -> Any:
    """Turn a value, whatever is in it, into what ``json`` writes."""
    if value is None or isinstance(value, (str, int, float)):
        return value  # an enum that is one of them too is written by its value
    if isinstance(value, dict):
        return _object(value, path)
    if isinstance(value, (list, tuple)):
        return [item if type(item) in _SCALARS else _plain(item, (*path, i)) for i, item in enumerate(value)]
    try:
        known = to_jsonable(value)
    except RecursionError:
        raise  # the nesting's, not the value's
    except TypeError as e:
        raise TypeError(f"{e} (at {_at(path)})") from e
    except Exception as e:  # a model_dump of somebody else may raise anything
        what = f"{type(value).__qualname__} as JSON: {type(e).__name__}: {e}"
        raise ValueError(f"cannot write a {what} (at {_at(path)})") from e
    return _plain(known, path)


def _object(value: dict[Any, Any], path: Path) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for key, item in value.items():
        name = key if type(key) is str else _name(key, path)
        if name in written:
            raise ValueError(f"two keys are written as {name!r} (at {_at(path)})")
        written[name] = item if type(item) in _SCALARS else _plain(item, (*path, name))
    return written


def _name(key: Any, path: Path) -> str:
    """Return what an object's key is written as."""
    match key:
        case Enum():
            return _name(key.value, path)
        case str():
            return key
        case True | False | None | int() | float():
            return json.dumps(key, allow_nan=False)
        case UUID() | Decimal():
            return str(key)
        case datetime() | date() | time():
            return key.isoformat()
    raise TypeError(f"a {type(key).__qualname__} cannot be a key in JSON (at {_at(path)}); convert it first")


def _at(path: Path) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path) or "the top"
