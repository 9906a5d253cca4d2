"""What needs a GPU: kernels against float64 at many sizes, and a model by kernels against the plain one; `make gpu`."""

import itertools
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from zopilot_gpu.model import nf4
from zopilot_gpu.model.attention import stored
from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.kernels import launch
from zopilot_gpu.model.kernels import shapes as shapes_of_programs
from zopilot_gpu.model.kernels.e4m3 import from_e4m3
from zopilot_gpu.model.kernels.routing import MOST_TOKENS, plain_route, route
from zopilot_gpu.model.kernels.tiles import tile
from zopilot_gpu.model.kernels.weights import TiledExperts, TiledLinear, expert_shapes
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.model.nf4 import NF4
from zopilot_gpu.model.weights import Thrift, build_packed, choose_kernels, is_quantised, shapes

ROOT = Path(__file__).parents[2]
SIZE = 16
CONFIG = MixtralConfig(500, 512, 768, 3, 8, 2, 64, 8, 2, 1e6, 1e-5, 2048, tie_embeddings=False)


@pytest.fixture(scope="module")
def device() -> Iterator[torch.device]:
    assert torch.cuda.is_available(), "these tests need a GPU"
    before = shapes_of_programs.current()
    shapes_of_programs.use_shipped(torch.device("cuda"))
    yield torch.device("cuda")
    shapes_of_programs.use(before)
    torch.cuda.empty_cache()


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def weight(count: int, rows: int, columns: int, device: torch.device) -> NF4:
    pieces = [nf4.quantise(torch.randn(rows, columns, device=device).bfloat16() * columns**-0.5) for _ in range(count)]
    return nf4.join(pieces, (count, rows, columns))


def exact(w13: NF4, w2: NF4, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    plan = plain_route(logits, 2, 8)
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for expert, start, count in plan.blocks.tolist():
        if expert >= 0:
            slots = plan.order[start : start + count].long()
            gate, up = (x[slots // 2].double() @ w13.unbind()[expert].dequantise(torch.float64).T).chunk(2, dim=-1)
            y = (torch.nn.functional.silu(gate) * up) @ w2.unbind()[expert].dequantise(torch.float64).T
            out.index_add_(0, slots // 2, y * plan.shares[slots].double().unsqueeze(1))
    return out


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4, 7, 8, 9, 16, 17, 33, 48, 49, 65, 97, 130, 512, 1025, 2048, 2049])
@pytest.mark.parametrize("to_one", [False, True])
def test_experts_for_any_number_of_tokens(device: torch.device, num_tokens: int, *, to_one: bool) -> None:
    w13, w2 = weight(8, 1536, 512, device), weight(8, 512, 768, device)
    x, logits = torch.randn(num_tokens, 512, device=device).bfloat16(), torch.randn(num_tokens, 8, device=device)
    if to_one:
        logits[:, 3:5] += 50
    layer = TiledExperts(w13, w2, 2)
    first, again = (layer(x, logits) for _ in range(2))
    assert torch.equal(first, again)  # nothing is added in an order that changes
    found = first.view(num_tokens, -1, 512).double().sum(1)
    assert distance(found, exact(w13, w2, x, logits)) < 1e-2


def test_no_output_is_left_unwritten(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `torch.empty` is poisoned, and nothing of it comes through."""
    empty = torch.empty

    def poisoned(*args: object, **keywords: object) -> torch.Tensor:
        made: torch.Tensor = empty(*args, **keywords)  # type: ignore[call-overload]
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
    w13, w2 = weight(8, 1536, 512, device), weight(8, 512, 768, device)
    for num_tokens in (1, 5, 20, 200):
        x, logits = torch.randn(num_tokens, 512, device=device).bfloat16(), torch.randn(num_tokens, 8, device=device)
        assert TiledExperts(w13, w2, 2)(x, logits).isfinite().all()


@pytest.mark.parametrize("num_tokens", [1, 5, 8, 9, 31, 64, 65, 300])
def test_products(device: torch.device, num_tokens: int) -> None:
    one = weight(1, 768, 512, device).unbind()[0]
    x = torch.randn(num_tokens, 512, device=device).bfloat16()
    assert distance(TiledLinear(one)(x).double(), x.double() @ one.dequantise(torch.float64).T) < 1e-2
    assert torch.equal(launch.dequantise(tile(one), 0, torch.bfloat16), one.dequantise(torch.bfloat16))


@pytest.mark.parametrize("num_tokens", [1, 2, 15, 16, 100, MOST_TOKENS])
def test_routing(device: torch.device, num_tokens: int) -> None:
    for q, shift in itertools.product((1, 2, 4, 8), (0, 50)):
        logits = torch.randn(num_tokens, 8, device=device)
        logits[:, 2] += shift
        found, plain = route(logits, 2, 8 * q), plain_route(logits, 2, 8 * q)
        assert torch.equal(found.order, plain.order)
        assert torch.equal(found.blocks, plain.blocks)
        torch.testing.assert_close(found.shares, plain.shares)
    assert {up.q for up, _ in map(expert_shapes, range(1, 600))} <= {1, 2, 4, 8}


@pytest.mark.parametrize("num_tokens", [1, 9, 40, 200])
def test_tokens_of_no_numbers_spoil_only_themselves(device: torch.device, num_tokens: int) -> None:
    w13, w2 = weight(8, 1536, 512, device), weight(8, 512, 768, device)
    layer = TiledExperts(w13, w2, 2)
    x, logits = torch.randn(num_tokens, 512, device=device).bfloat16(), torch.randn(num_tokens, 8, device=device).bfloat16()
    expected = layer(x, logits)
    for sick in (float("nan"), float("inf"), float("-inf")):
        hurt_x, hurt = x.clone(), logits.clone()
        hurt_x[::3], hurt[::3] = sick, sick
        plan = route(hurt, 2, 8)
        assert plan.order.sort().values.tolist() == list(range(2 * num_tokens))
        assert int(plan.blocks[:, 2].sum()) == 2 * num_tokens
        found = layer(hurt_x, hurt)
        whole = torch.arange(num_tokens, device=device) % 3 != 0
        assert torch.equal(found[whole], expected[whole])
        assert found[~whole].isnan().all()


def made(device: torch.device) -> dict[str, torch.Tensor]:
    """The packed tensors of a model."""
    tensors = dict[str, torch.Tensor]()
    for name, shape in shapes(CONFIG).items():
        values = torch.randn(shape, device=device) * (shape[-1] ** -0.5 if len(shape) > 1 else 1)
        if is_quantised(name):
            made = nf4.join([nf4.quantise(values.bfloat16().view(-1, shape[-1]))], shape)
            assert isinstance(made.absmax, torch.Tensor)
            tensors |= {f"{name}.packed": made.packed, f"{name}.absmax": made.absmax}
        else:
            tensors[name] = values.bfloat16()
    return tensors


def models(device: torch.device) -> tuple[Mixtral, Mixtral, Mixtral]:
    """By kernels, plain in bf16, plain in float32."""
    tensors = made(device)
    assert choose_kernels(CONFIG, torch.bfloat16, device)[0]
    return (
        build_packed(CONFIG, tensors.__getitem__, torch.bfloat16, device),
        build_packed(CONFIG, tensors.__getitem__, torch.bfloat16, device, dequantise=True),
        build_packed(CONFIG, tensors.__getitem__, torch.float32, device, dequantise=True),
    )


def step(spans: list[tuple[int, int]], device: torch.device, room: int) -> Batch:
    positions = [p for begin, end in spans for p in range(begin, end)]
    slots = [s * room * SIZE + p for s, (begin, end) in enumerate(spans) for p in range(begin, end)]
    starts = [0, *itertools.accumulate(end - begin for begin, end in spans)]
    ids = [random.Random(p).randrange(CONFIG.vocab_size) for p in positions]
    tables = [[s * room + b for b in range(room)] for s in range(len(spans))]

    def put(values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, device=device)

    last = put([start - 1 for start in starts[1:]])
    return Batch(put(ids), put(positions), put(slots), starts, [end for _, end in spans], put(tables), last)


def pools(model: Mixtral, num_blocks: int) -> list[torch.Tensor]:
    shape = (2, num_blocks, SIZE, CONFIG.num_kv_heads, CONFIG.head_dim)
    like = model.norm
    return [torch.full(shape, float("nan"), dtype=like.dtype, device=like.device) for _ in range(CONFIG.num_layers)]


STEPS = [[(0, 37), (0, 300)], [(37, 38), (300, 317), (0, 1)], [(38, 39), (317, 318), (1, 2)], [(39, 40), (318, 319), (2, 90)]]


@torch.inference_mode()
def test_a_model_by_kernels_is_as_near_to_the_exact_one_as_the_plain_one(device: torch.device) -> None:
    """By the median of many models' rows: a router's near tie that falls the other way costs either one a row or more."""
    far = []
    for _ in range(8):
        three = models(device)
        caches = [pools(model, 60) for model in three]
        for spans in STEPS:
            kernels, plain, full = (
                model.forward(step(spans, device, 20), cache) for model, cache in zip(three, caches, strict=True)
            )
            far += [((one - full).norm(dim=1) / full.norm(dim=1)) for one in (kernels, plain)]
    mine, theirs = torch.cat(far[::2]).median(), torch.cat(far[1::2]).median()
    assert mine < 1.5 * theirs, (mine, theirs)


@torch.inference_mode()
def test_a_thrifty_model_says_the_same(device: torch.device) -> None:
    """Tiles where the tensors lie, and an embedding in pinned memory of the host, read from a CUDA graph."""
    tensors = made(device)
    usual = build_packed(CONFIG, tensors.__getitem__, torch.bfloat16, device)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    lean = build_packed(CONFIG, copies.pop, torch.bfloat16, device, thrift=Thrift(in_place=True, host_embedding=True))
    assert lean.embedding.device.type == "cpu"
    caches = pools(usual, 60), pools(lean, 60)
    for spans in STEPS:
        one = step(spans, device, 20)
        assert torch.equal(usual.forward(one, caches[0]), lean.forward(one, caches[1]))
    plan = lean.parts.plan(one, caches[1][0], lean.rotary, CONFIG.num_heads)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    with torch.cuda.graph(graph):
        out = lean.run(one, caches[1], plan)
    graph.replay()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    assert torch.equal(out, lean.run(one, caches[1], plan))


@triton.jit  # type: ignore[untyped-decorator]
def read_kernel(codes, out, READING: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Every byte."""
    index = tl.arange(0, 256)
    tl.store(out + index, from_e4m3(tl.load(codes + index), READING).to(tl.float32))


@pytest.mark.parametrize("way", ["cast", "asm"])
def test_e4m3_is_read_exactly_both_ways(device: torch.device, way: str) -> None:
    if way == "cast" and torch.cuda.get_device_capability(device) < (8, 9):
        return  # there is no such instruction
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    found = torch.empty(256, device=device)
    read_kernel[(1,)](codes, found, way)
    expected = codes.view(torch.float8_e4m3fn).float()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@torch.inference_mode()
def test_keys_and_values_in_a_byte(device: torch.device) -> None:
    """Kernels and plain parts are as near to each other as in bf16, by the median of rows; and what is written is the same."""
    kernels, plain, _ = models(device)
    caches = [[stored(pool, torch.float8_e4m3fn) for pool in pools(model, 60)] for model in (kernels, plain)]
    far = []
    for spans in STEPS:
        mine, theirs = (
            model.forward(step(spans, device, 20), cache) for model, cache in zip((kernels, plain), caches, strict=True)
        )
        far.append((mine - theirs).norm(dim=1) / theirs.norm(dim=1))
    assert torch.cat(far).median() < 0.1, far  # 0.03 to 0.06: a rounding of a byte is 6%, or sends a token to another expert
    written = [cache[0][:, 0].view(torch.uint8) for cache in caches]  # of layer 0: nothing before it differs but by rounding
    assert float((written[0] == written[1]).float().mean()) > 0.9


@torch.inference_mode()
def test_a_cuda_graph_of_a_step_is_the_step(device: torch.device) -> None:
    model = models(device)[0]
    cache = pools(model, 60)
    model.forward(step([(0, 37), (0, 300)], device, 20), cache)
    one = step([(37, 38), (300, 301)], device, 20)
    plan = model.parts.plan(one, cache[0], model.rotary, CONFIG.num_heads)
    eager = model.run(one, cache, plan)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    with torch.cuda.graph(graph):
        out = model.run(one, cache, plan)
    graph.replay()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    assert torch.equal(out, eager)


def test_nothing_asks_for_cudnn() -> None:
    """In a process of its own, whose mapped files tell: the images are without these libraries."""
    script = """
import torch
from pathlib import Path
from runners.device import without_cudnn

without_cudnn()
q = torch.randn(1, 8, 64, 64, device="cuda", dtype=torch.bfloat16)
torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
torch.nn.functional.conv1d(q[0, :, 0, None], torch.randn(4, 1, 3, device="cuda", dtype=torch.bfloat16))
torch.cuda.synchronize()
mapped = {Path(line.split()[-1]).name for line in open("/proc/self/maps") if "libcudnn" in line}
print(sorted(name for name in mapped if not name.startswith(("libcudnn.so", "libcudnn_graph"))))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
