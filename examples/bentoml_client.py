"""A question with BentoML's own client.

ZOPILOT_GPU_API_KEY=... python examples/bentoml_client.py [http://127.0.0.1:3000]
"""

import os
import sys

import bentoml

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000"
with bentoml.SyncHTTPClient(url, token=os.environ["ZOPILOT_GPU_API_KEY"], timeout=300) as client:
    answer = client.prompt(prompt="What is the total?", context={"vendor": "Acme", "total": "118.40"}, max_tokens=64)
    print(answer["output"])
