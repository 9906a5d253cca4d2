"""The training forms equal what they stand for: transformers' MoE, bitsandbytes' NF4, generate's repetition penalty."""

import bitsandbytes.functional as bnb
import torch
from transformers import MixtralConfig, MixtralForCausalLM, RepetitionPenaltyLogitsProcessor

from zopilot_gpu.demo.dense import make_dense, quantisable, rounded, to_nf4
from zopilot_gpu.demo.train import REPETITION_PENALTY, penalise


def _model() -> MixtralForCausalLM:
    torch.manual_seed(0)
    shape = MixtralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=4, num_experts_per_tok=2, initializer_range=0.2,
    )  # fmt: skip
    return MixtralForCausalLM(shape).eval()


def test_the_dense_form_gives_the_logits_and_gradients_of_the_sparse_one() -> None:
    model, ids = _model(), torch.randint(0, 64, (3, 17))
    sparse = model(ids).logits
    sparse.square().mean().backward()
    wanted = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    make_dense(model)
    dense = model(ids).logits
    dense.square().mean().backward()
    torch.testing.assert_close(dense, sparse, rtol=1e-4, atol=1e-4)
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, wanted[name], rtol=1e-3, atol=1e-5)


def test_rounding_is_that_of_bitsandbytes() -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    packed, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    stored = bnb.dequantize_4bit(packed, state).float()
    torch.testing.assert_close(to_nf4(weight.float().flatten()).view_as(stored), stored, rtol=1e-2, atol=1e-4)


def test_masters_return_after_rounding() -> None:
    model = _model()
    weights = quantisable(model)
    assert len(weights) == 2 * (4 + 4 * 3)
    before = [weight.detach().clone() for weight in weights]
    with rounded(weights):
        assert not torch.equal(weights[0], before[0])
    assert all(torch.equal(weight, master) for weight, master in zip(weights, before, strict=True))


def test_the_penalty_is_that_of_generate() -> None:
    ids, logits = torch.randint(0, 32, (4, 10)), torch.randn(4, 32)
    penalty = RepetitionPenaltyLogitsProcessor(REPETITION_PENALTY)
    row, place = torch.arange(4), torch.tensor([3, 9, 0, 5])
    wanted = torch.cat([penalty(ids[i : i + 1, : int(place[i]) + 1], logits[i : i + 1].clone()) for i in range(4)])
    torch.testing.assert_close(penalise(logits, ids, row, place), wanted)
