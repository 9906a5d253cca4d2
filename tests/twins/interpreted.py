"""The kernels as Triton's interpreter runs them, on a CPU: import them from here, and before anything else does."""

import os

os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
try:
    from zopilot_gpu.model.kernels import INTERPRETED, attention, fused, launch, parts, routing, tiles, weights
finally:
    del os.environ["TRITON_INTERPRET"]

__all__ = ["INTERPRETED", "attention", "fused", "launch", "parts", "routing", "tiles", "weights"]
