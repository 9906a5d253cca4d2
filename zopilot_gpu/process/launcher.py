"""BentoML's launcher, supervised: the worker that dies is started again, and too many deaths end the launcher.

BentoML runs its workers under circus, whose arbiter looks every ten seconds, forgets some deaths, waits for nothing between
two starts, and in a container (`BENTOML_CONTAINERIZED`) ends with the first death. `supervise` puts an arbiter of ours in its
place, from the service's `on_deployment` hook: `bentoml serve` and the image's entry point stay what they are. The launcher
keeps the listening socket, so connections made while no worker lives wait for the next one. At a stop it lets go of it at
once: the worker that drains answers the port as long as it lives, and after that the kernel refuses.

Knows circus and processes; nothing of models or HTTP. Try it: `make demo`, then `kill -9` the child of `bentoml serve`.
"""

import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from bentoml._internal.utils import circus

from zopilot_gpu import log
from zopilot_gpu.process.deaths import Deaths
from zopilot_gpu.process.exits import SUPERVISED, Exit, reason
from zopilot_gpu.settings import Settings

_LOOK_S = 0.1
_log = log.get(__name__)


def supervise(settings: Settings) -> None:
    """Makes the launcher of this process, which BentoML is about to build, one that supervises."""
    log.configure(settings.log_level)
    os.environ[SUPERVISED] = str(os.getpid())
    deaths = Deaths(settings.max_deaths, settings.restart_wait_s)
    circus.Arbiter = partial(Supervisor, deaths)  # type: ignore[misc, assignment]


class Supervisor(circus.Arbiter):
    """circus' arbiter with a policy of ours in the place of its periodic look at the processes."""

    def __init__(self, deaths: Deaths, watchers: list[Any], **options: Any) -> None:
        super().__init__(watchers, **options | {"check_delay": _LOOK_S})
        if "CUDA_VISIBLE_DEVICES" not in os.environ:  # then BentoML chose one GPU, because a service must declare a number
            for watcher in watchers:
                watcher.env.pop("CUDA_VISIBLE_DEVICES", None)
        self._deaths = deaths
        self._start_at_s = 0.0
        self._gives_up = False

    def start(self, cb: Any = None) -> None:
        """Runs until the service is stopped, or given up: then it ends the process with `Exit.TOO_MANY_DEATHS`."""
        super().start(cb)
        if self._gives_up:
            raise SystemExit(Exit.TOO_MANY_DEATHS)

    def stop(self) -> Any:
        """Lets go of the port, then stops the workers: each drains and ends."""
        if self._stopping:
            return None
        if self._exclusive_running_command:  # circus would refuse, and forget: the workers are just being started
            return self.loop.call_later(_LOOK_S, self.stop)
        self.sockets.close_all()
        return super().stop()

    def manage_watchers(self) -> None:
        """The periodic look: hears of deaths, starts what is missing."""
        if self._stopping:
            return
        for watcher, pid, returncode in self._reap():
            if watcher.status() == "active":  # or it was told to end, as by `bentoml serve --reload`
                self._note(pid, returncode)
        if self._gives_up:
            self.stop()
        elif time.monotonic() >= self._start_at_s:
            for watcher in self.watchers:
                if watcher.status() == "active" and len(watcher.processes) < watcher.numprocesses:
                    watcher.spawn_process()

    def _note(self, pid: int, returncode: int) -> None:
        now_s = time.monotonic()
        wait_s = self._deaths.add(now_s)
        if wait_s is None:
            self._gives_up = True
            _log.error("worker_died_too_often", pid=pid, reason=reason(returncode), exit_status=int(Exit.TOO_MANY_DEATHS))
        else:
            self._start_at_s = now_s + wait_s
            _log.error("worker_died", pid=pid, reason=reason(returncode), restart_in_s=wait_s)

    def _reap(self) -> Iterator[tuple[Any, int, int]]:
        """The processes that ended since the last look, with watcher and return code. As process 1 it buries orphans too."""
        watchers = {pid: watcher for watcher in self.watchers for pid in watcher.processes}
        for pid, status in _ended_children():
            if watcher := watchers.pop(pid, None):
                watcher.reap_process(pid, status)
                yield watcher, pid, os.waitstatus_to_exitcode(status)
        for pid, watcher in watchers.items():
            process = watcher.processes[pid]
            if not process.is_alive():  # somebody else has waited for it
                watcher.reap_process(pid)
                yield watcher, pid, process.returncode()


def _ended_children() -> Iterator[tuple[int, int]]:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        yield pid, status
