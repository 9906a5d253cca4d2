"""Hands files of tests to processes, and goes on when one of them dies: a plugin for pytest-xdist, loaded by `tests/suite.py`.

As pytest-xdist 3.8 does it, the session hangs when a process dies: files that are done are queued again and hold nothing to
run, and a new process that was given one test waits for a second (its issues 1327 and 1378). Here only what is left is queued
again, without the test that ended the process, and each process is told of two tests or that there are no more.
"""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController


class Files(LoadFileScheduling):
    """A file's tests stay in one process; a process that died is no end."""

    def remove_node(self, node: WorkerController) -> str | None:
        """Queues again what a process leaves behind; gives the test during which it died."""
        workload = self.assigned_work.pop(node)
        left = {scope: tests for scope, tests in workload.items() if not all(tests.values())}
        if not left:
            return None
        crashed: str = next(name for tests in left.values() for name, is_done in tests.items() if not is_done)
        left[self._split_scope(crashed)][crashed] = True  # our caller reports that it failed
        self.workqueue.update({scope: tests for scope, tests in left.items() if not all(tests.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed

    def _reschedule(self, node: WorkerController) -> None:
        """Gives the process more, until it knows the test after its next: it begins none before."""
        if node.shutting_down:
            return
        while self.workqueue and self._pending_of(self.assigned_work[node]) <= 2:
            self._assign_work_unit(node)
        if not self.workqueue:
            node.shutdown()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Files:
    """Called by pytest-xdist, in the process that only distributes."""
    return Files(config, log)
