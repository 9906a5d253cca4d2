"""The service that benchmarks compare with starts, says the same as ours, and stops."""

import httpx
import pytest

from benchmarks.questions import asked
from benchmarks.servers import served
from tests.conftest import Serve


def test_the_baseline_says_what_our_service_says(serve: Serve) -> None:
    question = asked(seed=7, count=1)[0]
    with serve(ZOPILOT_GPU_MODEL="demo") as server, server.client() as client:
        ours = client.post("/prompt", json=question).json()
    with served("fastapi") as url:
        theirs = httpx.post(f"{url}/prompt", json=question, timeout=60).json()
    assert theirs["output"] == ours["output"] != ""
    usage = theirs["metadata"]["usage"]
    assert usage == ours["metadata"]["usage"]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health", timeout=60)
