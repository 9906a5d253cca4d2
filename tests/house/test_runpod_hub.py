"""Holds `.runpod/` to the guide of RunPod's Hub (docs.runpod.io/hub/publishing-guide) and to the settings of the service."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices

from zopilot_gpu.api.parse import parse_prompt
from zopilot_gpu.settings import Settings

RUNPOD = Path(__file__).parents[2] / ".runpod"
HUB: dict[str, Any] = json.loads((RUNPOD / "hub.json").read_text())
TESTS: dict[str, Any] = json.loads((RUNPOD / "tests.json").read_text())
# What the guide knows, and of that what it requires.
REQUIRED = {"title", "description", "type", "category", "config"}
METADATA = REQUIRED | {"iconUrl"}
CONFIG = {"runsOn", "containerDiskInGb", "gpuCount", "gpuIds", "allowedCudaVersions", "env", "presets"}
INPUT = {"name", "type", "description", "default", "advanced", "options", "min", "max", "trueValue", "falseValue"}
POOLS = {"AMPERE_16", "AMPERE_24", "ADA_24", "AMPERE_48", "ADA_48_PRO", "AMPERE_80", "ADA_80_PRO", "HOPPER_141"}
CUDA = {f"12.{minor}" for minor in range(4, 10)}  # a driver for less can't run the image


def variables() -> set[str]:
    """Every name that a setting may have."""
    names = set[str]()
    for field, info in Settings.model_fields.items():
        alias = info.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias or f"ZOPILOT_GPU_{field.upper()}"]
        names |= {str(choice) for choice in choices}
    return names


def test_the_listing_has_the_fields_of_the_guide() -> None:
    assert REQUIRED <= HUB.keys() <= METADATA
    assert (HUB["type"], HUB["category"]) == ("serverless", "language")
    config = HUB["config"]
    assert config.keys() <= CONFIG
    assert (config["runsOn"], config["gpuCount"]) == ("GPU", 1)
    assert isinstance(config["containerDiskInGb"], int)
    assert set(config["gpuIds"].split(",")) <= POOLS
    assert set(config["allowedCudaVersions"]) <= CUDA


@pytest.mark.parametrize("entry", HUB["config"]["env"], ids=lambda entry: entry["key"])
def test_a_variable_of_the_listing_is_a_setting(entry: dict[str, Any]) -> None:
    assert entry.keys() == {"key", "input"}
    assert entry["key"] in variables()
    asked = entry["input"]
    assert {"name", "type", "description"} <= asked.keys() <= INPUT
    assert asked["type"] in {"string", "huggingface", "number", "boolean"}
    if "options" in asked:
        assert all(option.keys() == {"label", "value"} for option in asked["options"])
        assert asked["default"] in [option["value"] for option in asked["options"]]
    if asked["type"] == "boolean":
        assert (asked["trueValue"], asked["falseValue"]) == ("true", "false")


def test_the_hubs_tests_are_jobs_that_the_worker_takes() -> None:
    assert TESTS.keys() == {"tests", "config"}
    assert TESTS["config"].keys() == {"gpuTypeId", "gpuCount", "env", "allowedCudaVersions"}
    assert {entry["key"] for entry in TESTS["config"]["env"]} <= variables()
    for test in TESTS["tests"]:
        assert test.keys() == {"name", "input", "timeout"}
        assert isinstance(test["timeout"], int)
        if (sent := test["input"]).get("endpoint") != "/health":
            assert parse_prompt(json.dumps(sent.get("data", sent)).encode()).prompt


def test_the_files_that_the_hub_wants_are_there() -> None:
    assert (RUNPOD / "handler.py").is_file()
    assert all((RUNPOD.parent / name).is_file() for name in ("Dockerfile", "README.md"))
