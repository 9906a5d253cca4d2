"""The training forms of Mixtral's blocks: the same mathematics without a host sync, and NF4 rounding that gradients pass.

Knows MixtralForCausalLM of transformers 4.57; refuses to change a weight for good: `rounded` puts every master back.

    T tokens · D hidden size · E experts · W width of one expert

Try it: `python -m pytest tests/unit/demo/test_dense.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, MixtralForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

from zopilot_gpu.model import nf4

CAUSAL = "causal_only"  # an attention for right-padded batches: no mask tensor, so the fused kernel is used


def _forward(block: MixtralSparseMoeBlock, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """All experts on all tokens, as one wide layer whose slices are weighted by the routing (zero where not chosen)."""
    flat = hidden.view(-1, hidden.shape[-1])  # T D
    logits = block.gate(flat)  # T E
    weights, chosen = torch.topk(functional.softmax(logits, dim=-1, dtype=torch.float), block.top_k, dim=-1)
    weights = weights / weights.sum(dim=-1, keepdim=True)
    routing = torch.zeros_like(logits, dtype=torch.float).scatter(1, chosen, weights).to(flat.dtype)
    w1 = torch.cat([expert.w1.weight for expert in block.experts])  # E*W D
    w3 = torch.cat([expert.w3.weight for expert in block.experts])
    w2 = torch.cat([expert.w2.weight for expert in block.experts], dim=1)  # D E*W
    wide = functional.silu(functional.linear(flat, w1)) * functional.linear(flat, w3)  # T E*W
    wide = (wide.view(len(flat), len(block.experts), -1) * routing[:, :, None].to(wide.dtype)).flatten(1)
    return functional.linear(wide, w2).view_as(hidden), logits


def make_dense(model: MixtralForCausalLM) -> None:
    """Give this model's MoE blocks the dense forward, and its attention the mask-free one."""
    AttentionInterface.register(CAUSAL, sdpa_attention_forward)
    model.set_attn_implementation(CAUSAL)
    for module in model.modules():
        if isinstance(module, MixtralSparseMoeBlock):
            module.forward = MethodType(_forward, module)


def to_nf4(flat: Tensor) -> Tensor:
    """`flat` [n * 64] as NF4 would give it back: bf16, blocks of 64, each scaled by its largest magnitude."""
    return nf4.quantise(flat.bfloat16().view(-1, nf4.BLOCK)).dequantise(torch.bfloat16).float().view(-1)


def quantisable(model: MixtralForCausalLM) -> list[Tensor]:
    """The weights that are stored in NF4: every linear layer but the router and the head."""
    skipped = ("gate", "lm_head")
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [module.weight for name, module in linear if name.rsplit(".", 1)[-1] not in skipped]


@contextmanager
def rounded(weights: list[Tensor]) -> Iterator[None]:
    """Inside, the weights hold their NF4 values; gradients found there belong to the masters, which return after."""
    masters = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        near = torch.split(to_nf4(torch.cat([master.flatten() for master in masters])), [master.numel() for master in masters])
        torch._foreach_copy_(weights, [piece.view_as(master) for piece, master in zip(near, masters, strict=True)])
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(weights, masters)
