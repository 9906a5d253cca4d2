"""The stored model itself: its files, its layout, and that it answers."""

import json
from itertools import islice
from typing import Any

import pytest
from safetensors import safe_open

from zopilot_gpu.demo import MODEL, fields, words
from zopilot_gpu.demo.answering import DEFAULT_SAMPLING, GREEDY, load
from zopilot_gpu.demo.batches import Encoder
from zopilot_gpu.demo.cases import CASES
from zopilot_gpu.demo.measure import exact_match
from zopilot_gpu.demo.questions import held_out_set

ENCODER = Encoder(MODEL)
FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
KNOWN_WORDS = {*words.COMMON, *words.GOODS, *words.FIRST_NAMES, *words.LAST_NAMES, *words.CITIES, *words.STATUSES}


@pytest.fixture(scope="module")
def model() -> Any:
    return load(MODEL)


def test_it_is_small_and_names_no_machine() -> None:
    assert {file.name for file in MODEL.iterdir()} == FILES
    assert sum(file.stat().st_size for file in MODEL.iterdir()) < 8e6
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "mixtral"
    assert "_name_or_path" not in config
    assert json.loads((MODEL / "generation_config.json").read_text(encoding="utf-8")) == {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def test_linear_layers_are_nf4_and_the_rest_is_bf16() -> None:
    with safe_open(MODEL / "model.safetensors", "pt") as stored:
        kinds = {name: (stored.get_slice(name).get_dtype(), stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    whole = {name.split(".")[-2] for name, (kind, _) in kinds.items() if kind == "BF16"}
    assert whole == {"lm_head", "embed_tokens", "gate", "norm", "input_layernorm", "post_attention_layernorm"}
    assert kinds["model.layers.0.self_attn.q_proj.weight"] == ("U8", [256 * 256 // 2, 1])
    assert "model.layers.5.block_sparse_moe.experts.7.w2.weight.quant_state.bitsandbytes__nf4" in kinds


def test_the_hand_written_cases_are_strange_to_the_generator() -> None:
    strange = [case for case in CASES if case.context and "vendor" not in case.context]
    for case in strange:
        assert case.context is not None
        assert not fields.FIELDS.keys() & {key.lower().replace("_", " ") for key in case.context}
        for value in case.context.values():
            assert not KNOWN_WORDS & set(str(value).split(" ")), value


@pytest.mark.parametrize("how", [GREEDY, DEFAULT_SAMPLING], ids=["greedy", "default sampling"])
def test_the_hand_written_cases_are_answered(model: Any, how: dict[str, Any]) -> None:
    _, wrong = exact_match(model, ENCODER, CASES, how, batch_size=13)
    assert wrong == []


def test_held_out_questions_are_answered(model: Any) -> None:
    """Those with short answers, for time's sake; `measure` asks all."""
    short = (question for question in held_out_set(7) if ENCODER.fits(question) and len(question.answer) < 60)
    percentages, _ = exact_match(model, ENCODER, list(islice(short, 60)), GREEDY, batch_size=20)
    assert percentages["overall"] >= 95
