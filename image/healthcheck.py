"""The image's HEALTHCHECK: asks this container's own `/ping`, which needs no key. Standard library only: it runs often.

200 (ready) and 204 (loading) are healthy; 503 is not: the model can't be loaded, or the service ends. A worker of a queue
listens on no port; as long as it runs it is healthy, since RunPod's own heartbeat watches it.
"""

import os
import sys
from urllib.error import URLError
from urllib.request import urlopen


def main() -> int:
    """The exit status."""
    if os.environ.get("ZOPILOT_GPU_FACE") == "runpod-queue":
        return 0
    try:
        with urlopen(f"http://127.0.0.1:{os.environ.get('PORT') or 3000}/ping", timeout=4) as answer:
            return int(answer.status >= 300)
    except (URLError, TimeoutError, ConnectionError) as error:
        sys.stdout.write(f"{error}\n")
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
