"""What launcher and worker tell each other: exit statuses (docs/operations.md has them as a table), and who started whom."""

from enum import IntEnum

SUPERVISED = "ZOPILOT_GPU_LAUNCHER_PID"  # in the environment of the workers


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
