"""Kernels that are started before the one ahead of them has ended. Knows who waits for what; launches nothing.

From sm_90 on, an edge between two kernels of a CUDA graph may be *programmatic* (CUDA C++ Programming Guide, "Programmatic
Dependent Launch"): the second is started once every program of the first has said so or ended, and what the first has written
is there after it has waited. Here a kernel lets the next one start when it has itself waited for the one ahead, and not before:
who only waits takes the place of who works (measured, decision 19). `engine.chained` makes such edges to the kernels named
here; without one, a kernel finds nothing to wait for.

What a kernel may do before it waits: read what no kernel of a step writes (weights, tables, the step's own numbers), and write
nothing, for the one ahead may still read it. As each waits for the end of the one ahead, which has waited itself, all is
there after it, whatever came before. Some programs may end without waiting, never all.

Some read more before they wait: what multiplies down, and gate and up of gathered rows, where the tokens went. What made that
has ended by then, since the kernel between them has waited for it; it is read past L1.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from zopilot_gpu.model.kernels import INTERPRETED

WAITING = frozenset(
    {
        "add_norm_kernel", "attend_kernel", "dense_kernel", "dequantise_kernel", "down_kernel", "embed_kernel",
        "gate_up_kernel", "gather_kernel", "merge_kernel", "rotate_kernel", "route_kernel", "sum_kernel", "wgmma_down_kernel",
        "wgmma_up_kernel",
    }
)  # fmt: skip

_WAIT: tl.constexpr = tl.constexpr("griddepcontrol.wait; griddepcontrol.launch_dependents; mov.b32 $0, 0;")


@cache
def chains(device: torch.device) -> bool:
    """Whether kernels are compiled to wait on this device: what they are told as `CHAINED`."""
    return not INTERPRETED and device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def wait_for_before(CHAINED: tl.constexpr):
    """Until the kernel ahead has ended; from then on the next may start.

    Gives 0, to be added to a pointer whose loads are pure: they then can't come before.
    """
    zero = 0
    if CHAINED:
        zero = tl.inline_asm_elementwise(_WAIT, "=r", [], dtype=tl.int32, is_pure=False, pack=1)
    return zero
