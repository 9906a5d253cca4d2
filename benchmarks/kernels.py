"""Times the kernels on the card at hand: every shape of program that is worth it, for a ladder of tokens, with made-up weights.

    python -m benchmarks.kernels experts --tokens 1 8 32 128

Times are of CUDA graphs over several copies of the weights, so that no cache holds them; medians, in milliseconds.
"""

import argparse
import itertools
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch

from zopilot_gpu.model.attention import stored
from zopilot_gpu.model.kernels import attention as kernels
from zopilot_gpu.model.kernels import launch
from zopilot_gpu.model.kernels import weights as held
from zopilot_gpu.model.kernels.routing import Picked, plain_route, route
from zopilot_gpu.model.kernels.shapes import Shape
from zopilot_gpu.model.kernels.tiles import tile
from zopilot_gpu.model.nf4 import NF4, Nested

D, F, E, K = 4096, 14336, 8, 2
MARLIN = {1: 0.096, 4: 0.186, 8: 0.217, 16: 0.282, 32: 0.297, 64: 0.381, 128: 0.494, 1024: 2.72}


def weight(shape, kind, device):
    """Random NF4."""
    count, rows, columns = shape
    size = rows * columns
    packed = torch.randint(0, 256, (count, size // 2), dtype=torch.uint8, device=device)
    if kind == "nested":
        groups = (count, size // 64 // 256)
        codes = torch.randint(0, 256, (count, size // 64), dtype=torch.uint8, device=device)
        absmax = Nested(codes, torch.rand(groups, device=device) * 0.01, torch.rand(groups, device=device) * 0.02 + 0.02)
    else:
        absmax = torch.rand(count, size // 64, device=device) * 0.02 + 0.01
        absmax = absmax.bfloat16() if kind == "bf16" else absmax
    return NF4(packed, absmax, shape)


def time_graph(calls: list[Callable[[], object]], repeat: int = 20) -> float:
    """Median milliseconds of one call, of a graph of all of them."""
    calls[0]()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(repeat):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / len(calls))
    return statistics.median(times)


def distance(a, b):
    return float((a.double() - b.double()).norm() / b.double().norm())


def exact(w13: NF4, w2: NF4, x, routing):
    """In float64, with weights in full."""
    out = torch.zeros(len(x), w2.shape[-2], dtype=torch.float64, device=x.device)
    for expert, start, count in routing.blocks.tolist():
        if expert < 0:
            continue
        slots = routing.order[start : start + count].long()
        one13 = NF4(w13.packed[expert], w13.absmax[expert], w13.shape[1:]).dequantise(torch.float64)
        one2 = NF4(w2.packed[expert], w2.absmax[expert], w2.shape[1:]).dequantise(torch.float64)
        gate, up = (x[slots // K].double() @ one13.T).chunk(2, dim=-1)
        y = (torch.nn.functional.silu(gate) * up) @ one2.T
        out.index_add_(0, slots // K, y * routing.shares[slots].double().unsqueeze(1))
    return out


def correct(device) -> None:
    for kind, num_tokens, shape in itertools.product(
        ("bf16", "float32", "nested"),
        (1, 3, 40),
        (Shape(1, 1, 8, 1), Shape(1, 2, 4, 2), Shape(2, 1, 2, 2), Shape(2, 4, 1, 4, True)),
    ):
        d, f = 512, 896 if kind == "bf16" else 1024
        w13, w2 = weight((E, 2 * f, d), kind, device), weight((E, d, f), kind, device)
        x, logits = torch.randn(num_tokens, d, device=device).bfloat16(), torch.randn(num_tokens, E, device=device)
        routing, plain = route(logits, K, 8 * shape.q), plain_route(logits, K, 8 * shape.q)
        same = all(torch.equal(getattr(routing, p), getattr(plain, p)) for p in ("order", "blocks"))
        t13, t2 = tile(w13), tile(w2)
        h = launch.gate_up(t13, x, routing, K, shape)
        y = launch.add_up(launch.down(t2, h, routing, shape), K, x.dtype)
        again = launch.add_up(launch.down(t2, launch.gate_up(t13, x, routing, K, shape), routing, shape), K, x.dtype)
        far = distance(y, exact(w13, w2, x, routing))
        flag = "" if far < 1e-2 and same and torch.equal(y, again) else "   <-- WRONG"
        print(f"{kind:8} T={num_tokens:3} {shape}: {far:.2e} routing {same} same bits {torch.equal(y, again)}{flag}")


def shapes(group: str) -> list[Shape]:
    """(R, Q, WK, WR, EARLY, registers)."""
    table = {
        "small": [
            "1 1 1 4 0",
            "1 1 1 8 0",
            "2 1 1 4 0",
            "1 1 4 1 0",
            "1 1 4 2 0",
            "1 1 8 1 0",
            "2 1 4 1 0",
            "2 1 2 1 0",
            "1 1 2 2 0",
            "2 1 8 1 0",
            "1 1 16 1 0",
        ],
        "middle": [
            "1 1 4 1 0",
            "2 1 4 1 0",
            "1 2 4 1 0",
            "2 2 4 1 0",
            "2 2 4 1 1",
            "1 2 8 1 0",
            "2 2 2 2 1",
            "2 2 2 1 1",
            "1 4 4 1 1",
            "2 4 4 1 1",
        ],
        "large": [
            "1 4 4 1 1",
            "2 4 4 1 1",
            "2 4 2 2 1",
            "4 4 2 1 1",
            "4 4 1 4 1",
            "1 8 4 1 1",
            "2 8 4 1 1",
            "2 8 2 2 1",
            "1 4 4 1 0",
        ],
    }
    out = []
    for one in table[group]:
        r, q, wk, wr, early = (int(part) for part in one.split())
        out.append(Shape(r, q, wk, wr, bool(early)))
    return out


def experts(device, ladder, kind, copies=3):
    size = E * 3 * D * F
    layers = [(tile(weight((E, 2 * F, D), kind, device)), tile(weight((E, D, F), kind, device))) for _ in range(copies)]
    for num_tokens in ladder:
        xs = [torch.randn(num_tokens, D, device=device).bfloat16() for _ in range(4)]
        logits = [torch.randn(num_tokens, E, device=device) for _ in range(4)]
        hit = statistics.mean(len(set(one.topk(K).indices.flatten().tolist())) for one in logits)
        floor = size * hit / E * (0.53125 if kind == "bf16" else 0.516) / 4.3e12 * 1e3
        best: dict[str, tuple[float, Shape]] = {}
        group = "small" if num_tokens <= 8 else "middle" if num_tokens <= 32 else "large"
        for shape in shapes(group):
            routings = [route(one, K, 8 * shape.q) for one in logits]
            cases = [(layers[i % copies], xs[i % 4], routings[i % 4]) for i in range(12)]
            try:
                hs = [launch.gate_up(w13, x, routing, K, shape) for (w13, _), x, routing in cases]
                up = time_graph([lambda c=c: launch.gate_up(c[0][0], c[1], c[2], K, shape) for c in cases])
                down = time_graph(
                    [lambda c=c, h=h: launch.down(c[0][1], h, c[2], shape) for c, h in zip(cases, hs, strict=True)]
                )
            except Exception as error:
                print("  ", shape, type(error).__name__, str(error)[:100])
                continue
            for name, value in (("up", up), ("down", down)):
                key = f"{name}{shape.q}"
                if key not in best or value < best[key][0]:
                    best[key] = (value, shape)
            print(
                f"  M={num_tokens:4} {shape}: gate_up {up:.4f} ({floor * 2 / 3 / up:.0%})  down {down:.4f} ({floor / 3 / down:.0%})",
                flush=True,
            )
        q = min(
            (key for key in (1, 2, 4, 8) if f"up{key}" in best), key=lambda key: best[f"up{key}"][0] + best[f"down{key}"][0]
        )
        best = {"up": best[f"up{q}"], "down": best[f"down{q}"]}
        up_shape, down_shape = best["up"][1], best["down"][1]

        def whole(i):
            (w13, w2), x, one = layers[i % copies], xs[i % 4], logits[i % 4]
            routing = route(one, K, 8 * q)
            h = launch.gate_up(w13, x, routing, K, up_shape)
            return launch.add_up(launch.down(w2, h, routing, replace(down_shape, q=q)), K, x.dtype)

        if num_tokens <= held.MOST_PICKED:

            def picked(i):
                (w13, w2), x, one = layers[i % copies], xs[i % 4], logits[i % 4].bfloat16()
                plan = Picked(one, K)
                return launch.add_up(launch.down(w2, launch.gate_up(w13, x, plan, K, up_shape), plan, down_shape), K, x.dtype)

            ms = time_graph([lambda i=i: picked(i) for i in range(12)])
            print(f"M={num_tokens:4} layer {ms:.4f} ms where programs pick their experts, without a routing", flush=True)
        total = time_graph([lambda i=i: whole(i) for i in range(12)])
        routing_ms = time_graph([lambda i=i: route(logits[i % 4], K, 8 * q) for i in range(12)])
        print(
            f"M={num_tokens:4} layer {total:.4f} ms, routing {routing_ms:.4f}, floor {floor:.4f} ({floor / total:.0%}), Marlin on H100 {MARLIN.get(num_tokens)}; up {best['up']} down {best['down']}",
            flush=True,
        )


def dense(device, ladder, kind):
    for rows, columns in ((6144, 4096), (4096, 4096)):
        weights = [tile(weight((1, rows, columns), kind, device)) for _ in range(12)]
        floor = rows * columns * 0.53125 / 4.3e12 * 1e3
        for num_tokens in ladder:
            x = torch.randn(num_tokens, columns, device=device).bfloat16()
            found = []
            table = (
                ["1 1 8 1 0", "1 1 4 1 0", "1 1 16 1 0", "2 1 8 1 0", "1 1 4 2 0"]
                if num_tokens <= 8
                else ["1 2 8 1 0", "1 4 8 1 1", "2 4 8 1 1", "1 8 8 1 1", "1 8 4 1 1", "2 2 8 1 0", "1 4 4 1 1"]
            )
            for one in table:
                r, q, wk, wr, early = (int(part) for part in one.split())
                shape = Shape(r, q, wk, wr, bool(early))
                found.append((time_graph([lambda w=w, s=shape: launch.product(w, x, s) for w in weights]), one))
            full = time_graph(
                [lambda w=w: torch.nn.functional.linear(x, launch.dequantise(w, 0, torch.bfloat16)) for w in weights]
            )
            print(
                f"dense {rows}x{columns} M={num_tokens}: floor {floor:.4f}, dequantise + cuBLAS {full:.4f};",
                *[f"{ms:.4f} ({one})" for ms, one in sorted(found)[:4]],
                flush=True,
            )


def attention(device, ladder, context=512):
    """Decode of so many sequences: splits of 64 positions, and so many as run at once; pools in bf16 and in fp8."""
    heads, kv_heads, width, size = 32, 8, 128, 16
    usual = kernels.MOST_SPLIT
    for num_tokens in ladder:
        room = -(-context // size)
        tables = torch.arange(num_tokens * room, device=device).view(num_tokens, room)
        runs = torch.tensor([[s, s, 1, context - 1] for s in range(num_tokens)], dtype=torch.int32, device=device)
        q = torch.randn(num_tokens, heads, width, device=device).bfloat16()
        pools = [torch.randn(2, num_tokens * room, size, kv_heads, width, device=device).bfloat16() for _ in range(8)]
        found = []
        for dtype in (torch.bfloat16, torch.float8_e4m3fn):
            kept = [stored(pool, dtype) for pool in pools]
            outs = []
            for most in (64, usual):
                kernels.MOST_SPLIT = most
                out = torch.empty_like(q)
                ms = time_graph([lambda p=p, o=out: kernels.attend(q, p, tables, runs, o, 1) for p in kept])
                outs.append(out)
                found.append(f"{str(dtype)[6:]} splits of at most {most}: {ms * 1e3:.1f} us")
            found.append(f"distance {distance(outs[1], outs[0]):.1e}")
        floor = num_tokens * context * kv_heads * width * 4 / 4.3e12 * 1e6
        print(f"attention B={num_tokens} context {context}: floor in bf16 {floor:.1f} us;", *found, flush=True)


def crossover(device, ladder, kind):
    w13, w2 = weight((E, 2 * F, D), kind, device), weight((E, D, F), kind, device)
    layer = held.TiledExperts(w13, w2, K)
    for num_tokens in ladder:
        x, logits = torch.randn(num_tokens, D, device=device).bfloat16(), torch.randn(num_tokens, E, device=device).bfloat16()
        torch.cuda.synchronize()
        times = []
        for call in (layer, layer._dense):
            for _ in range(2):
                call(x, logits)
            torch.cuda.synchronize()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            for _ in range(5):
                call(x, logits)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 5)
        print(f"experts M={num_tokens}: kernels {times[0]:.3f} ms, dequantise + cuBLAS {times[1]:.3f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["correct", "experts", "once", "dense", "crossover", "attention"])
    parser.add_argument("--tokens", type=int, nargs="*", default=[1, 8, 32, 128])
    parser.add_argument("--kind", default="bf16")
    options = parser.parse_args()
    device = torch.device("cuda")
    import triton

    print(torch.cuda.get_device_name(), torch.__version__, "triton", triton.__version__)
    torch.manual_seed(0)
    if options.part == "correct":
        correct(device)
    if options.part == "dense":
        dense(device, options.tokens, options.kind)
    if options.part == "attention":
        attention(device, options.tokens)
    if options.part == "crossover":
        crossover(device, options.tokens, options.kind)
    if options.part == "once":  # for a profiler
        w13, w2 = tile(weight((E, 2 * F, D), options.kind, device)), tile(weight((E, D, F), options.kind, device))
        for num_tokens in options.tokens:
            shape = Shape(1, 1, 4, 1) if num_tokens < 8 else Shape(2, 1, 4, 1)
            x = torch.randn(num_tokens, D, device=device).bfloat16()
            routing = route(torch.randn(num_tokens, E, device=device), K, 8)
            launch.down(w2, launch.gate_up(w13, x, routing, K, shape), routing, Shape(1, 1, 8, 1) if num_tokens < 8 else shape)
        torch.cuda.synchronize()
    if options.part == "experts":
        source = torch.randint(0, 256, (2**31,), dtype=torch.uint8, device=device).view(torch.int32)
        target = torch.empty_like(source)
        ms = time_graph([lambda: torch.add(source, 1, out=target)] * 5, 10)
        print(f"read and write {8 * source.numel() / ms / 1e9:.2f} TB/s")
        del source, target
        experts(device, options.tokens, options.kind)


if __name__ == "__main__":
    main()
