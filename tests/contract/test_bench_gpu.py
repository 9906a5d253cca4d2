"""`zopilot-gpu bench gpu --demo` as a person runs it: every section, at a tiny size, on the CPU."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from tests.conftest import ROOT


def bench(*options: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("zopilot-gpu")), "bench", "gpu", *options]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)


def test_all_sections_end_with_targets_a_picture_and_a_line_of_json(tmp_path: Path) -> None:
    run = bench("--demo", "--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.svg"))
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "a.json").read_text())
    assert not found["failures"]
    assert all(check["right"] for check in found["check"])
    assert found["machine"]["versions"]["torch"]
    assert found["kernels"]["experts M=5"]["ms"] > 0
    assert {"1", "2", "1, as served"} == set(found["model"]["decode"])
    assert found["model"]["decode"]["2"]["tokens_per_s"] > 0
    assert found["model"]["decode"]["1"]["parts"]["busy_us"] > 0
    assert {"32", "64"} <= set(found["model"]["prefill"])
    assert found["nested"]["decode"]["1"]["ms"] > 0
    assert found["baseline"]["times_faster_than"] == "transformers"
    assert found["baseline"]["plain_parts"]["ms"] > 0
    assert found["load"]["quantise"]["equals_twin"]
    assert found["load"]["warm"]["gbps"]["load"] > 0
    measured = {row["name"]: row["measured"] for row in found["targets"]}
    assert measured["decode, B=1"] == found["model"]["decode"]["1"]["tokens_per_s"]
    assert measured["decode, B=64"] is None
    assert "decode, B=64" in run.stdout
    assert "vLLM" in json.dumps(found["left_out"])
    assert ET.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")  # noqa: S314  (our own file)


def test_without_a_card_one_sentence_says_so() -> None:
    run = bench()
    assert run.returncode == 1
    assert "no usable GPU" in run.stderr
    assert "Traceback" not in run.stderr


def test_a_section_that_is_none_is_named() -> None:
    run = bench("--demo", "--only", "speed")
    assert run.returncode == 2
    assert "'speed'" in run.stderr
