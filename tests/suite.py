"""All tests, in two processes side by side; what fails there is run once more, alone, and named. `make test` runs it.

    python -m tests.suite [arguments for pytest, such as -n 4 or tests/unit]

A file's tests stay together in one process. Ends with 0 if nothing failed, or if all that failed passes alone: then the last
lines say which tests needed it. More than MOST_AGAIN failures are no accident, and whatever else pytest reports (interrupted,
nothing collected) is passed on: neither is tried again. A process that dies has failed the test that it was running.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# In the order of their names: contract and faults take long, unit tests are short and many, so that both end together.
BESIDE = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "-p", "tests.scheduling"]
ALONE = ["-n", "0", "--last-failed", "--last-failed-no-failures", "none"]
MOST_AGAIN = 20
_CACHE = Path(".pytest_cache")
_FAILED = _CACHE / "v" / "cache" / "lastfailed"  # pytest's own, which --last-failed reads


def main(arguments: Sequence[str]) -> int:
    """Runs the tests; gives the exit status."""
    _FAILED.unlink(missing_ok=True)
    status = _pytest(*BESIDE, *arguments)
    failed = _failed()
    if status != 1 or not failed:
        return status
    if len(failed) > MOST_AGAIN:
        _say(f"{len(failed)} tests failed: too many to be run again.")
        return status
    _say(f"Failed beside others, once more alone: {len(failed)}")
    status = _pytest(*arguments, *ALONE)
    still = _failed()
    _say("Failed beside others, then alone:", *(f"{'failed' if name in still else 'passed'}  {name}" for name in failed))
    return status or int(bool(still))  # a test that ends the process with status 0 has passed nothing


def _pytest(*arguments: str) -> int:
    command = [sys.executable, "-m", "pytest", "-o", f"cache_dir={_CACHE}", *arguments]
    return subprocess.run(command, check=False).returncode


def _failed() -> list[str]:
    return sorted(json.loads(_FAILED.read_text())) if _FAILED.exists() else []


def _say(first: str, *lines: str) -> None:
    sys.stdout.write("\n".join(["", f"==== {first}", *(f"     {line}" for line in lines), ""]))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
