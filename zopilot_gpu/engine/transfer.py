"""Between host and device without waiting: numbers go up from pinned memory, what was drawn comes back into it.

NOTE: a copy that does not wait reads or writes pinned memory later, so nobody may use it meanwhile. Torch's allocator of pinned
memory marks each such copy with an event and gives memory out again only after it. So all memory here is new for each copy; a
buffer of our own, used again for the next step, would be a race.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def host_memory(size: int, device: torch.device) -> torch.Tensor:
    """[size] uint8 on the host, pinned where `device` is a GPU."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


def upload(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """A small array on the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Readback:
    """A tensor on its way to the host."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._host = tensor
        self._event: torch.cuda.Event | None = None
        if tensor.is_cuda:
            if tensor.numel():
                self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()  # type: ignore[no-untyped-call]

    def rows(self) -> list[list[float]]:
        """Its rows; waits until the device is so far, and no further."""
        if self._event:
            self._event.synchronize()
        rows: list[list[float]] = self._host.tolist()
        return rows
