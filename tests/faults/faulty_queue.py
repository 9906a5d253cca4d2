"""The queue worker with the model of `faulty_model`."""

import tests.faults.faulty_model  # noqa: F401  (its import is the fault)
from zopilot_gpu.queue_worker import main

if __name__ == "__main__":
    main()
