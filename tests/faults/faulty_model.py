"""A model that fails when told to, for the face that imports it: the file `ZOPILOT_GPU_TEST_FAULT` names says how, once.

`sticky` is an error as CUDA's, `hang` a step that never ends, `hold` one that never ends and keeps the interpreter's lock.
"""

import ctypes
import os
import time
from pathlib import Path
from typing import Any

from runners.background import BackgroundRunner

_load_backend = BackgroundRunner._load_backend


def _load_faulty(self: BackgroundRunner, *given: Any) -> Any:
    loaded = _load_backend(self, *given)
    from zopilot_gpu.model.mixtral import Mixtral

    forward = Mixtral.forward

    def faulty(self: Mixtral, *given: Any) -> Any:
        file = Path(os.environ["ZOPILOT_GPU_TEST_FAULT"])
        if file.exists():
            fault = file.read_text()
            file.unlink()
            match fault:
                case "sticky":
                    raise RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ...")
                case "hang":
                    time.sleep(3600)
                case "hold":
                    ctypes.PyDLL(None).sleep(3600)
        return forward(self, *given)

    setattr(Mixtral, "forward", faulty)  # noqa: B010
    return loaded


setattr(BackgroundRunner, "_load_backend", _load_faulty)  # noqa: B010
