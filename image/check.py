"""Proves, where there is no GPU, that what `image/trim.py` has left works; the Dockerfile runs it, and tests/image once more.

    python image/check.py        prints what it found as one line of JSON; ends with 1 and a sentence where something is amiss

Imports what the service imports, loads every native library, quantises a tensor in NF4, compiles a kernel for the cards that
torch was built for (with Triton's own assembler), and builds a launcher as Triton does on its first call, with a C compiler.
"""

import ctypes
import importlib
import inspect
import json
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

IMPORTED = (
    "accelerate",
    "bentoml",
    "huggingface_hub",
    "llguidance",
    "numpy",
    "runpod",
    "safetensors",
    "sentencepiece",
    "transformers",
)
_LAUNCHER = '#include <Python.h>\n#include "cuda.h"\nint loads(void) { return sizeof(CUdeviceptr) == 8; }\n'


def libraries() -> dict[str, Any]:
    """Everything that is imported or loaded lazily, now; and what torch says of itself."""
    import torch  # noqa: PLC0415  (the check begins before it is known to be there)

    for name in IMPORTED:
        importlib.import_module(name)
    from transformers import MixtralForCausalLM  # noqa: F401, PLC0415

    folder = Path(torch.__file__).parent / "lib"
    ctypes.CDLL(str(folder / "libtorch_cuda_linalg.so"))
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "arch_flags": torch._C._cuda_getArchFlags(),  # noqa: SLF001  (what it was built for, which needs no GPU)
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "numpy": version("numpy"),
    }


def quantises() -> dict[str, Any]:
    """bitsandbytes, on the CPU by computing and for CUDA by loading."""
    import bitsandbytes  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # noqa: PLC0415

    weight = torch.linspace(-1, 1, 4096).reshape(64, 64)
    packed, state = quantize_4bit(weight, quant_type="nf4")
    error = float((dequantize_4bit(packed, state) - weight).abs().max())
    if not error < 0.2:
        raise SystemExit(f"check: NF4 is off by {error}")
    cuda = (torch.version.cuda or "").replace(".", "")
    ctypes.CDLL(str(Path(bitsandbytes.__file__).parent / f"libbitsandbytes_cuda{cuda}.so"))
    return {"bitsandbytes": version("bitsandbytes"), "nf4_error": round(error, 3)}


def compiles(arch_flags: str) -> dict[str, Any]:
    """Triton, for each card from sm_80 that torch was built for."""
    import triton  # noqa: PLC0415
    from triton.backends.compiler import GPUTarget  # noqa: PLC0415
    from triton.compiler import ASTSource  # noqa: PLC0415

    sizes = {}
    if "constexprs" in inspect.signature(ASTSource).parameters:  # Triton 3.4
        source = ASTSource(_kernel(triton), signature={"x": "*fp32", "BLOCK": "constexpr"}, constexprs={(1,): 64})
    else:
        source = ASTSource(_kernel(triton), signature={"x": "*fp32"}, constants={"BLOCK": 64})
    for arch in (int(flag.removeprefix("sm_")) for flag in arch_flags.split() if flag.startswith("sm_")):
        if arch >= 80:
            sizes[f"sm_{arch}"] = len(triton.compile(source, target=GPUTarget("cuda", arch, 32)).asm["cubin"])
    include = Path(triton.__file__).parent / "backends/nvidia/include"
    with tempfile.TemporaryDirectory() as directory:
        written, built = Path(directory, "launcher.c"), Path(directory, "launcher.so")
        written.write_text(_LAUNCHER)
        paths = [f"-I{include}", f"-I{sysconfig.get_path('include')}"]
        subprocess.run(["gcc", "-O3", "-shared", "-fPIC", *paths, written, "-o", built], check=True)
        ctypes.CDLL(str(built))
    return {"triton": version("triton"), "setuptools": version("setuptools"), "cubin_bytes": sizes}


def _kernel(triton: Any) -> Any:
    """x[i] = 2 x[i] + 1. Triton reads a kernel's source from its file."""
    tl = triton.language

    def kernel(x, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def, name-defined]
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        tl.store(x + at, tl.load(x + at) * 2 + 1)

    kernel.__globals__["tl"] = tl
    return triton.jit(kernel)


def main() -> None:
    """All of it."""
    found = libraries()
    found |= quantises() | compiles(found["arch_flags"])
    if int(found["numpy"].partition(".")[0]) < 2:
        raise SystemExit(f"check: NumPy is {found['numpy']}")
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
