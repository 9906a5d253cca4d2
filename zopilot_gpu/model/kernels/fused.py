"""Small things in one launch each. Knows a layer's sums, norms and positions, and rows of an embedding that the host keeps."""

import torch
import triton
import triton.language as tl

from zopilot_gpu.model.kernels.attention import as_bytes
from zopilot_gpu.model.kernels.chained import chains, start_next, wait_for_before
from zopilot_gpu.model.kernels.e4m3 import to_e4m3


def add_norm(
    x: torch.Tensor, parts: torch.Tensor | None, weight: torch.Tensor, eps: float, router: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(x + the sum of `parts`, its RMSNorm, that times `router`): x [T, d], parts [T, n, d] or [T, d], router [E, d]."""
    num_tokens, width = x.shape
    total, out = (x if parts is None else torch.empty_like(x)), torch.empty_like(x)
    count = 0 if parts is None else parts.numel() // x.numel()
    num_experts = 0 if router is None else len(router)
    logits = torch.empty(num_tokens, num_experts, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(width)
    add_norm_kernel[(num_tokens,)](
        x, x if parts is None else parts, weight, total, out, weight if router is None else router, logits,
        eps, count, width, block, num_experts, triton.next_power_of_2(max(1, num_experts)),
        num_warps=min(16, max(1, block // (256 if num_experts else 512))), CHAINED=chains(x.device),
    )  # fmt: skip
    return total, out, logits


@triton.jit
def add_norm_kernel(
    x, parts, weight, total, out, router, logits, eps,
    PARTS: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, EXPERTS: tl.constexpr,
    ROUTED: tl.constexpr, CHAINED: tl.constexpr = False,
):  # fmt: skip
    """One token. Rounded to the dtype of x where the plain model rounds: the parts' sum, x with it, and the norm."""
    start_next(CHAINED)
    token, column = tl.program_id(0), tl.arange(0, BLOCK)
    inside = column < WIDTH
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    if EXPERTS > 0:  # all rows of the router at once: one after the other, each would wait for its own sum
        expert = tl.arange(0, ROUTED)
        rows = router + expert[:, None] * WIDTH + column[None, :]
        rows = tl.load(rows, mask=inside[None, :] & (expert < EXPERTS)[:, None], other=0.0)
    wait_for_before(CHAINED)
    value = tl.load(x + token * WIDTH + column, mask=inside, other=0.0)
    if PARTS > 0:
        added = tl.zeros((BLOCK,), tl.float32)
        for part in tl.static_range(PARTS):
            added += tl.load(parts + (token * PARTS + part) * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
        value = (value.to(tl.float32) + added.to(value.dtype).to(tl.float32)).to(value.dtype)
        tl.store(total + token * WIDTH + column, value, mask=inside)
    wide = value.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / WIDTH + eps)
    scaled = (gain * wide.to(value.dtype).to(tl.float32)).to(value.dtype)
    tl.store(out + token * WIDTH + column, scaled, mask=inside)
    if EXPERTS > 0:
        likes = tl.sum(rows.to(tl.float32) * scaled[None, :].to(tl.float32), axis=1)
        tl.store(logits + token * EXPERTS + expert, likes.to(value.dtype), mask=expert < EXPERTS)


def embed(token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rows [T, d] of `table` [V, d] in pinned memory of the host, which the GPU reads by itself: nobody waits for the ids."""
    vocab_size, width = table.shape
    out = torch.empty(len(token_ids), width, dtype=table.dtype, device=token_ids.device)
    embed_kernel[(len(token_ids), triton.cdiv(width, 1024))](
        token_ids, table, out, vocab_size, width, 1024, num_warps=4, CHAINED=chains(out.device)
    )
    return out


@triton.jit
def embed_kernel(
    token_ids, table, out, vocab_size, WIDTH: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr = False
):  # fmt: skip
    """A piece of one row. An id outside of the table, as an undecided draw leaves it, reads its first or last row."""
    start_next(CHAINED)
    token, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    wait_for_before(CHAINED)
    row = tl.minimum(tl.maximum(tl.load(token_ids + token), 0), vocab_size - 1)
    tl.store(out + token * WIDTH + column, tl.load(table + row * WIDTH + column, mask=inside), mask=inside)


def rotate_and_write(
    qkv: torch.Tensor, rotary: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, pool: torch.Tensor, num_heads: int
) -> torch.Tensor:
    """Rotated queries [T, H, h] of `qkv` [T, (H + 2K) * h]; rotated keys and values go to their slots of `pool`."""
    num_tokens, num_kv_heads, width = len(qkv), pool.shape[3], pool.shape[4]
    q = torch.empty(num_tokens, num_heads, width, dtype=qkv.dtype, device=qkv.device)
    rotate_kernel[(num_tokens, num_heads + 2 * num_kv_heads)](
        qkv, rotary, positions, slots, q, as_bytes(pool), pool.stride(0), num_heads, num_kv_heads, width,
        triton.next_power_of_2(width // 2), num_warps=1, CHAINED=chains(qkv.device),
    )  # fmt: skip
    return q


@triton.jit
def rotate_kernel(
    qkv, rotary, positions, slots, q, pool, value_offset,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, HALF: tl.constexpr,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    """One head of one token."""
    start_next(CHAINED)
    token, head = tl.program_id(0), tl.program_id(1)
    column = tl.arange(0, HALF)
    half: tl.constexpr = WIDTH // 2
    inside = column < half
    slot = tl.load(slots + token)
    table = rotary + tl.load(positions + token) * (2 * WIDTH) + column
    cos, sin = tl.load(table, mask=inside), tl.load(table + WIDTH, mask=inside)  # the halves have the same angles
    wait_for_before(CHAINED)
    source = qkv + (token * (HEADS + 2 * KV_HEADS) + head) * WIDTH + column
    left, right = tl.load(source, mask=inside), tl.load(source + half, mask=inside)
    if head < HEADS + KV_HEADS:
        turned = left * cos - right * sin
        right = right * cos + left * sin
        left = turned
    if head < HEADS:
        asked = q + (token * HEADS + head) * WIDTH + column
        tl.store(asked, left, mask=inside)
        tl.store(asked + half, right, mask=inside)
    else:
        is_value = head >= HEADS + KV_HEADS
        to = pool + is_value * value_offset + (slot * KV_HEADS + (head - HEADS) % KV_HEADS) * WIDTH + column
        if pool.dtype.element_ty == tl.uint8:
            tl.store(to, to_e4m3(left.to(tl.float32)), mask=inside)
            tl.store(to + half, to_e4m3(right.to(tl.float32)), mask=inside)
        else:
            tl.store(to, left, mask=inside)
            tl.store(to + half, right, mask=inside)
