"""What others publish, and what is aimed at: docs/benchmarks/ says where each figure is from. Plain values."""

from dataclasses import dataclass

MARLIN_MS = {1: 0.096, 4: 0.186, 8: 0.217, 16: 0.282, 32: 0.297, 64: 0.381, 128: 0.494, 1024: 2.72, 4096: 9.91}
"""A layer of experts of Mixtral 8x7B by vLLM's Marlin W4A16 kernel on an H100, by tokens."""

DECODE_AT_ONE = {  # tokens a second of one sequence, by who and where
    "TGI, bitsandbytes NF4, A6000": 12.5,
    "vLLM GPTQ, RTX 5090": 38.0,
    "TensorRT-LLM int8, A100": 81.0,
    "gpt-fast int8, A100": 97.9,
}


@dataclass(frozen=True, slots=True)
class Target:
    """A figure to reach on an H200, and where a run has it: section, then keys. `least` is the least, else the most."""

    name: str
    unit: str
    value: float
    where: tuple[str, ...]
    least: bool = True


TARGETS = (
    Target("decode, B=1", "tok/s", 400, ("model", "decode", "1", "tokens_per_s")),
    Target("decode, B=8", "tok/s", 1000, ("model", "decode", "8", "tokens_per_s")),
    Target("decode, B=32", "tok/s", 3500, ("model", "decode", "32", "tokens_per_s")),
    Target("decode, B=64", "tok/s", 5500, ("model", "decode", "64", "tokens_per_s")),
    Target("decode, B=1, times the plain runner", "x", 20, ("baseline", "times_faster")),
    *(
        Target(f"layer of experts, M={tokens}", "ms", MARLIN_MS[tokens], ("kernels", f"experts M={tokens}"), least=False)
        for tokens in (1, 8, 32, 128)
    ),
    Target("prefill, 4,096 tokens", "tok/s", 10_000, ("model", "prefill", "4096", "tokens_per_s")),
    Target("first token, 512 tokens", "ms", 60, ("model", "prefill", "512", "ms"), least=False),
    Target("weights resident", "GB", 24.6, ("nested", "weights_gb"), least=False),
    Target("packed load, cold, of raw reads", "%", 80, ("load", "cold", "percent_of_raw")),
    Target("page cache to first token", "s", 3, ("load", "first_token_s_full_size"), least=False),
)
