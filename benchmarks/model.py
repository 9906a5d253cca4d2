"""A whole Mixtral of made-up NF4 weights on the card at hand: a small one checked against the plain one, a full one timed.

python -m benchmarks.model --batches 1 8 32 --prefill 512 4096
"""

import argparse
import time
import zlib

import torch

from zopilot_gpu.model.attention import stored
from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.kernels import attention, weights
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.model.nf4 import BLOCK, GROUP
from zopilot_gpu.model.weights import build_packed, shapes

SIZE = 16


def config(layers: int, d: int, f: int, heads: int, vocab: int) -> MixtralConfig:
    return MixtralConfig(vocab, d, f, layers, heads, heads // 4, 128, 8, 2, 1e6, 1e-5, 32_768, tie_embeddings=False)


def source(sizes: MixtralConfig, device: torch.device, *, nested: bool, salt: int = 0):
    """Packed tensors, made when they are asked for; the same for the same name."""
    table = shapes(sizes)

    def sign(shape, generator) -> torch.Tensor:
        return torch.randint(0, 2, shape, generator=generator, device=device) * 2 - 1

    def get(name: str) -> torch.Tensor:
        generator = torch.Generator(device).manual_seed(zlib.crc32(f"{name}{salt}".encode()))
        base, _, part = name.rpartition(".")
        if name in table:
            shape = table[name]
            values = torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16)
            return values * shape[-1] ** -0.5 if len(shape) > 1 and name != "embedding" else values.abs()
        shape = table[base]
        *leading, rows, columns = shape
        blocks = (*leading, rows * columns // BLOCK)
        scale = 1.7 * columns**-0.5
        if part == "packed":
            return torch.randint(0, 256, (*leading, rows * columns // 2), generator=generator, device=device, dtype=torch.uint8)
        if part == "absmax" and not nested:
            # Either sign: the codes' mean is not zero, and all tokens would drift to the same experts.
            return ((torch.rand(blocks, generator=generator, device=device) + 0.5) * scale * sign(blocks, generator)).bfloat16()
        if part == "absmax_codes" and nested:
            return torch.randint(0, 256, blocks, generator=generator, device=device, dtype=torch.uint8)
        groups = (*leading, rows * columns // BLOCK // GROUP)
        if part == "absmax_scales" and nested:
            return torch.full(groups, 2 * scale, device=device)
        if part == "absmax_offsets" and nested:
            return torch.zeros(groups, device=device)
        raise KeyError(name)

    return get


def batch(spans: list[tuple[int, int]], sizes: MixtralConfig, device: torch.device, room: int) -> Batch:
    """Sequences of (from, to), each with `room` blocks of its own; logits of each one's last token."""
    positions = [p for begin, end in spans for p in range(begin, end)]
    slots = [s * room * SIZE + p for s, (begin, end) in enumerate(spans) for p in range(begin, end)]
    starts = [0]
    for begin, end in spans:
        starts.append(starts[-1] + end - begin)
    tables = [[s * room + b for b in range(room)] for s in range(len(spans))]
    ids = torch.randint(0, sizes.vocab_size, (len(positions),), generator=torch.Generator().manual_seed(sum(positions)))
    to = {"device": device}
    return Batch(
        ids.to(device), torch.tensor(positions, **to), torch.tensor(slots, **to), starts, [end for _, end in spans],
        torch.tensor(tables, **to), torch.tensor([start - 1 for start in starts[1:]], **to),
    )  # fmt: skip


def pools(sizes: MixtralConfig, num_blocks: int, device: torch.device, dtype: torch.dtype, fill: float) -> list[torch.Tensor]:
    shape = (2, num_blocks, SIZE, sizes.num_kv_heads, sizes.head_dim)
    return [torch.full(shape, fill, dtype=dtype, device=device) for _ in range(sizes.num_layers)]


def check(device: torch.device) -> None:
    """The kernels' model, the plain one in bf16 and the plain one in float32: kernels are as near to the last as the second."""
    sizes = config(4, 1024, 2048, 8, 1000)
    steps = [
        [(0, 37), (0, 300)],
        [(37, 38), (300, 317), (0, 1)],
        [(38, 39), (317, 318), (1, 2)],
        [(39, 40), (318, 319), (2, 90)],
    ]
    for salt in range(6):
        nested = salt % 2 == 1
        get = source(sizes, device, nested=nested, salt=salt)
        results = []
        for dtype, dequantise in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, True)):
            model = build_packed(sizes, get, dtype, device, dequantise=dequantise)
            caches = pools(sizes, 3 * 20, device, dtype, float("nan"))
            results.append([model.forward(batch(spans, sizes, device, 20), caches) for spans in steps])
        for kernels, plain, exact in zip(*results, strict=True):
            far = [float((one - exact).norm() / exact.norm()) for one in (kernels, plain)]
            rows = [((one - exact).norm(dim=1) / exact.norm(dim=1)).tolist() for one in (kernels, plain)]
            text = "; ".join(" ".join(f"{row:.1e}" for row in several) for several in rows)
            print(f"nested {nested}: kernels {far[0]:.2e}, plain bf16 {far[1]:.2e}; by rows {text}")


def decode(model: Mixtral, size: int, context: int, room: int, caches, *, profile: bool) -> None:
    device, sizes = model.embedding.device, model.config
    one = batch([(context - 1, context)] * size, sizes, device, room)
    plan = model.parts.plan(one, caches[0], model.rotary, sizes.num_heads)
    for _ in range(2):
        model.run(one, caches, plan)
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(5):
        model.forward(one, caches)
    torch.cuda.synchronize()
    eager = (time.perf_counter() - begin) / 5
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model.run(one, caches, plan)
    for _ in range(3):
        graph.replay()
    same = torch.equal(out, model.run(one, caches, plan))
    times = []
    for _ in range(20):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    ms = sorted(times)[10]
    print(
        f"decode B={size:3} context {context}: graph {ms:.3f} ms = {size / ms * 1e3:.0f} tok/s, eager {eager * 1e3:.2f} ms, graph = eager {same}",
        flush=True,
    )
    if profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            graph.replay()
            torch.cuda.synchronize()
        rows = sorted(seen.key_averages(), key=lambda row: -row.device_time_total)
        for row in rows[:16]:
            print(f"    {row.device_time_total:9.0f} us {row.count:5} x  {row.key[:90]}")


def prefill(model: Mixtral, length: int, room: int, caches) -> None:
    one = batch([(0, length)], model.config, model.embedding.device, room)
    times = []
    for _ in range(4):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        model.forward(one, caches)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    print(f"prefill {length}: {min(times) * 1e3:.1f} ms = {length / min(times):.0f} tok/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 32, 64])
    parser.add_argument("--prefill", type=int, nargs="*", default=[512, 4096])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--nested", action="store_true")
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--before", action="store_true", help="a routing for one token too, and splits of 64 positions")
    parser.add_argument("--fp8", action="store_true", help="keys and values in fp8")
    options = parser.parse_args()
    device = torch.device("cuda")
    if options.before:
        weights.MOST_PICKED, attention.MOST_SPLIT = 0, attention.SPLIT
    print(torch.cuda.get_device_name(), torch.__version__)
    if not options.no_check:
        check(device)
    sizes = config(options.layers, 4096, 14336, 32, 32_000)
    begin = time.perf_counter()
    model = build_packed(sizes, source(sizes, device, nested=options.nested), torch.bfloat16, device)
    torch.cuda.synchronize()
    print(f"built in {time.perf_counter() - begin:.1f} s; {torch.cuda.memory_allocated() / 1e9:.2f} GB")
    most = max([options.context, *options.prefill])
    room = -(-options.context // SIZE)
    kept = torch.float8_e4m3fn if options.fp8 else torch.bfloat16
    num_blocks = max(max(options.batches, default=1) * room, -(-most // SIZE))
    caches = [stored(one, kept) for one in pools(sizes, num_blocks, device, torch.bfloat16, 0.01)]
    for size in options.batches:
        decode(model, size, options.context, room, caches, profile=size in (1, 32))
    for length in options.prefill:
        prefill(model, length, -(-length // SIZE), caches)


if __name__ == "__main__":
    main()
