"""Compiles the kernels ahead of time for a card that need not be there, and prints what the machine code has, as JSON.

python -m tests.twins.compiled 90
"""

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from zopilot_gpu.engine import sample_kernel
from zopilot_gpu.model.kernels import attention, experts, fused, routing, warpgroup

WORDS, BF16, LONG, REAL = "*i32", "*bf16", "*i64", "*fp32"
WEIGHT = dict.fromkeys(("packed", "absmax", "groups", "nested", "table"), WORDS)
SMALL = {"P": 1, "Q": 1, "WK": 2, "WR": 2, "EARLY": False, "PLAIN": False}
PICKED = {"NUM_EXPERTS": 8, "EXPERTS": 8}
ROUTED = {"NUM_EXPERTS": 0, "EXPERTS": 0}
UP = ROUTED | {"TOP_K": 2, "COLUMNS": 4096, "INNER": 14336, "NUM_BLOCKS": 2}
DOWN = ROUTED | {
    "COLUMNS": 14336,
    "ROWS": 4096,
    "NUM_BLOCKS": 2,
    "R": 1,
    "Q": 1,
    "WK": 8,
    "WR": 1,
    "EARLY": False,
    "PLAIN": False,
}
HEADS = {"HEADS": 32, "KV_HEADS": 8, "WIDTH": 128, "PADDED": 128}
ATTEND = HEADS | {"SIZE": 16, "GROUP": 4, "POSITIONS": 64, "MOST": 0, "ROWS": 16, "PARTIAL": True, "E4M3": ""}
ATTEND_TYPES = {
    "q": BF16,
    "pool": BF16,
    "tables": LONG,
    "runs": WORDS,
    "out": BF16,
    "sums": REAL,
    "best": REAL,
    "scale": "fp32",
    "q_stride": "i32",
    "table_stride": "i32",
    "value_offset": "i64",
    "num_runs": "i32",
    "split_size": "i32",
}
UP_TYPES = WEIGHT | {"x": WORDS, "order": WORDS, "blocks": WORDS, "out": BF16}
DOWN_TYPES = WEIGHT | {"x": WORDS, "order": WORDS, "blocks": WORDS, "shares": REAL, "out": REAL}
ROUTE = {"num_experts": 8, "TOP_K": 2, "SIZE": 8}
SAMPLE_TYPES = {
    "logits": REAL,
    "masks": WORDS,
    "parameters": REAL,
    "homes": LONG,
    "seen": "*u8",
    "last": LONG,
    "keys": WORDS,
    "places": LONG,
    "drawn": LONG,
    "stride": "i32",
}
SAMPLE = {"VOCAB": 32_000, "MOST": 128}
# name: kernel, types, constants, warps, integers that are multiples of 16
KERNELS: dict[str, tuple[Any, dict[str, str], dict[str, Any], int, set[str]]] = {
    "gate_up bf16": (experts.gate_up_kernel, UP_TYPES, UP | SMALL | {"KIND": "bf16", "GATHERED": False}, 4, set()),
    "gate_up nested": (experts.gate_up_kernel, UP_TYPES, UP | SMALL | {"KIND": "nested", "GATHERED": False}, 4, set()),
    "down bf16": (experts.down_kernel, DOWN_TYPES, DOWN | {"KIND": "bf16"}, 8, set()),
    "gate_up picked": (
        experts.gate_up_kernel,
        UP_TYPES | {"order": BF16, "blocks": BF16},
        UP | SMALL | {"KIND": "bf16", "GATHERED": False} | PICKED,
        4,
        set(),
    ),
    "down picked": (
        experts.down_kernel,
        DOWN_TYPES | {"order": BF16, "blocks": BF16, "shares": BF16},
        DOWN | {"KIND": "bf16"} | PICKED,
        8,
        set(),
    ),
    "down many": (
        experts.down_kernel,
        DOWN_TYPES,
        DOWN | {"KIND": "float32", "R": 2, "Q": 4, "WK": 4, "EARLY": True},
        4,
        set(),
    ),
    "dense": (
        experts.dense_kernel,
        WEIGHT | {"x": WORDS, "out": BF16, "num_tokens": "i32"},
        {"COLUMNS": 4096, "ROWS": 6144, "KIND": "bf16", "NUM_BLOCKS": 1, "R": 1, "Q": 1, "WK": 8, "WR": 1}
        | {"EARLY": False, "PLAIN": False},
        8,
        set(),
    ),
    "attend decode": (
        attention.attend_kernel, ATTEND_TYPES, ATTEND, 2, {"q_stride", "value_offset"},
    ),
    "attend decode fp8": (
        attention.attend_kernel,
        ATTEND_TYPES | {"pool": "*u8"},
        ATTEND | {"E4M3": "cast", "POSITIONS": 32},
        2,
        {"q_stride", "value_offset"},
    ),
    "attend decode fp8 by asm": (
        attention.attend_kernel,
        ATTEND_TYPES | {"pool": "*u8"},
        ATTEND | {"E4M3": "asm", "POSITIONS": 32},
        2,
        {"q_stride", "value_offset"},
    ),
    "rotate fp8": (
        fused.rotate_kernel,
        dict.fromkeys(("qkv", "rotary", "q"), BF16)
        | dict.fromkeys(("positions", "slots"), LONG)
        | {"pool": "*u8", "value_offset": "i64"},
        {"HEADS": 32, "KV_HEADS": 8, "WIDTH": 128, "HALF": 64},
        1,
        {"value_offset"},
    ),
    "norm": (
        fused.add_norm_kernel,
        dict.fromkeys(("x", "weight", "total", "out", "router", "logits"), BF16) | {"parts": REAL, "eps": "fp32"},
        {"PARTS": 2, "WIDTH": 4096, "BLOCK": 4096, "EXPERTS": 8, "ROUTED": 8},
        16,
        set(),
    ),
    "route": (
        routing.route_kernel,
        {"logits": BF16, "order": WORDS, "blocks": WORDS, "shares": REAL, "num_tokens": "i32", "num_blocks": "i32"},
        ROUTE | {"TOKENS": 16, "EXPERTS": 8, "PLACES": 2, "BLOCKS": 2},
        1,
        set(),
    ),
    "wgmma up": (
        warpgroup.wgmma_up_kernel,
        WEIGHT | {"x": WORDS, "blocks": WORDS, "out": BF16, "num_blocks": "i32"},
        {"COLUMNS": 4096, "INNER": 14336, "KIND": "bf16", "Q": 8, "WR": 4, "PLAIN": False},
        4,
        set(),
    ),
    "wgmma down": (
        warpgroup.wgmma_down_kernel,
        WEIGHT | {"x": WORDS, "order": WORDS, "blocks": WORDS, "shares": WORDS, "out": REAL, "num_blocks": "i32"},
        {"COLUMNS": 14336, "ROWS": 4096, "KIND": "nested", "R": 2, "Q": 4, "WR": 4, "PLAIN": False},
        4,
        set(),
    ),
    "sample": (sample_kernel.sample_kernel, SAMPLE_TYPES, SAMPLE | {"MASKED": False, "SEATED": True}, 8, set()),
    "sample masked": (sample_kernel.sample_kernel, SAMPLE_TYPES, SAMPLE | {"MASKED": True, "SEATED": True}, 8, set()),
    "sample without seats": (
        sample_kernel.sample_kernel,
        SAMPLE_TYPES | {"seen": WORDS},
        SAMPLE | {"MASKED": False, "SEATED": False},
        8,
        set(),
    ),
}  # fmt: skip


FROM_SM89 = {"attend decode fp8"}
SM90 = {"wgmma up", "wgmma down"}


def source_of(kernel: Any, types: dict[str, str], constants: dict[str, Any], even: list[int]) -> ASTSource:
    """What Triton compiles; `even` are the places of the arguments that are multiples of 16."""
    if "constexprs" in inspect.signature(ASTSource).parameters:  # Triton 3.4
        types |= dict.fromkeys(constants, "constexpr")
        return ASTSource(kernel, types, constants, {(place,): [["tt.divisibility", 16]] for place in even})
    from triton.backends.compiler import AttrsDescriptor

    attributes = AttrsDescriptor.from_dict({"arg_properties": {"tt.divisibility": even}, "cls": "AttrsDescriptor"})
    return ASTSource(kernel, types, constants, attributes)


def compiled(name: str, arch: int, directory: Path) -> dict[str, int]:
    """Registers, bytes of stack, and counts of instructions."""
    kernel, types, constants, warps, multiples = KERNELS[name]
    order = list(kernel.arg_names)
    if "CHAINED" in order:
        constants = constants | {"CHAINED": arch >= 90}
    types = {argument: types[argument] for argument in order if argument in types}
    even = [order.index(argument) for argument, kind in types.items() if kind.startswith("*") or argument in multiples]
    source = source_of(kernel, types, constants, even)
    binary = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"num_warps": warps})
    file = directory / "kernel.cubin"
    file.write_bytes(binary.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

    def dump(what: str) -> str:
        return subprocess.run([tool, what, file], capture_output=True, text=True, check=True).stdout

    usage, code = dump("-res-usage"), dump("-sass")
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found
    # The last two: waits for the kernel ahead, starts the one behind.
    words = ("HMMA", "HGMMA", r"WARPGROUP\.DEPBAR", "BAR", "ACQBULK", "PREEXIT")
    counts = {word: len(re.findall(rf"\b{word}\b", code)) for word in words}
    before, _, _ = code.partition("ACQBULK")
    counts |= {"early stores": len(re.findall(r"\bSTG\b", before)), "early starts": len(re.findall(r"\bPREEXIT\b", before))}
    sums = re.findall(r"mma\.sync(?:[^{]*\{[^}]*\}){3}[^{]*\{([^}]*)\}", binary.asm["ptx"])  # what each `mma` adds to
    counts |= {"mma": len(sums), "fma": len(re.findall(r"fma\.rn\.f32", binary.asm["ptx"]))}
    counts |= {"sums made one": sum(len(set(one.replace(" ", "").split(","))) < 4 for one in sums)}
    loop = {"spills": len(re.findall(r"\b(?:LDL|STL)\b", code)), "wide loads": len(re.findall(r"\bLDG\S*\.128", code))}
    return {"registers": int(found[1]), "stack": int(found[2]), **counts, **loop}


if __name__ == "__main__":
    with TemporaryDirectory() as where:
        arch = int(sys.argv[1])
        names = [name for name in KERNELS if (arch >= 89 or name not in FROM_SM89) and (arch == 90 or name not in SM90)]
        print(json.dumps({name: compiled(name, arch, Path(where)) for name in names}))  # noqa: T201
