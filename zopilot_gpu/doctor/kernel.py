"""The smallest kernel: what shows that Triton, its compiler and the C compiler that it calls work. Imports triton."""

import triton
import triton.language as tl


@triton.jit
def add_one_kernel(x):  # type: ignore[no-untyped-def]  # a kernel's types are Triton's
    """Adds 1 to 64 values."""
    at = tl.arange(0, 64)
    tl.store(x + at, tl.load(x + at) + 1.0)
