"""What running jobs have said so far, for those who watch. Memory only; a job that nobody runs or watches takes none."""

import asyncio
from weakref import WeakValueDictionary


class Live:
    """One job while somebody runs or watches it: the text of an attempt, and how often its record has changed."""

    __slots__ = ("__weakref__", "attempt", "changed", "num_changes", "text")

    def __init__(self) -> None:
        self.attempt = 0
        self.text = ""
        self.num_changes = 0
        self.changed = asyncio.Event()

    def begin(self, attempt: int) -> None:
        """Another attempt: its text begins anew."""
        self.attempt, self.text = attempt, ""
        self.record_changed()

    def add(self, piece: str) -> None:
        """More text of the attempt."""
        self.text += piece
        self._wake()

    def record_changed(self) -> None:
        """Its record is not what it was."""
        self.num_changes += 1
        self._wake()

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Board:
    """The live jobs by id. Whoever keeps the `Live` keeps it here."""

    def __init__(self) -> None:
        self._live: WeakValueDictionary[str, Live] = WeakValueDictionary()

    def wake_all(self) -> None:
        """Lets everybody who watches look again."""
        for live in list(self._live.values()):
            live.record_changed()

    def of(self, job_id: str) -> Live:
        """The one that is there, or a new one."""
        live = self._live.get(job_id)
        if live is None:
            live = self._live[job_id] = Live()
        return live
