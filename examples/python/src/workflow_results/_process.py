"""What must be made once per process: librdkafka's handles do not survive a fork."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_handles: weakref.WeakSet[object] = weakref.WeakSet()


def keep_in_child(owner: object) -> None:
    """Never let a child of a fork destroy the handle of librdkafka that ``owner`` owns.

    To destroy one is to wait for its threads, which the child does not have: it
    would hang or crash, be it that the garbage collector finds a forgotten one,
    be it when the interpreter ends. What exists at a fork is kept for good in
    the child; the parent destroys its own as ever.
    """
    _handles.add(owner)


def _keep() -> None:
    for owner in list(_handles):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))
    _handles.clear()


os.register_at_fork(after_in_child=_keep)


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
            self._value = None
            self._lock = threading.Lock()  # another thread of the parent may have held it at the fork
            self._pid = os.getpid()
