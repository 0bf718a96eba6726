"""Pipes to and from a child whose kept ends no fork of this process inherits.

The sidecar ends when the last write end of its parent pipe is closed. A forked
worker that kept a copy would hold the sidecar after its parent's death, and a
copy of the log's read end would let it block on a log that nobody reads.
"""

from __future__ import annotations

import os
import threading

# Held while pipes are made and a child is started, and during every os.fork, so
# that a fork finds each end either kept (and closes it) or given away. It may be
# taken again by its owner: a signal handler may fork.
no_fork = threading.RLock()
_kept: set[int] = set()


def pipe_to_child() -> tuple[int, int]:
    """Return (the write end to keep, the read end to give); call it with ``no_fork``."""
    given, kept = os.pipe()
    _kept.add(kept)
    return kept, given


def pipe_from_child() -> tuple[int, int]:
    """Return (the read end to keep, the write end to give); call it with ``no_fork``."""
    kept, given = os.pipe()
    _kept.add(kept)
    return kept, given


def let_go(kept: int) -> None:
    """Close a kept end."""
    with no_fork:
        _kept.discard(kept)
        os.close(kept)


def _close_in_fork() -> None:
    while _kept:
        os.close(_kept.pop())
    no_fork.release()


os.register_at_fork(before=no_fork.acquire, after_in_parent=no_fork.release, after_in_child=_close_in_fork)
