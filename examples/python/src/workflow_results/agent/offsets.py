"""How far one partition may be committed."""

from __future__ import annotations


class PartitionOffsets:
    """The offsets of one assignment of one partition, taken in order and done in any order.

    Only those that are still open are kept: what lies between them is done. So
    it holds as many numbers as there are runs, however far it is ahead of the oldest.
    """

    def __init__(self) -> None:
        """Begin with nothing taken: there is nothing to commit then."""
        self.committed: int | None = None  # what the group was last told
        self._open: set[int] = set()
        self._next: int | None = None

    def begin(self, offset: int) -> None:
        """Take a record: from now on nothing beyond it may be committed."""
        self._open.add(offset)
        self._next = offset + 1

    def begins_anew(self, offset: int) -> bool:
        """Tell whether a record lies before all that was taken and is open: its topic was deleted and made anew."""
        return self._next is not None and offset < self._next and offset <= min(self._open, default=offset)

    def done(self, offset: int) -> None:
        """Let go of a record: it is answered, set aside or not ours."""
        self._open.remove(offset)

    @property
    def committable(self) -> int | None:
        """The offset of the first record that is not done; None if none was taken.

        A crash makes the next owner begin there: all before it is done, some after it may be, too.
        """
        return min(self._open, default=self._next)
