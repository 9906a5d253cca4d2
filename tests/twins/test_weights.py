"""A model is the same from any form of its weights, and equal to the reference: NF4 or dequantised, packed or a checkpoint."""

import json
import random
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.multiprocessing.reductions import StorageWeakRef

from tests.checkpoints import make_tiny
from tests.twins.test_model import batch, distance, pools
from zopilot_gpu.model import nf4, reference
from zopilot_gpu.model import weights as weights_module
from zopilot_gpu.model.checkpoint import Checkpoint
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.experts import GroupedExperts
from zopilot_gpu.model.linear import dense, quantised
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.model.nf4 import NF4, Nested
from zopilot_gpu.model.weights import Packed, Source, Thrift, build, build_packed, choose_kernels, is_quantised, shapes
from zopilot_gpu.store.ensure import Wanted, ensure
from zopilot_gpu.store.load import load
from zopilot_gpu.store.locate import locate

CPU = torch.device("cpu")
NUM_TOKENS = 45


def some_config(dice: random.Random) -> MixtralConfig:
    num_kv_heads, num_experts = dice.choice([1, 2, 3]), dice.choice([1, 3, 8])
    return MixtralConfig(
        vocab_size=97,
        hidden_size=64 * dice.randint(1, 3),
        intermediate_size=64 * dice.randint(1, 4),
        num_layers=2,
        num_heads=num_kv_heads * dice.choice([1, 2, 4]),
        num_kv_heads=num_kv_heads,
        head_dim=dice.choice([16, 32, 64]),
        num_experts=num_experts,
        num_experts_per_token=min(num_experts, dice.choice([1, 2])),
        rope_theta=1e4,
        norm_eps=1e-5,
        max_position=64,
        tie_embeddings=dice.random() < 0.3,
    )


def put(into: dict[str, torch.Tensor], name: str, weight: NF4) -> None:
    into[f"{name}.packed"] = weight.packed
    if isinstance(weight.absmax, Nested):
        into |= {f"{name}.absmax_{part}": getattr(weight.absmax, part) for part in ("codes", "scales", "offsets")}
    else:
        into[f"{name}.absmax"] = weight.absmax


def some_tensors(config: MixtralConfig, seed: int) -> dict[str, torch.Tensor]:
    """Packed tensors of random weights."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}
    for name, shape in shapes(config).items():
        values = torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 1)
        if is_quantised(name):
            put(made, name, nf4.join([nf4.quantise(values.bfloat16().view(-1, shape[-1]))], shape))
        else:
            made[name] = values.bfloat16()
    return made


def packed(config: MixtralConfig, source: Source) -> dict[str, torch.Tensor]:
    """What a store would write of `source`."""
    made: dict[str, torch.Tensor] = {}
    for name, shape in shapes(config).items():
        if is_quantised(name):
            put(made, name, source.quantised(name, shape))
        else:
            made[name] = source.plain(name, shape)
    return made


def logits(model: Mixtral, ids: torch.Tensor) -> torch.Tensor:
    return model.forward(batch(ids, [(0, len(ids), [5, 2, 0])]), pools(model, 6))


@pytest.mark.parametrize("seed", range(12))
def test_in_any_shape_the_model_equals_the_reference(seed: int) -> None:
    config = some_config(random.Random(seed))
    tensors = some_tensors(config, seed)
    ids = torch.randint(0, config.vocab_size, (NUM_TOKENS,), generator=torch.Generator().manual_seed(seed))
    exact = reference.forward(config, reference.weights(config, Packed(tensors.__getitem__, CPU)), ids)
    in_nf4, in_full = (
        logits(build_packed(config, tensors.__getitem__, torch.float32, CPU, dequantise=flag), ids) for flag in (False, True)
    )
    assert torch.equal(in_nf4, in_full)
    assert distance(in_full.double(), exact) < 1e-5


def demo() -> tuple[MixtralConfig, dict[str, torch.Tensor]]:
    directory = locate("demo").directory
    config = MixtralConfig.from_json(json.loads((directory / "config.json").read_text()))
    return config, load_file(directory / "model.safetensors")


def test_packed_names_carry_a_checkpoint_without_a_change() -> None:
    config, tensors = demo()
    stored = packed(config, Checkpoint(config, tensors.__getitem__, CPU))
    assert "layers.0.w13.absmax_codes" in stored  # double quantisation comes through
    assert stored["layers.0.w13.packed"].shape == (8, 2 * 192 * 256 // 2)
    ids = torch.arange(3, 48)
    expected = logits(build(config, tensors.__getitem__, torch.float32, CPU), ids)
    for dequantise in (False, True):
        assert torch.equal(
            logits(build_packed(config, stored.__getitem__, torch.float32, CPU, dequantise=dequantise), ids), expected
        )


def test_an_embedding_that_stays_behind_changes_nothing() -> None:
    config = replace(some_config(random.Random(1)), tie_embeddings=False)
    tensors = some_tensors(config, 1)
    ids = torch.randint(0, config.vocab_size, (NUM_TOKENS,))
    usual, lean = (
        build_packed(config, tensors.__getitem__, torch.float32, CPU, dequantise=True, thrift=thrift)
        for thrift in (Thrift(), Thrift(in_place=True, host_embedding=True))
    )
    assert torch.equal(logits(usual, ids), logits(lean, ids))
    assert lean.device == CPU


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("layers.0.w2.packed", lambda tensor: tensor[:, 1:], ValueError),
        ("layers.0.w2.absmax", lambda tensor: tensor.half(), ValueError),
        ("layers.1.router", lambda tensor: tensor.float(), ValueError),
        ("layers.1.qkv.absmax", lambda tensor: None, KeyError),
        ("norm", lambda tensor: None, KeyError),
    ],
)
def test_packed_tensors_that_are_not_as_agreed_are_refused(name: str, change: object, error: type[Exception]) -> None:
    assert callable(change)
    config = replace(some_config(random.Random(0)), tie_embeddings=False)
    tensors = some_tensors(config, 0)
    changed = change(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    with pytest.raises(error, match=name.partition("_")[0]):
        build_packed(config, tensors.__getitem__, torch.float32, CPU)


@pytest.mark.parametrize(
    ("changes", "dtype", "why"),
    [
        ({}, torch.bfloat16, "a GPU with bf16, and all matrices are whole tiles"),
        ({}, torch.float32, "the kernels compute in bf16, not torch.float32"),
        (
            {"intermediate_size": 192},
            torch.bfloat16,
            "the kernels take matrices of whole tiles, 16 by 128, and not (8, 256, 192)",
        ),
        ({"hidden_size": 128}, torch.bfloat16, "the kernels take a hidden size of 256 or more, and not 128"),
    ],
)
def test_kernels_are_for_what_they_take(
    changes: dict[str, Any], dtype: torch.dtype, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    config = replace(MixtralConfig(97, 256, 256, 2, 4, 2, 64, 8, 2, 1e6, 1e-5, 512, tie_embeddings=False), **changes)
    assert choose_kernels(config, dtype, torch.device("cuda"))[1] == why


@pytest.mark.parametrize("held", ["in tiles", "dequantised"])
def test_a_packed_layer_is_gone_when_the_next_is_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, held: str) -> None:
    """So that a start takes the model's memory and one layer more: the packed form and what is made of it never both whole."""
    monkeypatch.setattr(weights_module, "choose_kernels", lambda *_: (held == "in tiles", "the test says so"))
    (tmp_path / "volume").mkdir()
    prepared = ensure(Wanted(str(make_tiny(tmp_path / "tiny")), roots=[tmp_path / "volume"]))
    directory = prepared.located.directory
    assert prepared.manifest
    config = MixtralConfig.from_json(json.loads((directory / "config.json").read_bytes()))
    tensors = load(directory, prepared.manifest)
    memory: Any = {name: StorageWeakRef(tensor.untyped_storage()) for name, tensor in tensors.items()}  # type: ignore[no-untyped-call]
    alive = list[int]()

    def get(name: str) -> torch.Tensor:
        if name.endswith(".attention_norm"):
            alive.append(len({piece.cdata for piece in memory.values() if not piece.expired()}))
        return tensors.pop(name)

    model = build_packed(config, get, torch.bfloat16, CPU, dequantise=held == "dequantised")
    assert alive == [config.num_layers + 1 - index for index in range(config.num_layers)]  # and the file of the embedding
    assert {name for name, piece in memory.items() if not piece.expired()} == {"embedding", "norm", "head"}
    assert len(model.layers) == config.num_layers
    assert tensors == {}


@pytest.mark.parametrize("num_tokens", [1, 2, 17])
@pytest.mark.parametrize("routing", ["random", "all to one", "none to the first"])
def test_experts_in_nf4_equal_dense_ones(num_tokens: int, routing: str) -> None:
    torch.manual_seed(num_tokens)
    num_experts, width, inner = 5, 64, 128
    w13 = [nf4.quantise(torch.randn(2 * inner, width)) for _ in range(num_experts)]
    w2 = [nf4.quantise(torch.randn(width, inner)) for _ in range(num_experts)]
    x = torch.randn(num_tokens, width)
    chosen = torch.rand(num_tokens, num_experts).topk(2).indices
    if routing == "all to one":
        chosen = torch.full((num_tokens, 1), 3)
    elif routing == "none to the first":
        chosen = chosen.clamp(min=1)
    shares = torch.rand(chosen.shape)
    dense_ones, in_nf4 = (
        GroupedExperts([make(one) for one in w13], [make(one) for one in w2])(x, chosen, shares)
        for make in (lambda one: dense(one, torch.float32), quantised)
    )
    assert torch.equal(in_nf4, dense_ones)
    weights = [[one.dequantise(torch.bfloat16).double() for one in several] for several in (w13, w2)]
    exact = [
        sum(share * reference.expert(weights[0][e], weights[1][e], token) for e, share in zip(experts, row, strict=True))
        for token, experts, row in zip(x.double(), chosen.tolist(), shares.double(), strict=True)
    ]
    assert distance(in_nf4.double(), torch.stack([torch.as_tensor(row) for row in exact])) < 1e-5


def test_a_source_in_full_is_quantised_one_tensor_at_a_time() -> None:
    """When a tensor is asked for, none of the large ones before it is alive."""
    config = replace(some_config(random.Random(1)), num_experts=4, num_experts_per_token=2)
    sizes = dict[str, tuple[int, ...]]()
    alive = weakref.WeakSet[torch.Tensor]()
    inner, width, q_size, kv_size = config.intermediate_size, config.hidden_size, config.num_heads, config.num_kv_heads
    rows = {"w1": inner, "w3": inner, "w2": width, "q_proj": q_size, "k_proj": kv_size, "v_proj": kv_size, "o_proj": width}

    def get(name: str) -> torch.Tensor:
        part = name.split(".")[-2]
        if part not in rows:
            shape = {"embed_tokens": (97, width), "lm_head": (97, width), "gate": (4, width)}.get(part, (width,))
            return torch.randn(shape).bfloat16()
        assert not list(alive), f"{name} is read while another is held"
        count = rows[part] * (config.head_dim if part in {"q_proj", "k_proj", "v_proj"} else 1)
        columns = {"w2": inner, "o_proj": q_size * config.head_dim}.get(part, width)
        tensor = torch.randn(count, columns).bfloat16()
        sizes[name] = tensor.shape
        alive.add(tensor)
        return tensor

    build(config, get, torch.bfloat16, CPU, dequantise=False)
    assert sum(rows * columns for rows, columns in sizes.values()) == config.num_quantised
