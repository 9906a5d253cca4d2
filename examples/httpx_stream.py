"""An answer as it is written, over server-sent events.

ZOPILOT_GPU_API_KEY=... python examples/httpx_stream.py [http://127.0.0.1:3000]
"""

import json
import os
import sys

import httpx

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000"
headers = {"X-API-Key": os.environ["ZOPILOT_GPU_API_KEY"]}
body = {"prompt": "Return all fields as JSON.", "context": {"vendor": "Acme", "total": "118.40"}, "stream": True}

with httpx.stream("POST", f"{url}/prompt", json=body, headers=headers, timeout=300) as answer:
    if answer.is_error:
        sys.exit(json.loads(answer.read())["error"]["message"])
    for line in answer.iter_lines():
        if not line.startswith("data: "):
            continue
        event = json.loads(line.removeprefix("data: "))
        if "text" in event:
            print(event["text"], end="", flush=True)
        elif event["success"]:
            print(f"\n{event['metadata']['usage']['completion_tokens']} tokens, {event['metadata']['finish_reason']}")
        else:
            sys.exit(event["error"]["message"])
