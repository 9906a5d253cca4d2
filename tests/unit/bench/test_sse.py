"""Server-sent events are the same events however their bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zopilot_gpu.bench.sse import EventParser, ServerSentEvent

STREAM = (
    '\ufeff: a comment\r\nevent: text\r\ndata: {"text": "118"}\r\n\r\n: ping - 2026-11-23\r\n\r\n'
    'event: text\ndata: {"text": "\u20ac\u2028"}\n\nevent: done\rdata:{"a":\rdata: 1}\rid: 7\r\rdata: bare\n\nevent: none\n\n'
    "data\n\nevent: cut\ndata: never closed\n"
).encode()
EVENTS = [
    ServerSentEvent("text", '{"text": "118"}'),
    ServerSentEvent("text", '{"text": "\u20ac\u2028"}'),
    ServerSentEvent("done", '{"a":\n1}'),
    ServerSentEvent("message", "bare"),
    ServerSentEvent("message", ""),
]


def parsed(pieces: list[bytes]) -> list[ServerSentEvent]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


def test_a_stream_in_one_piece() -> None:
    assert parsed([STREAM]) == EVENTS


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_stream_in_small_pieces(size: int) -> None:
    assert parsed([STREAM[at : at + size] for at in range(0, len(STREAM), size)]) == EVENTS


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_a_stream_in_any_pieces(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]  # some of the pieces are empty
    assert parsed([STREAM[start:end] for start, end in pairwise(edges)]) == EVENTS


def test_an_event_is_known_with_its_last_byte() -> None:
    parser = EventParser()
    assert parser.feed(b"event: text\r\ndata: 1\r\n") == []
    assert parser.feed(b"\r") == [ServerSentEvent("text", "1")]
    assert parser.feed(b"\n") == []
