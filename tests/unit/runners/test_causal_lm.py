"""Holds the loaded model: what is in 4 bits and what is not, whole files or none, and the same tokens for the same seed."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runners.causal_lm import CausalLM
from runners.device import Device, memory_bytes
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.events import GREEDY, Sampling
from zopilot_gpu.store.locate import Located

CPU = Device("cpu", "a test")
DRAWN = Sampling(temperature=1, top_p=1, top_k=0, repetition_penalty=1, seed=7)
PROMPT = [1, 733, 16289, 28793, 22557, 733, 28748, 16289, 28793]
INDEX = "model.safetensors.index.json"


def load(directory: Path, progress: Callable[[str, float], None] = lambda _, __: None) -> CausalLM:
    return CausalLM(Located("tiny", directory, None, "any"), CPU, progress)


@pytest.fixture(scope="module")
def mixtral(tiny_mixtral: Path) -> CausalLM:
    return load(tiny_mixtral)


@pytest.fixture(scope="module")
def llama(tiny_llama: Path) -> CausalLM:
    return load(tiny_llama)


@pytest.fixture(params=["mixtral", "llama"])
def lm(request: pytest.FixtureRequest) -> CausalLM:
    found: CausalLM = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def copy(tiny_mixtral: Path, tmp_path: Path) -> Iterator[Path]:
    """The sharded Mixtral, to be damaged."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_mixtral, directory)
    yield directory
    shutil.rmtree(directory)


def generate(lm: CausalLM, max_tokens: int = 12, sampling: Sampling = GREEDY, stop_after: int = 10**6) -> list[int]:
    tokens: list[int] = []
    lm.continue_ids(PROMPT, max_tokens, sampling, tokens.append, lambda: len(tokens) >= stop_after)
    return tokens


def linears(lm: CausalLM) -> dict[str, Any]:
    import torch

    return {name: module for name, module in lm._model.named_modules() if isinstance(module, torch.nn.Linear)}


def test_linear_layers_are_nf4_with_double_quantisation(lm: CausalLM) -> None:
    import torch
    from bitsandbytes.nn import Linear4bit

    packed = {name: module for name, module in linears(lm).items() if isinstance(module, Linear4bit)}
    assert {name.rpartition(".")[2] for name in packed} >= {"q_proj", "k_proj", "v_proj", "o_proj"}
    for name, module in packed.items():
        state = module.weight.quant_state
        assert (module.weight.dtype, state.quant_type, state.nested) == (torch.uint8, "nf4", True), name
        assert module.compute_dtype == torch.bfloat16, name


def test_every_expert_is_packed_and_router_and_head_are_not(mixtral: CausalLM) -> None:
    import torch
    from bitsandbytes.nn import Linear4bit

    kinds = {name: isinstance(module, Linear4bit) for name, module in linears(mixtral).items()}
    experts = [packed for name, packed in kinds.items() if ".experts." in name]
    assert experts == [True] * (2 * 4 * 3)  # layers x experts x w1 w2 w3
    assert sorted(name for name, packed in kinds.items() if not packed) == [
        "lm_head",
        "model.layers.0.block_sparse_moe.gate",
        "model.layers.1.block_sparse_moe.gate",
    ]
    unpacked = {name: tensor.dtype for name, tensor in mixtral._model.named_parameters() if tensor.dtype != torch.uint8}
    assert set(unpacked.values()) == {torch.bfloat16}
    assert {name.split(".")[-2] for name in unpacked} == {
        "embed_tokens", "input_layernorm", "post_attention_layernorm", "norm", "gate", "lm_head",
    }  # fmt: skip


def test_the_head_of_another_architecture_is_not_packed(llama: CausalLM) -> None:
    from bitsandbytes.nn import Linear4bit

    assert [name for name, module in linears(llama).items() if not isinstance(module, Linear4bit)] == ["lm_head"]


def test_window_and_end_of_sequence_are_the_models_own(lm: CausalLM) -> None:
    assert lm.max_context_tokens == lm._model.config.max_position_embeddings
    assert lm.eos_ids == [2]
    assert memory_bytes(Device("cpu", "test")) == (None, 0, 0)
    assert not lm._model.training


def test_greedy_is_deterministic_whatever_was_drawn_before(lm: CausalLM) -> None:
    first = generate(lm)
    generate(lm, sampling=DRAWN)
    assert generate(lm) == first
    assert len(first) == 12


def test_the_same_seed_gives_the_same_tokens(lm: CausalLM) -> None:
    first = generate(lm, sampling=DRAWN)
    generate(lm, sampling=replace(DRAWN, seed=None))
    assert generate(lm, sampling=DRAWN) == first


def test_seeds_differ_at_temperature_one(lm: CausalLM) -> None:
    drawn = {tuple(generate(lm, sampling=replace(DRAWN, seed=seed))) for seed in range(5)}
    assert len(drawn) == 5
    assert generate(lm, sampling=replace(DRAWN, seed=None)) != generate(lm, sampling=replace(DRAWN, seed=None))


def test_a_repetition_penalty_keeps_greedy_from_repeating(lm: CausalLM) -> None:
    tokens = generate(lm, 24, replace(GREEDY, repetition_penalty=2.0))
    assert len(set(tokens)) == len(tokens)


@pytest.mark.parametrize("stop_after", [1, 3])
def test_nothing_is_generated_after_should_stop(lm: CausalLM, stop_after: int) -> None:
    assert generate(lm, stop_after=stop_after) == generate(lm)[:stop_after]


def test_an_error_of_the_caller_ends_the_generation_and_the_model_goes_on(lm: CausalLM) -> None:
    def refuse() -> bool:
        raise ModelUnavailable

    with pytest.raises(ModelUnavailable):
        lm.continue_ids(PROMPT, 5, GREEDY, lambda _: None, refuse)
    assert len(generate(lm)) == 12


def test_generation_ends_with_the_end_of_sequence(lm: CausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = generate(lm)
    monkeypatch.setattr(lm, "eos_ids", [tokens[4]])
    assert generate(lm) == tokens[: tokens.index(tokens[4]) + 1]


def test_progress_is_told_for_each_file(tiny_mixtral: Path) -> None:
    told: list[tuple[str, float]] = []
    load(tiny_mixtral, lambda step, share: told.append((step, share)))
    count = len(list(tiny_mixtral.glob("*.safetensors")))
    assert count > 1
    assert told == [(f"weights, file {number} of {count}", (number - 1) / count) for number in range(1, count + 1)]


def test_loading_leaves_the_librarys_progress_bar_as_it_was(copy: Path) -> None:
    from transformers.utils import logging

    bar = logging.tqdm
    load(copy)
    (copy / "config.json").write_text("{}")
    with pytest.raises(ModelUnavailable):
        load(copy)
    assert logging.tqdm is bar


def test_pickled_weights_are_not_read(copy: Path) -> None:
    import torch

    for path in copy.glob("model*"):
        path.unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(ModelUnavailable) as refusal:
        load(copy)
    assert str(copy) in str(refusal.value.detail)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, None], ids=["empty", "garbage", "cut in half"])
def test_a_broken_weight_file_is_model_unavailable(copy: Path, content: bytes | None) -> None:
    shard = min(copy.glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(ModelUnavailable) as refusal:
        load(copy)
    assert str(copy) in str(refusal.value.detail)


TENSORS = [
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.1.block_sparse_moe.gate.weight",
    "model.layers.1.block_sparse_moe.experts.0.w1.weight",
    "model.norm.weight",
    "lm_head.weight",
]


@pytest.mark.parametrize("how", ["gone", "of another shape"])
@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_not_there_is_never_made_up(copy: Path, name: str, how: str) -> None:
    from safetensors.torch import load_file, save_file

    index = json.loads((copy / INDEX).read_text())
    shard = copy / index["weight_map"][name]
    tensors = load_file(shard)
    if how == "gone":
        del tensors[name], index["weight_map"][name]
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, shard, {"format": "pt"})
    (copy / INDEX).write_text(json.dumps(index))
    with pytest.raises(ModelUnavailable) as refusal:
        load(copy)
    assert str(copy) in str(refusal.value.detail)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"hidden_size": 128},
        {"hidden_size": "wide"},
        {"model_type": "nosuch"},
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_model_unavailable(copy: Path, change: dict[str, Any]) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelUnavailable) as refusal:
        load(copy)
    assert str(copy) in str(refusal.value.detail)


def test_a_dead_library_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from bitsandbytes import cextension

    dead = cextension.ErrorHandlerMockBNBNativeLibrary("libcusparse.so.12: cannot open shared object file")
    monkeypatch.setattr(cextension, "lib", dead)
    with pytest.raises(ModelUnavailable, match=r"native library can't be loaded \(OSError: libcusparse.*requirements anew"):
        CausalLM(Located("any", tmp_path, None, "llama"), Device("cuda", "test"), lambda *_: None)


def test_a_checkpoint_in_nf4_is_loaded_as_it_is(mixtral: CausalLM, tmp_path: Path) -> None:
    mixtral._model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert generate(again) == generate(mixtral)
