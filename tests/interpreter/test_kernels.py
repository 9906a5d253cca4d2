"""Every kernel equals its plain twin: here in Triton's interpreter on small shapes, under `make gpu` on a card.

`tests/twins/test_interpreted.py` runs this file in a process of its own. By hand: TRITON_INTERPRET=1 pytest tests/interpreter
"""

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from tests.twins.test_model import batch, distance
from zopilot_gpu.model import nf4, reference
from zopilot_gpu.model.attention import stored
from zopilot_gpu.model.kernels import (
    INTERPRETED,
    attention,
    chained,
    dequantise,
    experts,
    fused,
    launch,
    parts,
    routing,
    tiles,
    warpgroup,
    weights,
)
from zopilot_gpu.model.kernels.e4m3 import from_e4m3
from zopilot_gpu.model.kernels.shapes import Shape
from zopilot_gpu.model.nf4 import NF4, Nested
from zopilot_gpu.model.parts import PlainParts, rotate

SIZE = 16
WARPGROUP = Shape(1, 4, 1, 4, early=True, wgmma=True)
pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning:triton", "ignore:.*:DeprecationWarning:triton")


def weight(count: int, rows: int, columns: int, kind: str) -> NF4:
    """Random, with every code and any absmax."""
    size = rows * columns
    packed = torch.randint(0, 256, (count, size // 2), dtype=torch.uint8)
    absmax: torch.Tensor | Nested = torch.rand(count, size // 64) + 0.1
    if kind == "nested":
        groups = (count, size // 64 // 256)
        absmax = Nested(torch.randint(0, 256, (count, size // 64), dtype=torch.uint8), torch.rand(groups), torch.rand(groups))
    elif kind == "bf16":
        assert isinstance(absmax, torch.Tensor)
        absmax = absmax.bfloat16()
    return NF4(packed, absmax, (count, rows, columns))


def exact(w13: NF4, w2: NF4, x: torch.Tensor, logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """The reference's experts, in float64."""
    full = [[one.dequantise(torch.float64) for one in several.unbind()] for several in (w13, w2)]
    rows = []
    for token, likes in zip(x.double(), logits.double().softmax(-1), strict=True):
        best = likes.topk(top_k)
        shares = best.values / best.values.sum()
        picked = zip(shares, best.indices.tolist(), strict=True)
        rows.append(torch.stack([share * reference.expert(full[0][e], full[1][e], token) for share, e in picked]).sum(0))
    return torch.stack(rows)


def test_these_kernels_are_interpreted() -> None:
    assert INTERPRETED


def test_kernels_that_are_chained_are_those_that_can_wait() -> None:
    found = {
        name: kernel.arg_names
        for module in (attention, dequantise, experts, fused, routing, warpgroup)
        for name, kernel in vars(module).items()
        if name.endswith("_kernel")
    }
    assert {name for name, arguments in found.items() if "CHAINED" in arguments} == chained.WAITING


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("bf16", (16, 128)),
        ("float32", (48, 384)),
        ("bf16", (256, 256)),
        ("nested", (128, 128)),  # groups of 256 absmax: no smaller one has a whole group
        ("nested", (128, 384)),
    ],
)
def test_tiles_are_the_same_weight_in_another_order(kind: str, shape: tuple[int, int]) -> None:
    one = weight(3, *shape, kind)
    back = tiles.untile(tiles.tile(one))
    assert torch.equal(back.packed, one.packed)
    assert torch.equal(back.scales(), one.scales().view(3, -1))
    assert tiles.fits(shape)
    for index in range(3):
        full = launch.dequantise(tiles.tile(one), index, torch.float32)
        assert torch.equal(full, one.unbind()[index].dequantise(torch.float32))


@pytest.mark.parametrize("kind", ["bf16", "float32", "nested"])
@pytest.mark.parametrize("shift", [16, 3])
def test_a_part_of_a_file_is_put_in_tiles_where_it_lies(kind: str, shift: int) -> None:
    """But for one that does not begin at 16 bytes, of which kernels could not load so many at once."""
    one = weight(3, 128, 128, kind)
    expected = tiles.tile(one)
    file = torch.zeros(shift + one.packed.numel() + 5, dtype=torch.uint8)
    part = file[shift : shift + one.packed.numel()].view(one.packed.shape)
    part.copy_(one.packed)
    found = tiles.tile(NF4(part, one.absmax, one.shape), in_place=True)
    assert torch.equal(found.packed, expected.packed)
    assert torch.equal(found.absmax, expected.absmax)
    assert found.packed.data_ptr() % 16 == 0
    assert (found.packed.data_ptr() == part.data_ptr()) == (shift == 16)


def test_rows_of_an_embedding_that_the_host_keeps() -> None:
    table = torch.randn(50, 1100)
    ids = torch.tensor([3, 0, 49, 3, -1, 90])
    assert torch.equal(fused.embed(ids, table), table[ids.clamp(0, 49)])


@pytest.mark.parametrize(
    ("kind", "num_tokens", "shape"),
    [
        ("bf16", 1, Shape(1, 1, 1, 1)),
        ("float32", 9, Shape(1, 1, 2, 1)),
        ("nested", 3, Shape(2, 1, 1, 2)),
        ("bf16", 21, Shape(1, 2, 2, 1, early=True)),
    ],
)
def test_a_product_with_one_matrix(kind: str, num_tokens: int, shape: Shape) -> None:
    one = weight(1, 64, 256, kind)
    x = torch.randn(num_tokens, 256).bfloat16()
    out = launch.product(tiles.tile(one), x, shape)
    assert distance(out.double(), x.double() @ one.dequantise(torch.float64)[0].T) < 1e-2


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k", "size"), [(1, 8, 2, 8), (3, 8, 2, 8), (37, 8, 2, 16), (5, 3, 1, 8), (20, 5, 4, 32)]
)
def test_routing_is_the_plain_one(num_tokens: int, num_experts: int, top_k: int, size: int) -> None:
    logits = torch.randn(num_tokens, num_experts)
    for case in (logits, logits + torch.tensor([50.0] + [0.0] * (num_experts - 1))):  # the second: the first expert gets all
        found, plain = routing.route(case, top_k, size), routing.plain_route(case, top_k, size)
        assert torch.equal(found.order, plain.order)
        assert torch.equal(found.blocks, plain.blocks)
        torch.testing.assert_close(found.shares, plain.shares)


def sick(num_experts: int) -> torch.Tensor:
    """Rows of logits that are not all numbers, but for the second and the last one."""
    nan, inf = float("nan"), float("inf")
    rows = torch.randn(9, num_experts)
    rows[0], rows[2], rows[3], rows[4] = nan, inf, -inf, -nan
    rows[5, 1], rows[6, 0], rows[7, :-1] = nan, inf, -inf
    return rows


@pytest.mark.parametrize(("num_experts", "top_k", "size"), [(8, 2, 8), (5, 4, 16), (3, 1, 8)])
def test_any_logits_are_routed_to_different_experts(num_experts: int, top_k: int, size: int) -> None:
    logits = sick(num_experts)
    found, plain = routing.route(logits, top_k, size), routing.plain_route(logits, top_k, size)
    assert sorted(found.order.tolist()) == list(range(9 * top_k))
    slots = torch.cat([torch.arange(start, start + count) for expert, start, count in found.blocks.tolist() if expert >= 0])
    assert torch.equal(slots, torch.arange(9 * top_k))
    for expert, start, count in found.blocks.tolist():
        tokens = found.order[start : start + count] // top_k
        assert len(tokens.unique()) == count, expert  # nobody is there twice
    assert torch.equal(found.order, plain.order)
    assert torch.equal(found.blocks, plain.blocks)
    torch.testing.assert_close(found.shares, plain.shares, equal_nan=True)
    spoilt = found.shares.view(9, top_k).isnan().all(1)
    assert spoilt.tolist() == [True, False, True, True, True, True, True, False, False]


def test_a_token_of_no_numbers_spoils_only_itself() -> None:
    """All of it, as one attention over a damaged block leaves it: hidden state and logits."""
    w13, w2 = weight(4, 256, 128, "bf16"), weight(4, 128, 128, "bf16")
    x, logits = torch.randn(9, 128).bfloat16(), sick(4)
    x[0] = float("nan")
    for up, down in (
        (Shape(1, 1, 1, 8), Shape(1, 1, 1, 8)),
        (Shape(1, 2, 1, 8), Shape(1, 2, 1, 8, early=True)),
        (WARPGROUP, WARPGROUP),
    ):
        plan = routing.route(logits, 2, 8 * up.q)
        inside = launch.gate_up(tiles.tile(w13), x, plan, 2, up)
        out = launch.add_up(launch.down(tiles.tile(w2), inside, plan, down), 2, x.dtype)
        whole = torch.tensor([1, 7, 8])
        assert out[whole].isfinite().all()
        assert out[[0, 2, 3, 4, 5, 6]].isnan().all()
        assert distance(out[whole].double(), exact(w13, w2, x[whole], logits[whole], 2)) < 1.5e-2


@pytest.mark.parametrize(
    ("kind", "num_tokens", "up", "down"),
    [
        ("bf16", 1, Shape(1, 1, 2, 1), Shape(1, 1, 1, 2)),
        ("nested", 3, Shape(1, 1, 1, 1), Shape(2, 1, 2, 1)),
        ("float32", 18, Shape(1, 2, 1, 1), Shape(1, 2, 1, 1, early=True)),  # gathered, and more than one block of an expert
        ("bf16", 40, WARPGROUP, replace(WARPGROUP, r=2)),
        ("nested", 50, replace(WARPGROUP, q=8, wr=8), replace(WARPGROUP, q=8)),
    ],
)
@pytest.mark.parametrize("to_one", [False, True])
def test_experts_equal_the_reference(kind: str, num_tokens: int, up: Shape, down: Shape, *, to_one: bool) -> None:
    num_experts, width, inner, top_k = 3, 128, 128, 1 if to_one else 2
    w13, w2 = weight(num_experts, 2 * inner, width, kind), weight(num_experts, width, inner, kind)
    x, logits = torch.randn(num_tokens, width).bfloat16(), torch.randn(num_tokens, num_experts)
    if to_one:  # all experts but one are empty
        logits[:, 1] += 50
    plan = routing.route(logits, top_k, 8 * up.q)
    inside = launch.gate_up(tiles.tile(w13), x, plan, top_k, up)
    out = launch.add_up(launch.down(tiles.tile(w2), inside, plan, down), top_k, torch.float32)
    assert distance(out.double(), exact(w13, w2, x, logits, top_k)) < 1.5e-2


@pytest.mark.parametrize(("num_experts", "top_k", "kind"), [(8, 2, "bf16"), (3, 1, "nested")])
def test_a_single_token_picks_its_experts_without_a_routing(num_experts: int, top_k: int, kind: str) -> None:
    """The same bits as by a routing, whatever its logits are."""
    w13 = tiles.tile(weight(num_experts, 256, 128, kind))
    w2 = tiles.tile(weight(num_experts, 128, 128, kind))
    up = down = Shape(1, 1, 1, 8)
    for row in sick(num_experts)[[1, 5]]:
        x, logits = torch.randn(1, 128).bfloat16(), row.view(1, -1).bfloat16()
        plans = routing.route(logits, top_k, 8), routing.Picked(logits, top_k)
        routed, picked = (launch.down(w2, launch.gate_up(w13, x, plan, top_k, up), plan, down) for plan in plans)
        torch.testing.assert_close(picked, routed, rtol=0, atol=0, equal_nan=True)


def test_the_layer_of_experts_is_the_plain_one() -> None:
    w13, w2 = weight(2, 256, 128, "bf16"), weight(2, 128, 128, "bf16")
    x, logits = torch.randn(2, 128).bfloat16(), torch.randn(2, 2)
    parts_of = weights.TiledExperts(w13, w2, 1)(x, logits)
    assert parts_of.shape == (2, 1, 128)
    assert distance(parts_of.sum(1).double(), exact(w13, w2, x, logits, 1)) < 1.5e-2


@pytest.mark.parametrize("shapes", [(128, 4, 2, 16), (192, 3, 1, 48), (64, 8, 8, 8)])
def test_norm_router_and_rotary_are_the_plain_ones(shapes: tuple[int, int, int, int]) -> None:
    width, num_heads, num_kv_heads, head_dim = shapes
    plain, mine = PlainParts(), parts.KernelParts()
    x, change, scale, router = torch.randn(3, width), torch.randn(3, width), torch.randn(width), torch.randn(5, width)
    for found, expected in zip(
        mine.add_norm_route(x, change, scale, router, 1e-5), plain.add_norm_route(x, change, scale, router, 1e-5), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    several = torch.randn(3, 2, width)
    torch.testing.assert_close(mine.add_norm(x, several, scale, 1e-5)[1], plain.add_norm(x, several.sum(1), scale, 1e-5)[1])
    torch.testing.assert_close(mine.add_norm(x, None, scale, 1e-5), plain.add_norm(x, None, scale, 1e-5))

    qkv = torch.randn(3, (num_heads + 2 * num_kv_heads) * head_dim)
    angles = torch.randn(40, head_dim // 2).repeat(1, 2)
    rotary = torch.stack((angles.cos(), angles.sin()), dim=1)
    positions, slots = torch.tensor([39, 0, 7]), torch.tensor([63, 2, 17])
    pool = torch.full((2, 4, SIZE, num_kv_heads, head_dim), float("nan"))
    q = fused.rotate_and_write(qkv, rotary, positions, slots, pool, num_heads)
    heads = qkv.view(3, -1, head_dim)
    turned = rotate(heads[:, :-num_kv_heads], rotary[positions])
    torch.testing.assert_close(q, turned[:, :num_heads])
    torch.testing.assert_close(pool[0].flatten(0, 1)[slots], turned[:, num_heads:])
    torch.testing.assert_close(pool[1].flatten(0, 1)[slots], heads[:, -num_kv_heads:])
    assert int(pool.isnan().logical_not().sum()) == 2 * 3 * num_kv_heads * head_dim  # and nothing else is written


def test_a_decode_is_split_for_as_many_programs_as_run_at_once() -> None:
    on_h200 = [attention.split_of(512, size * 8, 132) for size in (1, 8, 16, 32, 64, 128)]
    assert on_h200 == [64, 64, 64, 128, 256, 512]
    assert attention.split_of(4096, 8, 132) == 128
    assert attention.split_of(32_768, 8, 132) == attention.split_of(32_768, 64 * 8, 132) == 1024
    assert attention.split_of(4096, 64 * 8, 132) == attention.MOST_SPLIT
    assert attention.split_of(16, 8, 132) == attention.SPLIT


def test_e4m3_is_written_as_torch_writes_it_and_read_exactly() -> None:
    """All of its values, those between, beyond and below them; and any bits."""
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    between = (every + every.roll(1)) / 2
    bits = torch.randint(-(2**31), 2**31, (48, 128), dtype=torch.int64).int().view(torch.float32)
    several = [every, between, between.nextafter(every), between * 2**-7, every * 1.0625]
    values = torch.cat((bits, torch.cat(several).view(-1, 128)))
    rotary = torch.stack((torch.ones(1, 64), torch.zeros(1, 64)), dim=1).clone()  # nothing turns
    qkv = torch.cat((torch.zeros_like(values), torch.zeros_like(values), values), dim=1)  # as v: rotation makes NaN of inf
    pool = torch.zeros(2, len(values) // SIZE + 1, SIZE, 1, 128).to(torch.float8_e4m3fn)
    slots = torch.arange(len(values))
    fused.rotate_and_write(qkv, rotary.repeat(1, 1, 2), torch.zeros_like(slots), slots, pool, 1)
    expected = stored(values, torch.float8_e4m3fn)
    assert torch.equal(pool[1].view(torch.uint8).flatten(0, 1)[: len(values), 0], expected.view(torch.uint8))

    found = torch.empty(256)
    read_kernel[(1,)](torch.arange(256, dtype=torch.uint8), found, "plain")
    torch.testing.assert_close(found, every, rtol=0, atol=0, equal_nan=True)


@triton.jit  # type: ignore[untyped-decorator]
def read_kernel(codes, out, READING: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Every byte."""
    index = tl.arange(0, 256)
    tl.store(out + index, from_e4m3(tl.load(codes + index), READING).to(tl.float32))


@pytest.mark.parametrize("pool_dtype", [torch.float32, torch.float8_e4m3fn])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "head_dim"), [(8, 2, 32), (3, 3, 48), (6, 1, 16)])
@pytest.mark.parametrize("spans", [[(0, 7), (25, 45), (32, 33), (0, 1)], [(4, 5), (299, 300), (63, 64)]])
def test_attention_is_the_plain_one(
    spans: list[tuple[int, int]], num_heads: int, num_kv_heads: int, head_dim: int, pool_dtype: torch.dtype
) -> None:
    """Chunks and decodes together; decodes over several splits, some of which are empty for some sequences."""
    blocks = torch.randperm(64).tolist()
    room = -(-max(end for _, end in spans) // SIZE)
    step = batch(
        torch.zeros(400, dtype=torch.int64),
        [(begin, end, blocks[s * room : (s + 1) * room]) for s, (begin, end) in enumerate(spans)],
    )
    pool = torch.full((2, 64 + room * len(spans), SIZE, num_kv_heads, head_dim), float("nan"))
    for s, (_, end) in enumerate(spans):  # what is beyond a sequence's own end stays poisoned
        for p in range(end):
            pool[:, step.block_tables[s, p // SIZE], p % SIZE] = torch.randn(2, num_kv_heads, head_dim)
    pool = stored(pool, pool_dtype)
    q, rotary = torch.randn(len(step.positions), num_heads, head_dim), torch.zeros(400, 2, head_dim)
    plain, mine = PlainParts(), parts.KernelParts()
    expected = plain.attend(q, pool, plain.plan(step, pool, rotary, num_heads))
    found = mine.attend(q, pool, mine.plan(step, pool, rotary, num_heads))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert attention.RUN < 20  # so that the span of 20 tokens is two runs
    assert nf4.BLOCK == 64
