"""What must be made once per process: librdkafka's handles do not survive a fork."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


def keep_forever(handle: object) -> None:
    """Never let go of a parent's handle in its child.

    To destroy one is to wait for its threads, which the child does not have:
    the child would hang, at the latest when its interpreter ends.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(handle))


class PerProcess(Generic[T]):
    """A value that is made when it is first asked for, and made anew in a child."""

    def __init__(self, make: Callable[[], T]) -> None:
        """Remember how to make it."""
        self._make = make
        self._value: T | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def get(self) -> T:
        """Return this process's value."""
        self._abandon_after_fork()
        with self._lock:
            if self._value is None:
                self._value = self._make()
            return self._value

    def take(self) -> T | None:
        """Return the value if there is one, and forget it."""
        self._abandon_after_fork()
        with self._lock:
            value, self._value = self._value, None
            return value

    def _abandon_after_fork(self) -> None:
        if self._pid != os.getpid():
            keep_forever(self._value)
            self._value = None
            self._lock = threading.Lock()  # another thread of the parent may have held it at the fork
            self._pid = os.getpid()
