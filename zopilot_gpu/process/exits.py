"""The exit statuses that mean something. docs/operations.md has them as a table."""

from enum import IntEnum


class Exit(IntEnum):
    """Why a process of ours ended, where it is neither a stop (0) nor a wrong setting (2)."""

    CUDA_ERROR = 70
    HUNG_STEP = 71
    TOO_MANY_DEATHS = 72

    @property
    def meaning(self) -> str:
        """Who ends so, and why."""
        return _MEANINGS[self]


_MEANINGS = {
    Exit.CUDA_ERROR: "The worker: the GPU failed in a way that lasts for the process.",
    Exit.HUNG_STEP: "The worker: a step of the engine did not end.",
    Exit.TOO_MANY_DEATHS: "The launcher, and with it the container: the worker died too often.",
}


def reason(returncode: int) -> str:
    """A worker's end in words; `returncode` is that of `subprocess`, negative for a signal."""
    if returncode < 0:
        return f"ended by signal {-returncode}"
    if returncode in _MEANINGS:
        return _MEANINGS[Exit(returncode)]
    return f"exit status {returncode}"
