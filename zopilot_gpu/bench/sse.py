"""Server-sent events out of bytes that arrive in any pieces. Knows the format (HTML standard, 9.2.6); nothing of what is told.

Lines end in CRLF, LF or CR; comments and unknown fields are skipped; an event that its blank line does not close is none.
"""

import re
from typing import NamedTuple

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class ServerSentEvent(NamedTuple):
    """One event: its name, `message` where it has none, and its data lines joined."""

    name: str
    data: str


class EventParser:
    """Takes the bytes of one stream in order."""

    def __init__(self) -> None:
        self._rest = b""  # of a line that has not ended
        self._after_cr = False
        self._at_start = True
        self._name = ""
        self._data: list[str] = []

    def feed(self, piece: bytes) -> list[ServerSentEvent]:
        """The events that `piece` completes."""
        if self._after_cr and piece:
            piece = piece.removeprefix(b"\n")  # the second half of a CRLF
            self._after_cr = False
        if piece:
            self._after_cr = piece.endswith(b"\r")
        *lines, self._rest = _LINE_END.split(self._rest + piece)
        found = (self._take(line) for line in lines)
        return [event for event in found if event]

    def _take(self, line: bytes) -> ServerSentEvent | None:
        if self._at_start:
            line, self._at_start = line.removeprefix(_BOM), False
        if not line:
            return self._close()
        field, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            self._data.append(value)
        return None

    def _close(self) -> ServerSentEvent | None:
        name, data = self._name or "message", self._data
        self._name, self._data = "", []
        return ServerSentEvent(name, "\n".join(data)) if data else None
