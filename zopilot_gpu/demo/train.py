"""Train the demo model: a real Mixtral of a few million parameters that answers questions about made-up documents.

Knows the recipe; refuses data from outside: questions are drawn as they are needed (`questions`), and none that
measuring asks for is among them. Works on a GPU (bf16 autocast) and on a CPU (fp32) with the same command.

The recipe: answers only, each weighted by 1/sqrt(its tokens); half of the loss on logits under a repetition penalty
of 1.1, as the service samples with one; documents that grow; in the last third the weights are rounded to NF4 in
every step, with the gradient passed straight through, so that storing them in NF4 costs nothing.

    B sequences · T positions · V pieces · N predicting positions

Try it: `python -m zopilot_gpu.demo.train --steps 20 --batch 8 --out /tmp/demo-weights`,
then `python -m zopilot_gpu.demo.quantise /tmp/demo-weights /tmp/demo-model`.
"""

import math
import os
import time
from collections import defaultdict
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn import functional
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from zopilot_gpu.demo import MODEL, vocabulary
from zopilot_gpu.demo.batches import Batch, Encoder, pad, stream
from zopilot_gpu.demo.dense import make_dense, quantisable, rounded
from zopilot_gpu.demo.questions import held_out_set

REPETITION_PENALTY = 1.1
_ROUNDED_FROM = 0.65
_BALANCE = 0.01
_WATCHED = 200  # held-out questions that are looked at while training


def config() -> MixtralConfig:
    """The shape. Every output size is a multiple of 64: bitsandbytes packs rows by 32 on some CPUs."""
    return MixtralConfig(
        vocab_size=vocabulary.NUM_PIECES,
        hidden_size=256,
        intermediate_size=192,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=2048,
        rope_theta=1e6,
        bos_token_id=1,
        eos_token_id=2,
    )


def penalise(logits: Tensor, ids: Tensor, row: Tensor, place: Tensor) -> Tensor:
    """Logits [N, V] under the repetition penalty: of every piece that stands at or before the predicting position.

    Source: transformers' RepetitionPenaltyLogitsProcessor, which counts the prompt too.
    """
    shape = (len(ids), logits.shape[-1])
    position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    first = torch.full(shape, ids.shape[1], device=ids.device).scatter_reduce(1, ids, position, "amin")  # B V
    lower = torch.where(logits > 0, logits / REPETITION_PENALTY, logits * REPETITION_PENALTY)
    return torch.where(first[row] <= place[:, None], lower, logits)


class Trainer:
    """A model on a device, its optimizer, and the step."""

    def __init__(self, num_steps: int, peak: float, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        torch.set_float32_matmul_precision("high")
        self.device = device
        self.model = MixtralForCausalLM(config()).to(device)
        make_dense(self.model)
        self._rounding = quantisable(self.model)
        self._num_steps, self._peak = num_steps, peak
        matrices = [weight for weight in self.model.parameters() if weight.ndim > 1]
        others = [weight for weight in self.model.parameters() if weight.ndim == 1]
        groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.98), fused=True)

    def _rate(self, step: int) -> float:
        warm = max(1, min(500, self._num_steps // 20))
        if step < warm:
            return self._peak * (step + 1) / warm
        return self._peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (self._num_steps - warm))))

    def _logits(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits [N, V] plain and penalised, the pieces that should follow [N], and how unbalanced the experts are."""
        ids, row, place = (torch.from_numpy(part).to(self.device).long() for part in (batch.ids, batch.row, batch.place))
        cast = torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()
        with cast:
            outputs = self.model.model(input_ids=ids, use_cache=False, output_router_logits=True)
            logits = self.model.lm_head(outputs.last_hidden_state[row, place]).float()
        shape = self.model.config
        imbalance = load_balancing_loss_func(outputs.router_logits, shape.num_local_experts, shape.num_experts_per_tok, ids > 0)
        assert isinstance(imbalance, Tensor)  # noqa: S101  (it is an int for a model without routers)
        return logits, penalise(logits, ids, row, place), ids[row, place + 1], imbalance

    def step(self, step: int, batch: Batch) -> Tensor:
        """One update; returns the loss, still on the device."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(step)
        with rounded(self._rounding) if step >= _ROUNDED_FROM * self._num_steps else nullcontext():
            plain, penalised, wanted, imbalance = self._logits(batch)
            each = functional.cross_entropy(plain, wanted, reduction="none") + functional.cross_entropy(
                penalised, wanted, reduction="none"
            )
            weight = torch.from_numpy(batch.length).to(self.device)[torch.from_numpy(batch.row).to(self.device)].rsqrt()
            loss = (each * weight).sum() / (2 * weight.sum())
            torch.autograd.backward(loss + _BALANCE * imbalance)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    @torch.no_grad()
    def score(self, kinds: list[str], batches: list[Batch]) -> dict[str, str]:
        """Exact match by kind under NF4 rounding, greedy and penalised: every token of an answer the most likely one."""
        right: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
        remaining = iter(kinds)
        with rounded(self._rounding):
            for batch in batches:
                plain, penalised, wanted, _ = self._logits(batch)
                sizes = batch.length.tolist()
                hits = [torch.split((logits.argmax(-1) == wanted).cpu(), sizes) for logits in (plain, penalised)]
                for greedy, sampled in zip(*hits, strict=True):
                    pair = bool(greedy.all()), bool(sampled.all())
                    right["overall"].append(pair)
                    right[next(remaining)].append(pair)
        means = {kind: [100 * sum(column) / len(pairs) for column in zip(*pairs, strict=True)] for kind, pairs in right.items()}
        return {kind: "/".join(f"{mean:.1f}" for mean in pair) for kind, pair in sorted(means.items())}

    def save(self, directory: Path) -> None:
        """The weights in bf16, in files small enough for the machine that trains to send back."""
        state = {name: weight.bfloat16() for name, weight in self.model.state_dict().items()}
        self.model.save_pretrained(directory, state_dict=state, max_shard_size="10MB")


def watched(encoder: Encoder, batch_size: int) -> tuple[list[str], list[Batch]]:
    """A few held-out questions to look at while training (of another seed than those that are measured)."""
    questions = list(islice(filter(encoder.fits, held_out_set(seed=-1)), _WATCHED))
    questions.sort(key=lambda question: len(encoder.prompt(question)))
    pairs = [(encoder.prompt(question), encoder.answer(question)) for question in questions]
    batches = [pad(pairs[i : i + batch_size]) for i in range(0, len(pairs), batch_size)]
    return [question.kind for question in questions], batches


def main(
    out: Annotated[Path, typer.Option(help="Where the bf16 weights go.")],
    steps: Annotated[int, typer.Option(help="Updates.")] = 9_400,
    batch: Annotated[int, typer.Option(help="Sequences an update.")] = 256,
    peak: Annotated[float, typer.Option(help="The highest learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Decides the weights at the start and every question.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that make batches; 0 for none.")] = 0,
) -> None:
    """Train; save the weights and say how it goes twenty times on the way."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if not (MODEL / "tokenizer.json").exists():
        vocabulary.save(vocabulary.build(), MODEL)
    batches = stream(MODEL, seed, steps, batch, workers)
    kinds, watch = watched(Encoder(MODEL), batch)
    trainer = Trainer(steps, peak, seed, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    start, losses = time.monotonic(), []
    for step, each in enumerate(batches):
        losses.append(trainer.step(step, each))
        if (step + 1) % max(1, steps // 20) == 0 or step + 1 == steps:
            loss, losses = float(torch.stack(losses).mean()), []
            typer.echo(f"{step + 1:6} {time.monotonic() - start:7.1f} s  loss {loss:.4f}  {trainer.score(kinds, watch)}")
            trainer.save(out)


if __name__ == "__main__":
    typer.run(main)
