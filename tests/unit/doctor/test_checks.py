"""On each machine that is not here: the worst verdict, and the check that says why and what to do."""

import json

import pytest

from tests.unit.doctor.machines import MACHINES, default, facts, settings
from zopilot_gpu.doctor.checks import CHECKS, examine
from zopilot_gpu.doctor.report import as_json, worst


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_said_of_a_machine(name: str) -> None:
    made, verdict, told_by, sentence = MACHINES[name]
    checks = examine(made)
    assert worst(checks) == verdict, [check for check in checks if check.verdict != "ok"]
    found = next(check for check in checks if check.name == told_by)
    assert sentence in found.sentence
    if verdict != "ok":
        assert verdict in (found.verdict, "fail")
    for check in checks:
        assert check.value
        assert check.reason.endswith(".")
        assert "\n" not in check.sentence
        if check.verdict != "ok":
            assert check.remedy.endswith(".")


def test_every_check_is_made_where_all_is_in_order() -> None:
    made, *_ = MACHINES["H100"]
    assert [check.name for check in examine(made)] == [entry.name for entry in CHECKS if entry.name != "start"]


def test_the_5090_on_the_default_image_is_told_in_a_sentence() -> None:
    made, *_ = MACHINES["RTX 5090, default image"]
    (failed,) = [check for check in examine(made) if check.verdict == "fail"]
    assert failed.sentence == (
        "NVIDIA GeForce RTX 5090 is sm_120, and torch 2.6.0+cu124 was built for sm_50 to sm_90. "
        "Use the Blackwell image (torch 2.8, CUDA 12.8)."
    )


def test_no_secret_is_told() -> None:
    canary = "canary-of-a-secret-91c2"
    asked = settings(api_key=canary, hf_token=canary, callback_secret=canary)
    assert canary not in json.dumps(as_json(examine(facts(default(None), settings=asked))))
