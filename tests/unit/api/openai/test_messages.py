"""Holds how messages become turns: order, joining, tools' results, and what is no conversation."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from zopilot_gpu.api.openai.messages import History, conversation
from zopilot_gpu.api.openai.shapes import Message
from zopilot_gpu.errors import InvalidRequest

MESSAGES: TypeAdapter[list[Message]] = TypeAdapter(list[Message])
CALL = {"id": "c1", "type": "function", "function": {"name": "rate", "arguments": '{ "of":"EUR" }'}}


def said(role: str, content: Any = None, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def turns(*messages: dict[str, Any], preamble: str | None = None) -> tuple[History, str]:
    return conversation(MESSAGES.validate_python(list(messages)), preamble)


CASES: dict[str, tuple[list[dict[str, Any]], tuple[History, str]]] = {
    "one": ([said("user", "Hi")], ((), "Hi")),
    "parts": ([said("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])], ((), "ab")),
    "system first": ([said("system", "S"), said("user", "Hi")], ((), "S\n\nHi")),
    "system late": (
        [said("user", "Hi"), said("assistant", "Yes?"), said("developer", "S"), said("user", "Go")],
        ((("S\n\nHi", "Yes?"),), "Go"),
    ),
    "joined": (
        [said("user", "a"), said("user", "b"), said("assistant", "c"), said("assistant", "d"), said("user", "e")],
        ((("a\n\nb", "c\n\nd"),), "e"),
    ),
    "tool": (
        [said("user", "Hi"), said("assistant", None, tool_calls=[CALL]), said("tool", "1.1", tool_call_id="c1")],
        ((("Hi", '{"name": "rate", "arguments": {"of": "EUR"}}'),), "Result of rate:\n1.1"),
    ),
    "tool, and more": (
        [
            said("user", "Hi"),
            said("assistant", "I look.", tool_calls=[CALL, CALL | {"id": "c2"}]),
            said("tool", "1.2", tool_call_id="c2"),
            said("tool", "1.1", tool_call_id="c1"),
            said("user", "So?"),
        ],
        (
            (("Hi", "I look.\n" + "\n".join(['{"name": "rate", "arguments": {"of": "EUR"}}'] * 2)),),
            "Result of rate:\n1.2\n\nResult of rate:\n1.1\n\nSo?",
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_messages_become_turns(case: str) -> None:
    messages, expected = CASES[case]
    assert turns(*messages) == expected


def test_a_preamble_follows_the_system_messages() -> None:
    assert turns(said("user", "Hi"), said("system", "S"), preamble="P") == ((), "S\n\nP\n\nHi")


WRONG: dict[str, tuple[list[dict[str, Any]], int]] = {
    "model first": ([said("system", "S"), said("assistant", "Hi"), said("user", "a")], 1),
    "model last": ([said("user", "Hi"), said("assistant", "a")], 1),
    "system only": ([said("system", "S")], 0),
    "blank": ([said("user", "Hi"), said("assistant", "a"), said("user", " \n")], 2),
    "nothing said": ([said("user", "Hi"), said("assistant"), said("user", "a")], 1),
    "unknown call": ([said("user", "Hi"), said("tool", "a", tool_call_id="c1")], 1),
    "answered twice": (
        [said("user", "a"), said("assistant", tool_calls=[CALL]), *[said("tool", "b", tool_call_id="c1")] * 2],
        3,
    ),
    "not answered": ([said("user", "a"), said("assistant", tool_calls=[CALL]), said("user", "b")], 2),
    "no JSON": (
        [
            said("user", "a"),
            said("assistant", tool_calls=[CALL | {"function": {"name": "rate", "arguments": "{"}}]),
            said("tool", "b", tool_call_id="c1"),
        ],
        1,
    ),
    "U+0000": ([said("user", "a\0")], 0),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_conversation_is_refused_with_its_place(case: str) -> None:
    messages, place = WRONG[case]
    with pytest.raises(InvalidRequest) as refusal:
        turns(*messages)
    assert (refusal.value.status, refusal.value.param) == (400, f"messages[{place}]")
