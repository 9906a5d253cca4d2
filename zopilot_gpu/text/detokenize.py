"""Token ids to text, piece by piece, and stop strings that never leak.

Knows that one token may be part of a character, and that a stop string may be spread over many tokens.
"""

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
_MOST_HELD = 64  # ids; a character is at most four, so this many are no character in the making


class Detokenizer:
    """Incremental decoding: `push` one id at a time, get the text that is final by now.

    Text is held back while it ends in an incomplete UTF-8 sequence. Only the tail of the ids is decoded again
    on each push, so a long answer costs a constant amount a token.

    Args:
        decode: ids -> text, special tokens left out.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # decoding starts here, so that a piece sees its left neighbours
        self._sent = 0  # ids before this are text already given out

    def push(self, token_id: int) -> str:
        """The new final text, often empty."""
        self._ids.append(token_id)
        return self._new_text(final=len(self._ids) - self._sent > _MOST_HELD)

    def flush(self) -> str:
        """What was held back, with the replacement character for bytes that never became one."""
        return self._new_text(final=True)

    def _new_text(self, *, final: bool) -> str:
        before = self._decode(self._ids[self._start : self._sent])
        now = self._decode(self._ids[self._start :])
        if not final and now.endswith(_REPLACEMENT):
            return ""
        if len(now) <= len(before):
            return ""
        self._start, self._sent = self._sent, len(self._ids)
        return now[len(before) :]


class StopStrings:
    """Passes text through until one of `stops` is complete; the stop itself and what follows are dropped.

    Of several, the one that is complete first counts, and of those the longest: so how the text is cut makes no difference.
    Text that could be the beginning of a stop string is held back until the next piece decides.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """The text that is safe to send now."""
        if self.hit:
            return ""
        self._held += text
        found = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.hit = True
            safe, self._held = self._held[: min(found)[1]], ""
            return safe
        keep = self._longest_prefix_at_end()
        cut = len(self._held) - keep
        safe, self._held = self._held[:cut], self._held[cut:]
        return safe

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        safe, self._held = self._held, ""
        return safe

    def _longest_prefix_at_end(self) -> int:
        return max(
            (size for stop in self._stops for size in range(1, len(stop)) if self._held.endswith(stop[:size])),
            default=0,
        )
