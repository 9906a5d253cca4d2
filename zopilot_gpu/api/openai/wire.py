"""Choices as OpenAI writes them, whole and in pieces. Knows the shapes and keeps what was told so far; no runners."""

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from pydantic import BaseModel

from zopilot_gpu import events
from zopilot_gpu.api.openai import answers, tools
from zopilot_gpu.api.openai.parse import Asked
from zopilot_gpu.api.openai.telling import Called, Ended, Said, Told

_LEAST = -9999.0  # what OpenAI writes for a probability of nothing


class _Choice:
    """What a choice is so far."""

    def __init__(self) -> None:
        self.text = ""
        self.logprobs: list[events.TokenLogprob] = []
        self.call: answers.ToolCall | None = None
        self.ended: Ended | None = None
        self.has_role = False  # a chunk has said who speaks
        self.num_characters = 0  # of the tokens whose log probabilities were told


class Wire(Protocol):
    """One answer on the wire."""

    def __init__(self, request_id: str, model: str, asked: Asked) -> None: ...

    def take(self, told: Told) -> None:
        """Keeps what was told."""
        ...

    def whole(self) -> BaseModel:
        """The answer, once each choice has ended."""
        ...

    def chunks(self, told: Told) -> Iterator[BaseModel]:
        """The pieces of a stream that tell it. Call `take` first."""
        ...

    def last(self) -> BaseModel:
        """The piece of a stream with the usage."""
        ...


class _Answer:
    """What the two kinds share."""

    def __init__(self, request_id: str, model: str, asked: Asked) -> None:
        self._id, self._model, self._created = request_id, model, int(time.time())
        self._asked = asked
        self._choices = [_Choice() for _ in asked.jobs]

    def take(self, told: Told) -> None:
        """See `Wire.take`."""
        choice = self._choices[told.index]
        match told:
            case Said():
                choice.text += told.text
                choice.logprobs += told.logprobs
            case Called():
                function = answers.FunctionCall(name=told.name, arguments=told.arguments)
                choice.call = answers.ToolCall(id=tools.new_id(), function=function)
            case Ended():
                choice.ended = told

    def _usage(self) -> answers.TokenUsage:
        ends = [(job, choice.ended.usage) for job, choice in zip(self._asked.jobs, self._choices, strict=True) if choice.ended]
        first = {
            (job.prompt, job.history): usage for job, usage in reversed(ends)
        }.values()  # choices of one prompt count it once
        prompt = sum(usage.prompt_tokens for usage in first)
        completion = sum(usage.completion_tokens for _, usage in ends)
        return answers.TokenUsage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=answers.PromptDetails(cached_tokens=sum(usage.cached_tokens for usage in first)),
        )


class ChatWire(_Answer):
    """See `Wire`."""

    def whole(self) -> answers.ChatCompletion:
        """See `Wire.whole`."""
        choices = [
            answers.ChatChoice(
                index=index,
                message=answers.ChatMessage(
                    content=None if choice.call else choice.text, tool_calls=[choice.call] if choice.call else None
                ),
                logprobs=self._logprobs(choice.logprobs),
                finish_reason=choice.ended.finish_reason,
            )
            for index, choice in enumerate(self._choices)
            if choice.ended
        ]
        return answers.ChatCompletion(
            id=f"chatcmpl-{self._id}", created=self._created, model=self._model, choices=choices, usage=self._usage()
        )

    def chunks(self, told: Told) -> Iterator[answers.ChatChunk]:
        """See `Wire.chunks`."""
        choice = self._choices[told.index]
        if not choice.has_role:
            choice.has_role = True
            yield self._chunk(told.index, answers.ChatDelta(role="assistant", content=""))
        match told:
            case Said(text=text) if text:
                delta = answers.ChatDelta(content=text)
                yield self._chunk(told.index, delta, logprobs=self._logprobs(told.logprobs))
            case Called() if choice.call:
                call = answers.ToolCallDelta(id=choice.call.id, function=choice.call.function)
                yield self._chunk(told.index, answers.ChatDelta(tool_calls=[call]))
            case Ended():
                yield self._chunk(told.index, answers.ChatDelta(), finish_reason=told.finish_reason)

    def last(self) -> answers.ChatChunk:
        """See `Wire.last`."""
        return self._with_choices([], self._usage())

    def _chunk(
        self,
        index: int,
        delta: answers.ChatDelta,
        logprobs: answers.ChatLogprobs | None = None,
        finish_reason: answers.FinishReason | None = None,
    ) -> answers.ChatChunk:
        choice = answers.ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        return self._with_choices([choice])

    def _with_choices(
        self, choices: list[answers.ChatChunkChoice], usage: answers.TokenUsage | None = None
    ) -> answers.ChatChunk:
        return answers.ChatChunk(
            id=f"chatcmpl-{self._id}", created=self._created, model=self._model, choices=choices, usage=usage
        )

    def _logprobs(self, found: Sequence[events.TokenLogprob]) -> answers.ChatLogprobs | None:
        if self._asked.jobs[0].sampling.num_logprobs is None:
            return None
        return answers.ChatLogprobs(content=[_token(one) for one in found])


class CompletionWire(_Answer):
    """See `Wire`."""

    def whole(self) -> answers.Completion:
        """See `Wire.whole`."""
        choices = [
            answers.CompletionChoice(
                index=index,
                text=choice.text,
                logprobs=self._logprobs(choice, choice.logprobs),
                finish_reason=choice.ended.finish_reason,
            )
            for index, choice in enumerate(self._choices)
            if choice.ended
        ]
        return self._with_choices(choices, self._usage())

    def chunks(self, told: Told) -> Iterator[answers.Completion]:
        """See `Wire.chunks`."""
        text = told.text if isinstance(told, Said) else ""
        reason = told.finish_reason if isinstance(told, Ended) else None
        found = told.logprobs if isinstance(told, Said) else ()
        logprobs = self._logprobs(self._choices[told.index], found) if found else None
        choice = answers.CompletionChoice(index=told.index, text=text, logprobs=logprobs, finish_reason=reason)
        yield self._with_choices([choice])

    def last(self) -> answers.Completion:
        """See `Wire.last`."""
        return self._with_choices([], self._usage())

    def _with_choices(
        self, choices: list[answers.CompletionChoice], usage: answers.TokenUsage | None = None
    ) -> answers.Completion:
        return answers.Completion(id=f"cmpl-{self._id}", created=self._created, model=self._model, choices=choices, usage=usage)

    def _logprobs(self, choice: _Choice, found: Sequence[events.TokenLogprob]) -> answers.CompletionLogprobs | None:
        if self._asked.jobs[0].sampling.num_logprobs is None:
            return None
        tokens = [_text(one) for one in found]
        offsets = []
        for token in tokens:
            offsets.append(choice.num_characters)
            choice.num_characters += len(token)
        return answers.CompletionLogprobs(
            tokens=tokens,
            token_logprobs=[_value(one) for one in found],
            top_logprobs=[{_text(top): _value(top) for top in reversed(one.top)} for one in found],
            text_offset=offsets,
        )


def _text(one: events.Logprob) -> str:
    return one.token.decode(errors="replace")


def _value(one: events.Logprob) -> float:
    return max(one.logprob, _LEAST)


def _token(one: events.TokenLogprob) -> answers.TokenLogprob:
    top = [answers.TopLogprob(token=_text(each), bytes=list(each.token), logprob=_value(each)) for each in one.top]
    return answers.TokenLogprob(token=_text(one), bytes=list(one.token), logprob=_value(one), top_logprobs=top)
