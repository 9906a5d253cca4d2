"""Doctor in a service: examines once, when the model answers or can't be loaded; says it in the log and keeps it for `/health`.

Knows when; what is checked is `checks`. torch is imported by then, and by no import of this file.
"""

from typing import TYPE_CHECKING, Any

from runners.base import RunnerState
from zopilot_gpu import log
from zopilot_gpu.doctor.report import as_json, worst
from zopilot_gpu.settings import Settings

if TYPE_CHECKING:
    from runners.machine import Machine  # which imports torch

_log = log.get(__name__)


class Attending:
    """The findings about this process's machine; None until it has been examined."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.findings: dict[str, Any] | None = None

    def examine(self, machine: "Machine | None", state: RunnerState) -> None:
        """Called on the loading thread, with the machine as it was before the model took its memory, and what came of it."""
        from zopilot_gpu.doctor.checks import examine  # noqa: PLC0415  (torch takes seconds)
        from zopilot_gpu.doctor.facts import gather  # noqa: PLC0415

        checks = examine(gather(self._settings, "serving", machine=machine, started=state))
        self.findings = as_json(checks)
        warned = {check.name: check.sentence for check in checks if check.verdict == "warn"}
        failed = [check.name for check in checks if check.verdict == "fail"]  # the runner has said the sentence by now
        say = _log.info if worst(checks) == "ok" else _log.warning
        say("doctor", verdict=worst(checks), num_checks=len(checks), warned=warned, failed=failed)
