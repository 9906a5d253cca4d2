"""OpenAI's client against this service: an answer as it is written, then a call of a function.

ZOPILOT_GPU_API_KEY=... python examples/openai_client.py [http://127.0.0.1:3000]
"""

import json
import os
import sys

import openai
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionUserMessageParam

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000"
invoice = 'Context: {"vendor": "Acme", "total": "118.40"}'
book: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "book_invoice",
        "parameters": {
            "type": "object",
            "properties": {"vendor": {"type": "string", "maxLength": 40}, "total": {"type": "string", "maxLength": 12}},
            "required": ["vendor", "total"],
            "additionalProperties": False,
        },
    },
}


def asked(text: str) -> list[ChatCompletionUserMessageParam]:
    """A conversation of one question."""
    return [{"role": "user", "content": f"{text} {invoice}"}]


try:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=os.environ["ZOPILOT_GPU_API_KEY"], timeout=300) as client:
        (model,) = client.models.list()
        stream = client.chat.completions.create(
            model=model.id, messages=asked("What is the total?"), temperature=0, max_tokens=64, stream=True
        )
        for chunk in stream:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print()
        answer = client.chat.completions.create(
            model=model.id,
            messages=asked("Return all fields as JSON."),
            tools=[book],
            tool_choice="required",
            temperature=0,
            max_tokens=256,
        )
        for call in answer.choices[0].message.tool_calls or []:
            if call.type == "function":
                print(call.function.name, sorted(json.loads(call.function.arguments)))
except openai.APIStatusError as error:
    sys.exit(json.loads(error.response.text)["error"]["message"])
