"""A conversation as the model reads it: turns of user and model, in turn, ending with the user's. Knows roles, no templates.

System messages stand at the beginning of the first user turn, as Mixtral's template has no place for them. What a tool gave is
told in a user turn; a call that the model made is its turn, as the JSON that it wrote. Turns of one side are joined.
"""

import json
from collections.abc import Sequence

from zopilot_gpu.api.openai.errors import bad_request
from zopilot_gpu.api.openai.shapes import AssistantMessage, Content, Message, SystemMessage, ToolMessage, UserMessage
from zopilot_gpu.errors import InvalidRequest

History = tuple[tuple[str, str], ...]


def conversation(messages: Sequence[Message], preamble: str | None = None) -> tuple[History, str]:
    """The turns before the last as pairs of user and model, and the last turn of the user.

    Args:
        messages: as sent.
        preamble: more instructions, after those of the system messages.

    Raises:
        InvalidRequest: no conversation comes of them, with the place.
    """
    instructions = [_text(one.content, at) for at, one in enumerate(messages) if isinstance(one, SystemMessage)]
    turns: list[list[str]] = []  # the user's at even places
    called = dict[str, str]()  # name of the function by id of the call
    open_calls = set[str]()
    for at, message in enumerate(messages):
        if isinstance(message, SystemMessage):
            continue
        if open_calls and not isinstance(message, ToolMessage):
            raise _refusal(at, "every call before it needs a message of role 'tool' with what it gave")
        is_users = not isinstance(message, AssistantMessage)
        if not turns and not is_users:
            raise _refusal(at, "the first message, but for system messages, must be the user's")
        if isinstance(message, AssistantMessage):
            for call in message.tool_calls or ():
                called[call.id] = call.function.name
                open_calls.add(call.id)
        text = _told(message, at, called, open_calls)
        if is_users == bool(len(turns) % 2):  # the side that spoke last
            turns[-1].append(text)
        else:
            turns.append([text])
    return _paired(turns, [*instructions, *([preamble] if preamble else [])], len(messages) - 1)


def _paired(turns: list[list[str]], instructions: list[str], last: int) -> tuple[History, str]:
    if len(turns) % 2 == 0:
        raise _refusal(last, "the last message must be the user's or a tool's")
    turns[0] = [*instructions, *turns[0]]
    *before, prompt = ["\n\n".join(turn) for turn in turns]
    if not prompt.strip():
        raise _refusal(last, "must not be empty")
    return tuple(zip(before[0::2], before[1::2], strict=True)), prompt


def _told(message: UserMessage | AssistantMessage | ToolMessage, at: int, called: dict[str, str], open_calls: set[str]) -> str:
    if isinstance(message, ToolMessage):
        if message.tool_call_id not in open_calls:
            raise _refusal(at, "tool_call_id: no call before it has this id, or it was answered already")
        open_calls.discard(message.tool_call_id)
        return f"Result of {called[message.tool_call_id]}:\n{_text(message.content, at)}"
    if isinstance(message, AssistantMessage):
        calls = [f'{{"name": "{call.function.name}", "arguments": {_arguments(call.function.arguments, at)}}}'
                 for call in message.tool_calls or ()]  # fmt: skip
        said = [_text(message.content, at)] if message.content else []
        if not said and not calls:
            raise _refusal(at, "needs content or tool_calls")
        return "\n".join([*said, *calls])
    return _text(message.content, at)


def _arguments(sent: str, at: int) -> str:
    try:
        return json.dumps(json.loads(sent), ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        raise _refusal(at, "tool_calls: arguments must be JSON") from None


def _text(content: Content, at: int) -> str:
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    if "\0" in text:
        raise _refusal(at, "must not contain U+0000")
    return text


def _refusal(at: int, reason: str) -> InvalidRequest:
    return bad_request(f"messages[{at}]: {reason}", f"messages[{at}]")
