"""An answer that keeps a JSON Schema: it is the value itself, checked before it was sent.

ZOPILOT_GPU_API_KEY=... python examples/json_schema.py [http://127.0.0.1:3000]
"""

import os
import sys

import httpx

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000"
schema = {
    "type": "object",
    "properties": {"vendor": {"type": "string", "maxLength": 40}, "total": {"type": "number"}},
    "required": ["vendor", "total"],
}
answer = httpx.post(
    f"{url}/prompt",
    headers={"X-API-Key": os.environ["ZOPILOT_GPU_API_KEY"]},
    json={
        "prompt": "Return the vendor and the total as JSON.",
        "context": {"vendor": "Acme", "total": "118.40", "currency": "EUR"},
        "json_schema": schema,
        "temperature": 0,
    },
    timeout=300,
)
if answer.is_error:
    sys.exit(answer.json()["error"]["message"])
invoice = answer.json()["output"]
print(f"{invoice['vendor']} is owed {invoice['total']:.2f}")
