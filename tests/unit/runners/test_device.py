"""cuDNN is out of use from the first load on: the images are without it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
_SCRIPT = """
import torch
from runners.device import without_cudnn

without_cudnn()
assert not torch.backends.cudnn.enabled
assert not torch.backends.cuda.cudnn_sdp_enabled()
assert torch.backends.cuda.flash_sdp_enabled()
x = torch.randn(1, 4, 8)
assert torch.nn.functional.conv1d(x, torch.randn(4, 4, 3)).shape == (1, 4, 6)
"""


def test_torch_does_without_cudnn() -> None:
    """In a process of its own: it is a switch for a whole process."""
    done = subprocess.run([sys.executable, "-c", _SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
