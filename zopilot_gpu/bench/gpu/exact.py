"""What the kernels compute, in float64 and as directly as it can be written: the twins that a run compares them with."""

import torch
from torch.nn.functional import silu

from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.nf4 import NF4


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference by that of what is expected; NaN where either has one."""
    wide = expected.double()
    return float((found.double() - wide).norm() / wide.norm())


def product(weight: NF4, x: torch.Tensor) -> torch.Tensor:
    """[T, columns] -> [T, rows]."""
    return x.double() @ weight.dequantise(torch.float64).T


def experts(w13: NF4, w2: NF4, x: torch.Tensor, logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """A layer of experts: x [T, d], logits [T, E] -> [T, d]; shares are rounded as the model rounds them."""
    likes, chosen = torch.softmax(logits, dim=-1, dtype=torch.float32).topk(top_k)
    shares = (likes / likes.sum(-1, keepdim=True)).to(logits.dtype).double()
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for index, (one13, one2) in enumerate(zip(w13.unbind(), w2.unbind(), strict=True)):
        token, place = (chosen == index).nonzero(as_tuple=True)
        if len(token):
            gate, up = product(one13, x[token]).chunk(2, dim=-1)
            out.index_add_(0, token, product(one2, silu(gate) * up) * shares[token, place].unsqueeze(1))
    return out


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of [T, d]."""
    wide = x.double()
    return weight.double() * wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()


def rotate(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotary positions: x [T, heads, h], rotary [T, 2, h]."""
    cos, sin = rotary.double().unsqueeze(2).unbind(1)
    left, right = x.double().chunk(2, dim=-1)
    return x.double() * cos + torch.cat((-right, left), dim=-1) * sin


def attention(q: torch.Tensor, pool: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Causal attention of a step's queries [T, H, h] over their sequences' positions in the pool -> [T, H, h]."""
    num_heads, width = q.shape[1:]
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for index, context in enumerate(batch.context_lens):
        rows = slice(batch.query_starts[index], batch.query_starts[index + 1])
        blocks = batch.block_tables[index, : -(-context // pool.shape[2])]
        k, v = (part[blocks].flatten(0, 1)[:context].double() for part in pool)  # [C, K, h]
        k, v = (part.repeat_interleave(num_heads // part.shape[1], dim=1) for part in (k, v))
        scores = torch.einsum("qhd,chd->hqc", q[rows].double(), k) * width**-0.5
        future = torch.arange(context, device=q.device) > batch.positions[rows].unsqueeze(1)
        out[rows] = torch.einsum("hqc,chd->qhd", scores.masked_fill(future, float("-inf")).softmax(-1), v)
    return out
