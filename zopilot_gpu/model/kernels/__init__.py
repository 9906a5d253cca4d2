"""Triton kernels for a GPU, each with a plain twin. Knows tiles, lanes and registers; not which of them a model uses.

A kernel here is written for one thread at a time: tensors whose last axis is T have one element for each thread of a program,
so that a register of a thread is a row of such a tensor. What Triton has no words for is inline assembly of a line or two in
`fragments`, each beside the same thing in Triton; the interpreter (`TRITON_INTERPRET=1`) takes the latter, and all else is the
same code.
"""

import os

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
